"""The axes of a sweep, and the settings of its single runs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from vdm_jax.models import with_defaults
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked, switch_by_index
from vdm_jax.settings import Settings, SweepSettings
from vdm_jax.weightings import WEIGHTINGS, stacked_weightings, wrap_function


class SweepAxis(NamedTuple):
    """A setting in which the runs of a sweep may differ.

    Attributes:
      section, field: where a config holds the setting; `section` is None for a field outside of sections.
      word: format of a value in the name of a run.
      table: factories of the components that the axis chooses from; None for an axis of numbers.
      select: (components, index) -> one of the components; the index may be traced.
      wrap: prepares a value for `build`, such as a plain function.
    """

    section: str | None
    field: str
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
    "seeds": SweepAxis(None, "seed", "seed{}"),
}
"""Axes of `config.sweep`; the seeds are last, so that the runs of one variant are neighbours."""

CHOICES = [name for name, axis in AXES.items() if axis.table is not None]
"""Axes whose values are components of the model."""


def expand(settings: Settings) -> dict[str, Settings]:
    """Return the settings of the single runs, by name; without a sweep, one run under the name "".

    Raises:
      ValueError: a value that occurs twice, or an axis that the model does not have.
    """
    requested = {name: getattr(settings.sweep, name) for name in AXES}
    for axis, values in requested.items():
        if len({*map(str, values)}) < len(values):
            raise ValueError(f"config.sweep.{axis}: expected each value once, found {values}")
    # a config may leave a field to its model, so that the config alone does not tell which fields there are
    fields = with_defaults(settings.model)
    for name in CHOICES:
        if requested[name] and AXES[name].field not in fields:
            raise ValueError(f"config.sweep.{name}: {fields['name']!r} has no {AXES[name].field}")
    runs = {}
    for values in product(*(requested[name] or [None] for name in AXES)):
        chosen = {
            name: value for name, value in zip(AXES, values, strict=True) if value is not None
        }
        run_name = "_".join(AXES[name].word.format(value) for name, value in chosen.items())
        runs[run_name] = _single(settings, chosen)
    return runs


def _single(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """Return the settings of one run, which has one value of each requested axis and no sweep."""
    single = replace(settings, sweep=SweepSettings(**{name: [] for name in AXES}))
    for name, value in chosen.items():
        section, changed = AXES[name].section, {AXES[name].field: value}
        if section is not None:
            fields = getattr(single, section)
            together = fields | changed if isinstance(fields, dict) else replace(fields, **changed)
            changed = {section: together}
        single = replace(single, **changed)
    return single


def is_sweep(settings: Settings) -> bool:
    """Return True if the settings ask for a sweep."""
    return any(vars(settings.sweep).values())
