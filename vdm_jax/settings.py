"""The fields of a config: type, default and rule of each, and whether a continued run may change it.

`vdm_jax.config` builds the default config from these fields and validates configs against them. The fields of
`model` and `sample` are not declared here: they are the arguments of the model's functions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict


class Rule(NamedTuple):
    """A condition on a value, in words and as a function; NaN satisfies no rule."""

    words: str
    holds: Callable[[Any], bool]


SEED = Rule("a whole number in [0, 2**32)", lambda v: 0 <= v < 2**32)  # uint32 in a sweep
AT_LEAST_ONE = Rule("a whole number of at least 1", lambda v: v >= 1)
AT_LEAST_TWO = Rule("a whole number of at least 2", lambda v: v >= 2)
NOT_NEGATIVE = Rule("a finite number of at least 0", lambda v: 0 <= v < math.inf)
ABOVE_ZERO = Rule("a finite number above 0", lambda v: 0 < v < math.inf)
FRACTION = Rule("a number in [0, 1)", lambda v: 0 <= v < 1)
SPEC = Rule(
    "a name or {'name': ...}", lambda v: isinstance(v, str) or (isinstance(v, dict) and "name" in v)
)
PART = Rule("a number in [0, 1]", lambda v: 0 <= v <= 1)


def row(default: Any, rule: Rule | None = None, *, may_change: bool = False) -> Any:
    """Declare a field of a section.

    Args:
      default: default value; a tuple for a list.
      rule: condition on the value, or on each element of a list.
      may_change: True if a config that continues a run may have another value.
    """
    # fields that may change do not affect what a train step computes, up to rounding
    return field(default=default, metadata={"rule": rule, "may_change": may_change})


@dataclass(frozen=True)
class SweepSettings:
    """Values of each axis of a sweep; without values, a config is that of a single run."""

    parameterizations: Sequence[str] = row(())
    output_scales: Sequence[str] = row(())
    weightings: Sequence[str] = row(())
    learning_rates: Sequence[float] = row((), ABOVE_ZERO)
    seeds: Sequence[int] = row((), SEED)


@dataclass(frozen=True)
class DataSettings:
    """Arguments of `load_dataset`."""

    name: str = row("digits")
    data_dir: str | None = row(None, may_change=True)
    train_split: str | None = row(None)
    test_split: str | None = row(None)


@dataclass(frozen=True)
class OptimizerSettings:
    """Arguments of `make_optimizer`."""

    name: str = row("adamw")
    learning_rate: float = row(2e-3, ABOVE_ZERO)
    warmup_steps: int = row(100, NOT_NEGATIVE)
    decay_steps: int | None = row(1500, AT_LEAST_ONE)
    decay_to: float = row(0.05, PART)
    weight_decay: float = row(0.01, NOT_NEGATIVE)
    b1: float = row(0.9, FRACTION)
    b2: float = row(0.99, FRACTION)
    clip_norm: float | None = row(1.0, ABOVE_ZERO)
    accumulate: int = row(1, AT_LEAST_ONE)


@dataclass(frozen=True)
class TrainSettings:
    """Batches, the EMA, the layout on the devices, and when to log, save and evaluate."""

    batch_size: int = row(64, AT_LEAST_ONE)
    steps: int = row(1500, AT_LEAST_ONE, may_change=True)
    steps_per_dispatch: int = row(1, AT_LEAST_ONE)
    ema_decay: float = row(0.999, FRACTION)
    ema_warmup: bool = row(True)
    log_every: int = row(10, AT_LEAST_ONE, may_change=True)
    checkpoint_every: int = row(500, AT_LEAST_ONE, may_change=True)
    # orbax deletes the oldest step before the manifest of the newest is written
    keep_checkpoints: int = row(2, AT_LEAST_TWO, may_change=True)
    evaluate_every: int | None = row(None, AT_LEAST_ONE, may_change=True)
    max_nonfinite_steps: int = row(3, AT_LEAST_ONE, may_change=True)
    parallel: str = row("auto", may_change=True)
    fsdp: int = row(1, AT_LEAST_ONE, may_change=True)
    stall_seconds: float = row(15.0, ABOVE_ZERO, may_change=True)


@dataclass(frozen=True)
class EvaluateSettings:
    """The evaluation on the test split."""

    batch_size: int = row(100, AT_LEAST_ONE, may_change=True)
    draws: int = row(16, AT_LEAST_ONE, may_change=True)
    estimators: Sequence[Any] = row(("elbo",), SPEC, may_change=True)
    fit_examples: int = row(1024, AT_LEAST_ONE, may_change=True)


@dataclass(frozen=True)
class Settings:
    """A validated config with typed sections, see `vdm_jax.config.resolve`.

    `model` and `sample` are plain dictionaries, since their fields depend on the model.
    """

    sweep: SweepSettings
    data: DataSettings
    model: dict[str, Any]
    optimizer: OptimizerSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    sample: dict[str, Any]
    seed: int = row(0, SEED)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Settings":
        """Return the settings of a validated config, plain dictionaries."""
        return cls(**{k: SECTIONS[k](**v) if k in SECTIONS else v for k, v in plain.items()})

    @property
    def plain(self) -> dict[str, Any]:
        """The config as plain dictionaries, the form in which files and checkpoints hold it."""
        return {k: to_plain(vars(v) if k in SECTIONS else v) for k, v in vars(self).items()}


SECTIONS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(Settings).items() if is_dataclass(kind)
}

SAMPLE_RULES = {"count": AT_LEAST_ONE, "steps": AT_LEAST_ONE, "sampler": SPEC, "grid": SPEC}
"""Rules of fields of `sample`, which are not declared as fields."""


def to_plain(tree: Any) -> Any:
    """Copy configs as dictionaries and tuples as lists, as they come back from JSON."""
    if isinstance(tree, ConfigDict):
        tree = tree.to_dict()
    if isinstance(tree, Mapping):
        return {key: to_plain(value) for key, value in tree.items()}
    return [to_plain(value) for value in tree] if isinstance(tree, tuple | list) else tree


class Row(NamedTuple):
    """The declaration of a field of a config.

    Attributes:
      kind: type of the value; list for a list.
      element: type of the elements of a list, `object` for any; or None.
      optional: True if the value may be None.
      default: value in the default config.
      rule: condition on the value, or on each element of a list; or None.
      may_change: True if a config that continues a run may have another value.
    """

    kind: type
    element: type | None
    optional: bool
    default: Any
    rule: Rule | None
    may_change: bool


def _rows(kind: type, prefix: str = "") -> dict[str, Row]:
    """Return the declarations of a section by dotted path, with types from its annotations."""
    hints, rows = get_type_hints(kind), {}
    for declared in fields(kind):
        if not declared.metadata:  # a section of `Settings`
            continue
        hint = hints[declared.name]
        arguments = get_args(hint)  # of X | None, and of Sequence[X]
        types = [t for t in arguments if t is not type(None)] or [hint]
        is_list = get_origin(hint) is Sequence
        rows[f"{prefix}{declared.name}"] = Row(
            kind=list if is_list else types[0],
            element=(object if types[0] is Any else types[0]) if is_list else None,
            optional=type(None) in arguments,
            default=declared.default,
            rule=declared.metadata["rule"],
            may_change=declared.metadata["may_change"],
        )
    return rows


ROWS: dict[str, Row] = _rows(Settings) | {
    path: row for name, kind in SECTIONS.items() for path, row in _rows(kind, f"{name}.").items()
}
"""Dotted path -> `Row` of every field outside of `model` and `sample`."""
