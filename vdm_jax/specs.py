"""From a name, or {"name": ..., **kwargs}, to an object: one function for every table."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args, get_origin

from vdm_jax.checks import describe, takes


@contextmanager
def located(where: str, fields: Iterable[str] = ()) -> Iterator[None]:
    """Prepend a path to the user errors of a block, so that what is inside needs no path.

    An error of one of the fields, "steps: expected …", becomes one of `where.steps`; another, one of `where`.

    Examples:
      >>> from vdm_jax.specs import located
      >>> with located("config.train", ["steps"]):
      ...     raise ValueError("steps: expected a whole number, found 1.5")
      Traceback (most recent call last):
      ValueError: config.train.steps: expected a whole number, found 1.5
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        # the plain kinds: not every subclass of them can be made from a message alone
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_join(where, fields, error)) from error
    except OSError as error:
        if error.errno is not None:  # of the system, which names its file
            raise
        raise type(error)(_join(where, fields, error)) from error


def _join(where: str, fields: Iterable[str], error: Exception) -> str:
    line = str(error)
    field = re.match(r"(\w+)(: |\.|\[| of )", line)
    return f"{where}.{line}" if field and field[1] in fields else f"{where}: {line}"


def choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """Look `name` up in a table.

    Raises:
      ValueError: an unknown name; the message has the choices and, if there is one, the nearest.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}: unknown name {name!r}{nearest(name, table)}")
    return table[name]


def build(table: Mapping[str, Callable], spec: Any, where: str = "spec", **shared: Any) -> Any:
    """Build the object that a spec names.

    Args:
      table: name -> factory.
      spec: a name, {"name": ..., **kwargs}, or an object built already, which is returned as it is.
      where: name of the spec, for messages. What calls the caller prepends its own, see `located`.
      **shared: arguments that are passed to factories that take them and dropped for those that do not;
        the spec's own value wins unless it is None.

    Raises:
      ValueError: an unknown name (with the choices), an unknown or missing argument (with the nearest), a
        factory that is not called, or what the factory itself refuses.
      TypeError: an object of another kind than the table's factories return, or no table.

    Examples:
      >>> schedule = vdm.build(vdm.schedules.SCHEDULES, {"name": "linear", "gamma_max": 4.0})
      >>> float(schedule.gamma(None, 1.0))
      4.0
      >>> vdm.build(vdm.schedules.SCHEDULES, "cosin", "config.model.schedule")
      Traceback (most recent call last):
      ValueError: config.model.schedule: unknown name 'cosin'; did you mean 'cosine'? choices: cosine, ...
    """
    if not isinstance(table, Mapping):
        raise TypeError(
            f"{where}: expected a table such as vdm.schedules.SCHEDULES, found {describe(table)}"
        )
    if spec is None or type(spec) in (bool, int, float, list, tuple):
        raise ValueError(f"{where}: expected a name or {{'name': ...}}, found {spec!r}")
    if not isinstance(spec, str | Mapping):
        for name, factory in table.items():
            if spec is factory:
                raise ValueError(
                    f"{where}: expected the name {name!r} or what its factory returns, found the factory"
                )
        _check_kind(table, spec, where)
        return spec
    kwargs = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in kwargs:
        raise ValueError(f"{where}: expected a 'name', found only {sorted(kwargs)}")
    name = kwargs.pop("name")
    factory = choose(table, name, where)
    known = dict(inspect.signature(factory).parameters)
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{where}: {name!r} has no argument {key!r}{nearest(key, known)}")
    for key, value in shared.items():
        if key in known and kwargs.get(key) is None:
            kwargs[key] = value
    missing = [k for k, p in known.items() if p.default is p.empty and k not in kwargs]
    if missing:
        raise ValueError(f"{where}: {name!r} needs {', '.join(missing)}")
    with located(where, known):
        return factory(**kwargs)


def _check_kind(table: Mapping[str, Callable], spec: Any, where: str) -> None:
    """Refuse an object that is not what the factories of a table say they return."""
    kinds = {inspect.signature(factory).return_annotation for factory in table.values()}
    classes = tuple(kind for kind in kinds if isinstance(kind, type))
    if any(isinstance(spec, kind) for kind in classes if kind is not inspect.Parameter.empty):
        return
    for kind in kinds:
        arguments = get_args(kind)[:1] if get_origin(kind) is Callable else ()
        if arguments and not isinstance(spec, type) and callable(spec):
            if takes(spec, len(arguments[0])):
                return
            raise TypeError(
                f"{where}: expected a function of {len(arguments[0])} arguments, "
                f"found one that takes {inspect.signature(spec)}"
            )
    names = [kind.__name__ for kind in classes if kind is not inspect.Parameter.empty]
    if names or any(get_origin(kind) is Callable for kind in kinds):
        expected = " or ".join(["a name", "{'name': ...}", *(f"a {n}" for n in sorted(names))])
        raise TypeError(
            f"{where}: expected {expected if names else expected + ' or a function'}, found {describe(spec)}"
        )


def name_of(spec: Any) -> str:
    """The name in a spec, or the type of an object built already."""
    if isinstance(spec, Mapping):
        return str(spec["name"])
    return spec if isinstance(spec, str) else type(spec).__name__


def nearest(name: Any, choices: Any) -> str:
    """The end of a message about an unknown name: the nearest choice and all of them."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} choices: {', '.join(sorted(choices))}"
