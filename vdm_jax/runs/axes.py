"""The axes of a sweep, and the configs of its single runs."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from vdm_jax.models import with_defaults
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked, switch_by_index
from vdm_jax.weightings import WEIGHTINGS, stacked_weightings, wrap_function


class SweepAxis(NamedTuple):
    """One way in which runs may differ.

    Attributes:
      section, field: what it sets in a config.
      word: how a value is named.
      table, select: of the values, and what makes one of several built ones by an index that may be traced.
      wrap: prepares a value for `build`, such as a plain function.
    """

    section: str
    field: str | None
    word: str = "{}"
    table: dict[str, Any] | None = None
    select: Callable[[list[Any], Any], Any] = switch_by_index
    wrap: Callable[[Any], Any] = lambda value: value


AXES = {
    "parameterizations": SweepAxis(
        "model", "parameterization", table=PARAMETERIZATIONS, select=stacked
    ),
    "output_scales": SweepAxis("model", "output_scale", table=OUTPUT_SCALES),
    "weightings": SweepAxis(
        "model", "weighting", table=WEIGHTINGS, select=stacked_weightings, wrap=wrap_function
    ),
    "learning_rates": SweepAxis("optimizer", "learning_rate", "lr{}"),
    "seeds": SweepAxis("seed", None, "seed{}"),
}
"""Axes of `config.sweep`; the seeds are last, so that the runs of one variant are neighbours."""

CHOICES = [name for name, axis in AXES.items() if axis.table is not None]


def expand(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs of the single runs, by name; one without a name if `config.sweep` asks for none.

    Raises:
      ValueError: a value twice, or parameterizations of a model that has none.
    """
    requested = requested_values(config)
    for axis, values in requested.items():
        if len({*map(str, values)}) < len(values):
            raise ValueError(f"config.sweep.{axis}: expected each value once, found {values}")
    known = with_defaults(config["model"])
    for name in CHOICES:
        if requested[name] and AXES[name].field not in known:
            raise ValueError(
                f"config.sweep.{name}: {config['model']['name']!r} has no {AXES[name].field}"
            )
    configs = {}
    for values in product(*(requested[name] or [None] for name in AXES)):
        single, words = config | {"sweep": {name: [] for name in AXES}}, []
        for axis, value in zip(AXES.values(), values, strict=True):
            if value is not None:
                section = single[axis.section]
                single[axis.section] = (
                    value if axis.field is None else section | {axis.field: value}
                )
                words.append(axis.word.format(value))
        configs["_".join(words)] = single
    return configs


def is_sweep(config: dict[str, Any]) -> bool:
    """Return True if a config asks for a sweep."""
    return any(config["sweep"].values())


def requested_values(config: dict[str, Any]) -> dict[str, Any]:
    """The values of every axis; of those that a config does not have, none."""
    return dict.fromkeys(AXES, ()) | config["sweep"]
