"""The axes of a sweep, and the configs of its single runs."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

from vdm_jax.models import with_defaults
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked, switch_by_index
from vdm_jax.weightings import WEIGHTINGS, stacked_weightings, wrap_function


class SweepAxis(NamedTuple):
    """A setting in which the runs of a sweep may differ.

    Attributes:
      section, field: where a config holds the setting; `field` is None if the section is the setting.
      word: format of a value in the name of a run.
      table: factories of the components that the axis chooses from; None for an axis of numbers.
      select: (components, index) -> one of the components; the index may be traced.
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
"""Axes whose values are components of the model."""


def expand(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configs of the single runs, by name; without a sweep, one config under the name "".

    Raises:
      ValueError: a value that occurs twice, or an axis that the model does not have.
    """
    requested = requested_values(config)
    for axis, values in requested.items():
        if len({*map(str, values)}) < len(values):
            raise ValueError(f"config.sweep.{axis}: expected each value once, found {values}")
    # a config may leave a field to its model, so that the config alone does not tell which fields there are
    fields = with_defaults(config["model"])
    for name in CHOICES:
        if requested[name] and AXES[name].field not in fields:
            raise ValueError(
                f"config.sweep.{name}: {config['model']['name']!r} has no {AXES[name].field}"
            )
    configs = {}
    for values in product(*(requested[name] or [None] for name in AXES)):
        chosen = {
            name: value for name, value in zip(AXES, values, strict=True) if value is not None
        }
        run_name = "_".join(AXES[name].word.format(value) for name, value in chosen.items())
        configs[run_name] = _single(config, chosen)
    return configs


def _single(config: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of one run, which has one value of each requested axis and no sweep."""
    single = config | {"sweep": {name: [] for name in AXES}}
    for name, value in chosen.items():
        axis = AXES[name]
        if axis.field is None:
            single[axis.section] = value
        else:
            single[axis.section] = single[axis.section] | {axis.field: value}
    return single


def is_sweep(config: dict[str, Any]) -> bool:
    """Return True if a config asks for a sweep."""
    return any(config["sweep"].values())


def requested_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of every axis; an axis that the config lacks has none."""
    return dict.fromkeys(AXES, ()) | config["sweep"]
