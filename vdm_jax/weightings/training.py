"""The weight of the error of x_0 in a training loss, for any weighting and any space."""

import jax.numpy as jnp

from vdm_jax.diffusion import Interval
from vdm_jax.parameterizations import ErrorWeight, Parameterization, exact_weight
from vdm_jax.typing import Array, Bool, Scalar
from vdm_jax.weightings.base import Weighting


def training_weight(
    interval: Interval,
    time_weight: Scalar,
    parameterization: Parameterization,
    loss_space: Parameterization,
    weighting: Weighting,
) -> ErrorWeight:
    """Return the weight of the error x_0 − x̂_0 in a training loss, for `elbo.weighted_square`.

    Weight and scale are products: a ratio to the bound's weight would be 0/0 where a schedule is flat.

    Args:
      interval, time_weight: from `training_interval`.
      parameterization: of the network's output.
      loss_space: of the model; the weighting decides whether the loss depends on it.
      weighting: the `Weighting` of the loss.
    """
    error_space = weighting.error_space(loss_space)
    weight = weighting(-interval.gamma_t, exact_or_zero(interval, time_weight, error_space))
    blind = is_blind(interval, parameterization, error_space)
    return ErrorWeight(jnp.where(blind, 0, weight), 1 / error_space(interval).out)


def exact_or_zero(interval: Interval, time_weight: Scalar, error_space: Parameterization) -> Scalar:
    """Return the weight in the bound of a squared error in a space; 0 where the schedule is flat."""
    weight = exact_weight(interval, error_space(interval), time_weight)
    # where the schedule is flat, `out` of `mean` may overflow, and 0 · ∞ is NaN
    return jnp.where(time_weight == 0, 0, weight)


def is_blind(
    interval: Interval, parameterization: Parameterization, error_space: Parameterization
) -> Bool[Array, ""]:
    """Return True if an output carries no information about the error in a space.

    Among `PARAMETERIZATIONS` only `mean` is blind, and only where the schedule is flat: its target is then x_t
    for every x_0, and an error of x_0 would be that of `mean`, which is finite, times 1/Δ.
    """

    def magnification(interval):
        return jnp.abs(parameterization(interval).out / error_space(interval).out)

    # custom parameterizations have no flag for this: compare with the magnification at Δ = 1
    usual = magnification(interval._replace(delta=jnp.ones_like(interval.delta)))
    return (interval.delta == 0) & (magnification(interval) > 1e3 * usual)
