"""Build an object from a spec: a name, or {"name": ..., **arguments}, of any table of factories."""

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast, get_args, get_origin

import jax

from vdm_jax.checks import describe, takes

Row = TypeVar("Row")


@contextmanager
def located(where: str, fields: Iterable[str] = ()) -> Iterator[None]:
    """Prepend a path to the user errors of a block, so that the code in the block needs no path.

    An error about one of the fields, "steps: expected …", becomes an error about `where.steps`; any other
    becomes an error about `where`.

    Examples:
      >>> from vdm_jax.specs import located
      >>> with located("config.train", ["steps"]):
      ...     raise ValueError("steps: expected a whole number, found 1.5")
      Traceback (most recent call last):
      ValueError: config.train.steps: expected a whole number, found 1.5
    """
    try:
        yield
    except jax.errors.JAXTypeError:  # of tracers: a bug, and no mistake of the user
        raise
    except (ValueError, TypeError) as error:
        # the base types: the constructors of some subclasses need more than a message
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_join(where, fields, error)) from error
    except OSError as error:
        if error.errno is not None:  # of the system, with its own number and file name
            raise
        raise type(error)(_join(where, fields, error)) from error


def _join(where: str, fields: Iterable[str], error: Exception) -> str:
    """Return the message of an error with its path."""
    line = str(error)
    field = re.match(r"(\w+)(: |\.|\[| of )", line)
    return f"{where}.{line}" if field and field[1] in fields else f"{where}: {line}"


def choose(table: Mapping[str, Row], name: object, where: str) -> Row:
    """Look `name` up in a table.

    Raises:
      ValueError: an unknown name; the message has the choices and the nearest name, if one is near.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}: unknown name {name!r}{nearest(name, table)}")
    return table[name]


def build(
    table: Mapping[str, Callable[..., Row]], spec: object, where: str = "spec", **shared: Any
) -> Row:
    """Build the object that a spec names.

    Args:
      table: name -> factory.
      spec: a name, {"name": ..., **arguments}, or an object that is built already and returned unchanged.
      where: name of the spec, for messages; callers prepend the path to it with `located`.
      **shared: arguments for all factories; a factory gets those that it takes. An argument of the spec takes
        precedence unless it is None.

    Raises:
      ValueError: an unknown name, an unknown or missing argument, a factory instead of its result, or an error
        of the factory.
      TypeError: an object of another type than the table's factories return, or no table.

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
    # `type`, because components are named tuples
    if spec is None or type(spec) in (bool, int, float, list, tuple):
        raise ValueError(f"{where}: expected a name or {{'name': ...}}, found {spec!r}")
    if not isinstance(spec, str | Mapping):
        for name, factory in table.items():
            if spec is factory:
                raise ValueError(
                    f"{where}: expected the name {name!r} or what its factory returns, found the factory"
                )
        _check_kind(table, spec, where)
        return cast(Row, spec)
    arguments: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in arguments:
        raise ValueError(f"{where}: expected a 'name', found only {sorted(arguments)}")
    name = arguments.pop("name")
    factory = choose(table, name, where)
    parameters = dict(inspect.signature(factory).parameters)
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{where}: {name!r} has no argument {key!r}{nearest(key, parameters)}")
    for key, value in shared.items():
        if key in parameters and arguments.get(key) is None:
            arguments[key] = value
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
    if missing:
        raise ValueError(f"{where}: {name!r} needs {', '.join(missing)}")
    with located(where, parameters):
        return factory(**arguments)


def _check_kind(table: Mapping[str, Callable], value: object, where: str) -> None:
    """Check that an object is of a type that the factories of a table are annotated to return.

    A table whose factories have no annotation accepts every object.
    """
    kinds = {inspect.signature(factory).return_annotation for factory in table.values()}
    kinds.discard(inspect.Parameter.empty)
    classes = [kind for kind in kinds if isinstance(kind, type)]
    if any(isinstance(value, kind) for kind in classes):
        return
    signatures = [get_args(kind) for kind in kinds if get_origin(kind) is Callable]
    for signature in signatures:
        if signature and callable(value) and not isinstance(value, type):
            count = len(signature[0])
            if takes(value, count):
                return
            raise TypeError(
                f"{where}: expected a function of {count} arguments, "
                f"found one that takes {inspect.signature(value)}"
            )
    choices = ["a name", "{'name': ...}", *sorted(f"a {kind.__name__}" for kind in classes)]
    if signatures and not classes:
        choices.append("a function")
    if classes or signatures:
        raise TypeError(f"{where}: expected {' or '.join(choices)}, found {describe(value)}")


def name_of(spec: object) -> str:
    """Return the name in a spec, or the type of an object that is built already.

    Raises:
      ValueError: a spec without a name.
    """
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise ValueError(f"expected a 'name', found only {sorted(spec)}")
        return str(spec["name"])
    return spec if isinstance(spec, str) else type(spec).__name__


def label_of(spec: object) -> str:
    """Return the name in a spec with its arguments, cut to a length that fits into a title."""
    fields = spec.items() if isinstance(spec, Mapping) else ()
    arguments = ", ".join(f"{key} {value}" for key, value in fields if key != "name")
    return name_of(spec) + (f" ({textwrap.shorten(arguments, 60)})" if arguments else "")


def text_of(spec: object) -> str | None:
    """Return specs of names and numbers as text, or None for specs with arrays, functions or built objects."""
    try:
        return json.dumps(spec, sort_keys=True)
    except TypeError:
        return None


def nearest(name: object, choices: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the nearest choice, and all choices."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} choices: {', '.join(sorted(choices))}"
