"""Overrides of a config from the command line, --config.<field>=<value>.

The type of a field comes from the config, from `default()`, and from the signature of the component that the
field is an argument of. A component is a name, or {"name": ..., **arguments}:

    --config.model.schedule=cosine           the component of that name with its defaults
    --config.model.schedule.name=cosine      the same component with the arguments of the previous one
    --config.model.schedule.gamma_min=-10    one argument, also if the config file does not have it

Components are set before their arguments, whatever the order on the command line. Of two overrides of a field
the last one counts.
"""

import difflib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ml_collections import ConfigDict

from vdm_jax.bases import BASES
from vdm_jax.config import leaves
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import CHAINS, MODELS
from vdm_jax.nets import NETS
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.override_values import Field, Override, default_of, field_of, literal, parse_value
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.samplers import GRIDS, SAMPLERS
from vdm_jax.schedules import SCHEDULES
from vdm_jax.settings import to_plain
from vdm_jax.specs import choose
from vdm_jax.time_samplers import TIME_SAMPLERS
from vdm_jax.weightings import WEIGHTINGS

COMPONENTS: dict[str, Mapping[str, Callable]] = {
    "model": MODELS,
    "network": NETS,
    "encoder": NETS,
    "decoder": NETS,
    "level": NETS,
    "schedule": SCHEDULES,
    "train_schedule": SCHEDULES,
    "parameterization": PARAMETERIZATIONS,
    "loss_space": PARAMETERIZATIONS,
    "base": BASES,
    "output_scale": OUTPUT_SCALES,
    "likelihood": LIKELIHOODS,
    "weighting": WEIGHTINGS,
    "time_sampler": TIME_SAMPLERS,
    "chain": CHAINS,
    "sampler": SAMPLERS,
    "grid": GRIDS,
}
"""Fields that hold a component -> the table of the component."""

SECTIONS = "model", "sample"
"""Sections of a config that hold components."""

COMPUTED = {"where", "statistics", "log_counts", "outputs", "chain.likelihood"}
"""Arguments of components that the model computes, so that a config cannot set them."""


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Split command-line arguments into the arguments of other flags and the overrides.

    A value follows "=", or is the next argument unless that is a flag.
    """
    others, overrides = [], []
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        if argument == "--":  # what follows are no flags
            return [*others, argument, *rest], overrides
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(=(.*))?", argument, re.S)
        if match is None:
            others.append(argument)
            continue
        negated, path, text = bool(match[1]), match[2], match[4]
        # letters after the dash, because the next argument may be a negative number
        if text is None and not negated and rest and not re.match(r"--?[A-Za-z]|--$", rest[0]):
            text = rest.popleft()
        overrides.append(Override(path, text, negated))
    return others, overrides


def apply_overrides(config: ConfigDict, overrides: Iterable[Override]) -> None:
    """Apply overrides to a config, components before their arguments.

    Raises:
      ValueError: those of `apply_override`.
    """
    last = {override.path: override for override in overrides}

    def order(override: Override) -> tuple[int, bool]:
        """Sort by depth; of one depth, `schedule.name` after `schedule`, which would replace it."""
        path = override.path
        return path.removesuffix(".name").count("."), path.endswith(".name")

    for override in sorted(last.values(), key=order):
        apply_override(config, override)


def apply_override(config: ConfigDict, override: Override) -> None:
    """Apply an override to a config.

    Raises:
      ValueError: an unknown field, or a value that it cannot hold; one line, which begins with the flag.
    """
    _apply(config, override.path.split("."), [], override, config)


def _apply(
    tree: ConfigDict, keys: list[str], above: list[str], override: Override, config: ConfigDict
) -> None:
    """Apply an override to the field `keys` of `tree`, which is the section config.<above>."""
    key, *rest = keys
    arguments = _arguments(tree, above)
    if key not in {*tree, *arguments}:
        _refuse_field(override, key, {*tree, *arguments}, above, config)
    parameter = arguments.get(key)
    value = tree[key] if key in tree else default_of(parameter)
    path = [*above, key]
    table = COMPONENTS.get(key) if path[0] in SECTIONS else None
    if not rest:
        if table is not None:
            new = _component(value, table, override, field_of(tree, key, path, parameter).optional)
        elif isinstance(value, ConfigDict):
            _refuse_section(override, value)
        else:
            new = parse_value(field_of(tree, key, path, parameter), override)
            if key == "name":
                _check_arguments(tree, above, new, override)
        _set(tree, key, new)
    elif isinstance(value, ConfigDict):
        _apply(value, rest, path, override, config)
    elif table is not None and isinstance(value, str | None):
        # an argument of a component that the config names alone: make the name a section
        section = ConfigDict({} if value is None else {"name": value})
        _apply(section, rest, path, override, config)
        _set(tree, key, section["name"] if set(section) == {"name"} else section)
    else:
        raise ValueError(
            f"{override.flag}: no such field: config.{'.'.join(path)} is {to_plain(value)!r}"
        )


def _set(tree: ConfigDict, key: str, value: Any) -> None:
    # unlocked, because arguments may be new; without types, because a name may become a section
    with tree.unlocked(), tree.ignore_type():
        tree[key] = value


def _arguments(tree: ConfigDict, path: list[str]) -> dict[str, inspect.Parameter]:
    """Return the arguments that the component config.<path> takes; {} for a section of another kind."""
    if not path or path[0] not in SECTIONS or path[-1] not in COMPONENTS:
        return {}
    if not isinstance(tree.get("name"), str):
        return {"name": inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, annotation=str)}
    return _arguments_of(path, tree["name"])


def _arguments_of(path: list[str], name: object) -> dict[str, inspect.Parameter]:
    """Return the arguments that a config can give to the component `name` in config.<path>."""
    where = "config.model.name" if path == ["model"] else f"config.{'.'.join(path)}"
    factory = choose(COMPONENTS[path[-1]], name, where)
    return {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and not {key, f"{path[-1]}.{key}"} & COMPUTED
    }


def _component(
    value: object, table: Mapping[str, Callable], override: Override, optional: bool
) -> str | ConfigDict | None:
    """Return the spec of an override: a name, or a section {"name": ...} if `value` is a section.

    Args:
      value: the previous value of the field.
      table: of the component.
      override: whose text is a name or a literal {"name": ...}.
      optional: True if the field may be None.

    Raises:
      ValueError: an unknown name, or None where the field needs a component.
    """
    if optional and override.text == "None":
        return None
    text = parse_value(Field(str, optional), override)
    where = f"config.{override.path}"
    spec = literal(text) if text.startswith("{") else {"name": text}
    if not isinstance(spec, dict) or "name" not in spec or not all(map(_is_key, spec)):
        raise ValueError(f"{override.flag}: expected a name or {{'name': ...}}, found {text!r}")
    choose(table, spec["name"], where)
    is_name = not text.startswith("{") and isinstance(value, str | None)
    return text if is_name else ConfigDict(spec)


def _is_key(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _check_arguments(tree: ConfigDict, path: list[str], name: object, override: Override) -> None:
    """Check that the component `name` takes the arguments that the section config.<path> has."""
    if not path or path[0] not in SECTIONS or path[-1] not in COMPONENTS:
        return
    accepted = _arguments_of(path, name)
    unknown = [key for key in tree if key != "name" and key not in accepted]
    if unknown:
        raise ValueError(
            f"{override.flag}: {name!r} has no argument {unknown[0]!r}, which the config has for "
            f"{tree['name']!r}; expected --config.{'.'.join(path)}={name}, with the defaults of {name!r}"
        )


def _refuse_section(override: Override, section: ConfigDict) -> NoReturn:
    """Raise the error of an override of a whole section."""
    hint = ""
    if "name" in section and override.text:
        hint = f"did you mean {override.flag}.name={override.text}? "
    raise ValueError(
        f"{override.flag}: is a section, expected {override.flag}.<field>=<value>, found "
        f"{override.text!r}; {hint}fields of config.{override.path}: {', '.join(sorted(section))}"
    )


def _refuse_field(
    override: Override, key: str, names: set[str], above: list[str], config: ConfigDict
) -> NoReturn:
    """Raise the error of an unknown field, with the nearest field and those of the section."""
    where = ".".join(["config", *above])
    index = re.fullmatch(r"(.+)\[.*\]", key)
    if index and index[1] in names:
        raise ValueError(
            f"{override.flag}: elements are not set one by one, expected the whole value, "
            f"--{where}.{index[1]}=<value>"
        )
    folded = {_folded(name): name for name in sorted(names)}
    close = [f"{where}.{folded[n]}" for n in difflib.get_close_matches(_folded(key), folded, n=1)]
    # a field of this name in another section
    paths = (path for path, _ in leaves(to_plain(config)))
    close += [f"config.{path}" for path in paths if path.endswith(f".{key}")]
    hint = f"did you mean --{close[0]}? " if close else ""
    raise ValueError(
        f"{override.flag}: no such field; {hint}fields of {where}: {', '.join(sorted(names))}"
    )


def _folded(name: str) -> str:
    """Return a name for comparisons, in lower case and with underscores."""
    return name.lower().replace("-", "_")
