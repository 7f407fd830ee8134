"""Effective weights of a training loss: the loss as a weighted error of x_0, of ε and of v.

A loss is E_t[w ‖F_S − y_S‖²] in some space S (docs/equations.md §4). As every ‖F_S − y_S‖² is ‖x_0 − x̂_0‖²
over out_S², it is a weighted error in any other space too, and as an integral over the log-SNR λ = −γ it does
not depend on how the schedule spreads t:

    loss = ∫ ω_S(λ) E‖F_S − y_S‖² dλ,   ω_eps = ½ r(λ) expm1(Δ)/Δ,   ω_x0 = e^λ ω_eps,   ω_v = α² ω_eps

where r is the weight in units of the bound's own. Of the bound in continuous time ω_eps = ½ everywhere, so that
two losses are compared by one curve each, whatever space they were written in (Kingma & Gao 2023). Of a chain
of T steps the integral is the sum over its steps, dλ their Δ.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, check_real, check_times, is_traced
from vdm_jax.diffusion import Interval, log_alpha
from vdm_jax.elbo import check_timesteps, training_interval
from vdm_jax.parameterizations import (
    PARAMETERIZATIONS,
    ErrorWeight,
    Parameterization,
    exact_weight,
)
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build
from vdm_jax.typing import Array, Bool, Params, Reals, Scalar
from vdm_jax.weightings import Weighting, build_weighting

LEVELS = 201  # noise levels of a curve
HALVINGS = 64  # times near 0 are told apart as finely as floats are


class EffectiveWeights(NamedTuple):
    """Effective weights of one training loss, at n noise levels.

    Attributes:
      log_snr: [n], falling with the times; of a step of a chain, that of its noisier end.
      per_time: [n], the weight w of the squared error in `loss_space`, with t uniform.
      x0, eps, v: [n], the weight ω of the squared error in that space per unit of log-SNR. Where the schedule
        is flat, a loss that still counts its draws, such as `simple`, has no such weight: 0, and `per_time` is
        its weight.
      relative: [n], in units of the bound's: the same number in every space.
    """

    log_snr: Reals
    per_time: Reals
    x0: Reals
    eps: Reals
    v: Reals
    relative: Reals


def training_weight(
    interval: Interval,
    time_weight: Scalar,
    parameterization: Parameterization,
    loss_space: Parameterization,
    weighting: Weighting,
) -> ErrorWeight:
    """Return the weight of the error x_0 − x̂_0 in a training loss, see `elbo.weighted_square`.

    Weight and scale are products: a ratio to the bound's own weight would be 0/0 where a schedule is flat.

    Args:
      interval, time_weight: of `training_interval`.
      parameterization: what the network outputs.
      loss_space: of the model; the weighting decides whether the loss depends on it.
      weighting: of `WEIGHTINGS`, built.
    """
    error_space = weighting.error_space(loss_space)
    weight = weighting(-interval.gamma_t, _exact_weight(interval, time_weight, error_space))
    blind = is_blind(interval, parameterization, error_space)
    return ErrorWeight(jnp.where(blind, 0, weight), 1 / error_space(interval).out)


def _exact_weight(interval: Interval, time_weight: Scalar, error_space: Parameterization) -> Scalar:
    """Return the weight of a squared error of a space in the bound; 0 where a schedule is flat."""
    weight = exact_weight(interval, error_space(interval), time_weight)
    return jnp.where(time_weight == 0, 0, weight)


def is_blind(
    interval: Interval, parameterization: Parameterization, error_space: Parameterization
) -> Bool[Array, ""]:
    """Return True if an output carries no information about the error in a space.

    Among the rows of the table, only `mean` is blind, and only where the schedule is flat: its target is then
    x_t for every x_0, so that an error of x_0 would be its error times 1/Δ. The error of `mean` is finite.
    """

    def magnification(interval):
        return jnp.abs(parameterization(interval).out / error_space(interval).out)

    usual = magnification(interval._replace(delta=jnp.ones_like(interval.delta)))
    return (interval.delta == 0) & (magnification(interval) > 1e3 * usual)


def effective_weights(
    parameterization: Any = "eps",
    weighting: Any = "elbo",
    *,
    loss_space: Any = None,
    schedule: Any = "linear",
    schedule_params: Params = None,
    timesteps: int | None = None,
    times: Any = None,
) -> EffectiveWeights:
    """Weights of a training loss in x_0-, ε- and v-space over the log-SNR.

    Args:
      parameterization: what the network outputs, of `PARAMETERIZATIONS`.
      weighting: of the squared error, of `WEIGHTINGS`.
      loss_space: the space in which `simple`, or a function as the weighting, measures the error, and the space
        of `per_time`; the parameterization's if None.
      schedule: of `SCHEDULES`; the one that training draws its times by.
      schedule_params: of a learned one.
      timesteps: T ≥ 1, or None for continuous time.
      times: [n] in [0, 1], or whole numbers i < T of the steps of a chain. By default those of 201 noise
        levels, evenly spaced in log-SNR between the schedule's ends; of a shorter chain, all of its steps.

    Raises:
      ValueError: unknown names, `mean` in continuous time, a learned schedule without its params, a single
        time, times or steps out of range.

    Examples:
      >>> import vdm_jax as vdm
      >>> found = vdm.effective_weights("v", "elbo", times=[0.1, 0.9])
      >>> found.eps.round(3).tolist()  # the bound, whatever the parameterization
      [0.5, 0.5]
    """
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    if loss_space is None:
        loss_space = parameterization
    loss_space = build(PARAMETERIZATIONS, loss_space, "loss_space")
    weighting = build_weighting(weighting)
    schedule = build(SCHEDULES, schedule, "schedule")
    check_timesteps(timesteps, parameterization)
    check_timesteps(timesteps, loss_space, "loss_space")
    check_schedule_params(schedule, schedule_params)
    if times is None:
        times = _even_times(schedule, schedule_params, timesteps)
    times = _checked_times(times, timesteps)

    def at(t):
        interval, time_weight = training_interval(schedule, schedule_params, t, timesteps)
        error_space = weighting.error_space(loss_space)
        exact = _exact_weight(interval, time_weight, error_space)
        # where both are 0, as of `elbo` and `sigmoid` in a flat stretch, the slope is their ratio
        weight, slope = jax.jvp(
            lambda exact: weighting(-interval.gamma_t, exact), (exact,), (jnp.ones_like(exact),)
        )
        flat = exact == 0
        unweighted = (weight == 0) | is_blind(interval, parameterization, error_space)
        ratio = weight / jnp.where(flat, 1, exact)
        relative = jnp.where(flat, jnp.where(weight == 0, slope, 0), ratio)
        # expm1(Δ)/Δ, its limit where there is no interval
        delta = interval.delta
        chain = jnp.where(delta > 0, jnp.expm1(delta) / jnp.where(delta > 0, delta, 1), 1.0)
        eps = 0.5 * relative * chain
        units = jnp.square(loss_space(interval).out / error_space(interval).out)
        return EffectiveWeights(
            log_snr=-interval.gamma_t,
            per_time=jnp.where(unweighted, 0, weight * units),
            x0=jnp.exp(-interval.gamma_t) * eps,
            eps=eps,
            v=jnp.exp(2 * log_alpha(interval.gamma_t)) * eps,
            relative=relative,
        )

    return jax.vmap(at)(times)


def _checked_times(times: Any, timesteps: int | None) -> Array:
    """Return times [n] in [0, 1], or steps of a chain, as an array."""
    check_array(times, "times")
    if not isinstance(times, jax.Array):
        times = np.asarray(times)
    check_real(times, "times")
    if times.ndim != 1 or not times.size:
        raise ValueError(f"times: expected a list of them, found shape {times.shape}")
    if timesteps is None or not jnp.issubdtype(times.dtype, jnp.integer):
        check_times(times, "times")
    elif not is_traced(times):
        steps = np.asarray(times)  # known even inside a traced function, where jnp's minimum is not
        if steps.min() < 0 or steps.max() >= timesteps:
            raise ValueError(f"times: expected steps in 0..{timesteps - 1}, found {steps.tolist()}")
    return jnp.asarray(times)


def _even_times(schedule: Schedule, params: Params, timesteps: int | None) -> Array:
    """Return times, or steps of a chain, whose log-SNR is evenly spaced: a curve over it has no gaps."""
    if timesteps is not None and timesteps <= LEVELS:
        return jnp.arange(timesteps)
    first, last = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
    wanted = first + (last - first) * jnp.linspace(0.0, 1.0, LEVELS)

    def halve(_, between):
        low, high = between
        middle = 0.5 * (low + high)
        below = schedule.gamma(params, middle) < wanted
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jnp.zeros_like(wanted), jnp.ones_like(wanted)
    _, times = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    if timesteps is None:
        return times
    # the step that ends nearest
    return jnp.clip(jnp.round(times * timesteps).astype(jnp.int32) - 1, 0, timesteps - 1)
