"""The weight of a squared error in the bound, eq. (13), (14)."""

from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.diffusion import Interval
from vdm_jax.parameterizations.base import Preconditioning
from vdm_jax.typing import Real, Reals, Scalar


class ErrorWeight(NamedTuple):
    """The factors of weight · ‖scale · error‖²; weight · scale² may leave the range of float32."""

    weight: Real
    scale: Reals


def bound_weight(interval: Interval, time_weight: Real, out: Real) -> ErrorWeight:
    """Return the weight of an error F − target in the bound: ½ time_weight e^{−γ_t} out², eq. (13), (14).

    Args:
      interval: the interval (s, t) of the prediction.
      time_weight: T expm1(Δ) for a chain of T steps, γ'(t) in continuous time.
      out: the `out` of the parameterization in which the error is measured; 1 for an error of x_0.
    """
    return ErrorWeight(0.5 * time_weight, jnp.exp(-0.5 * interval.gamma_t) * out)


def exact_weight(
    interval: Interval, preconditioning: Preconditioning, time_weight: Real | None = None
) -> Scalar:
    """Return the weight of ‖F − target‖² in the bound, eq. (13): ½ e^{−γ_t} expm1(Δ) out².

    Args:
      interval, preconditioning: the interval (s, t), and the coefficients of F on it.
      time_weight: as in `bound_weight`; by default expm1(Δ), that of one matching term.

    Examples:
      >>> from vdm_jax.parameterizations import exact_weight
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> print(f"{exact_weight(interval, vdm.parameterizations.eps()(interval)):.3f}")  # ½ expm1(Δ)
      3.195
    """
    time_weight = jnp.expm1(interval.delta) if time_weight is None else time_weight
    weight, scale = bound_weight(interval, time_weight, preconditioning.out)
    return weight * jnp.square(scale)
