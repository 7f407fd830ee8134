"""Noise schedules: γ(t) = −log SNR, which does not decrease on [0, 1], and its exact differences."""

from collections.abc import Callable

from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    Schedule,
    as_time,
    check_schedule_params,
    interval,
)
from vdm_jax.schedules.fixed import cosine, linear, rectified, sigmoid
from vdm_jax.schedules.knots import check_monotone, from_betas, linear_betas, piecewise_linear
from vdm_jax.schedules.learned import learned_linear, learned_monotone

__all__ = [
    "GAMMA_MAX",
    "GAMMA_MIN",
    "SCHEDULES",
    "Schedule",
    "as_time",
    "check_monotone",
    "check_schedule_params",
    "cosine",
    "from_betas",
    "interval",
    "learned_linear",
    "learned_monotone",
    "linear",
    "linear_betas",
    "piecewise_linear",
    "rectified",
    "sigmoid",
]


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "rectified": rectified,
    "linear_betas": linear_betas,
    "from_betas": from_betas,
    "piecewise_linear": piecewise_linear,
    "learned_linear": learned_linear,
    "learned_monotone": learned_monotone,
}
"""name -> factory of a `Schedule`; `from_betas` needs its `betas`, `piecewise_linear` its `gammas`."""
