"""Densities of training times: importance sampling over t, eq. (37), (38)."""

from collections.abc import Callable

from vdm_jax.time_samplers.base import TimeSample, TimeSampler, TrainingPath, stateless
from vdm_jax.time_samplers.bins import bin_probabilities, draw_weighted
from vdm_jax.time_samplers.densities import (
    analytic,
    learned,
    logit_normal,
    lognormal_sigma,
    uniform,
)

__all__ = [
    "TIME_SAMPLERS",
    "TimeSample",
    "TimeSampler",
    "TrainingPath",
    "analytic",
    "bin_probabilities",
    "draw_weighted",
    "learned",
    "logit_normal",
    "lognormal_sigma",
    "stateless",
    "uniform",
]

TIME_SAMPLERS: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "analytic": analytic,
    "learned": learned,
    "logit_normal": logit_normal,
    "lognormal_sigma": lognormal_sigma,
}
"""name -> factory of a `TimeSampler`."""
