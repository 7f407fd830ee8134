"""Effective weights of a training loss: the loss as a weighted error of x_0, of ε and of v.

A loss is E_t[w ‖F_S − y_S‖²] in some space S (docs/equations.md §4). Because ‖F_S − y_S‖² = ‖x_0 − x̂_0‖²/out_S²
in every space, the loss is also a weighted error in any other space. As an integral over the log-SNR λ = −γ it
does not depend on how the schedule distributes t:

    loss = ∫ ω_S(λ) E‖F_S − y_S‖² dλ,   ω_eps = ½ r(λ) expm1(Δ)/Δ,   ω_x0 = e^λ ω_eps,   ω_v = α² ω_eps

where r is the weight in units of the bound's weight. For the bound in continuous time ω_eps = ½ everywhere.
One curve per loss is therefore enough to compare losses that are written in different spaces (Kingma & Gao
2023). For a chain of T steps, the integral is the sum over the steps, with their Δ as dλ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, check_real, check_times, is_traced
from vdm_jax.diffusion import log_alpha
from vdm_jax.elbo import check_timesteps, training_interval
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build
from vdm_jax.typing import Array, Numbers, Params, Reals, Spec
from vdm_jax.weightings import Weighting, build_weighting, exact_or_zero, is_blind

LEVELS = 201  # noise levels of a curve
HALVINGS = 64  # bisection steps, enough to find times near 0 to the spacing of floats


class EffectiveWeights(NamedTuple):
    """The effective weights of one training loss at n noise levels.

    Attributes:
      log_snr: [n], decreasing with the times; for a step of a chain, that of its noisier end.
      per_time: [n], the weight w of the squared error in `loss_space`, with t uniform.
      x0, eps, v: [n], the weight ω of the squared error in that space per unit of log-SNR. Where the schedule
        is flat, a loss that still counts its draws, such as `simple`, has no such weight; these fields are then
        0, and only `per_time` has its weight.
      relative: [n], the weight in units of the bound's weight, which is equal in every space.
    """

    log_snr: Reals
    per_time: Reals
    x0: Reals
    eps: Reals
    v: Reals
    relative: Reals


def effective_weights(
    parameterization: Spec | Parameterization = "eps",
    weighting: Spec | Weighting | Callable[..., Any] = "elbo",
    *,
    loss_space: Spec | Parameterization | None = None,
    schedule: Spec | Schedule = "linear",
    schedule_params: Params = None,
    timesteps: int | None = None,
    times: Numbers | None = None,
) -> EffectiveWeights:
    """Compute the weights of a training loss in x_0-, ε- and v-space over the log-SNR.

    Args:
      parameterization: of the network's output: a `Parameterization`, or a name or spec of `PARAMETERIZATIONS`.
      weighting: a `Weighting`, a function (log_snr, exact) -> weight, or a name or spec of `WEIGHTINGS`.
      loss_space: the parameterization in which `simple`, or a function as the weighting, measures the error,
        and the space of `per_time`; that of the network's output if None.
      schedule: a `Schedule`, or a name or spec of `SCHEDULES`.
      schedule_params: params of a learned schedule.
      timesteps: T ≥ 1, or None for continuous time.
      times: [n] in [0, 1], or whole numbers i < T for steps of a chain. By default 201 noise levels, evenly
        spaced in log-SNR between the schedule's ends; for a shorter chain, all of its steps.

    Raises:
      ValueError: an unknown name, `mean` in continuous time, a learned schedule without its params, a single
        time, or times or steps out of range.

    Examples:
      >>> import vdm_jax as vdm
      >>> weights = vdm.effective_weights("v", "elbo", times=[0.1, 0.9])
      >>> weights.eps.round(3).tolist()  # the bound, for every parameterization
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

    def weights_at(t):
        interval, time_weight = training_interval(schedule, schedule_params, t, timesteps)
        error_space = weighting.error_space(loss_space)
        exact = exact_or_zero(interval, time_weight, error_space)
        # where both weights are 0, as for `elbo` and `sigmoid` on a flat stretch, the slope is their ratio
        weight, slope = jax.jvp(
            lambda exact: weighting(-interval.gamma_t, exact), (exact,), (jnp.ones_like(exact),)
        )
        is_flat = exact == 0
        # an error in a blind loss space carries no information about the error that is weighted
        unweighted = (weight == 0) | is_blind(interval, loss_space, error_space)
        ratio = weight / jnp.where(is_flat, 1, exact)
        relative = jnp.where(is_flat, jnp.where(weight == 0, slope, 0), ratio)
        # expm1(Δ)/Δ, and its limit 1 for Δ = 0
        delta = interval.delta
        growth = jnp.where(delta > 0, jnp.expm1(delta) / jnp.where(delta > 0, delta, 1), 1.0)
        eps = 0.5 * relative * growth
        # ‖F_S − y_S‖² of the error space in units of that of the loss space
        unit = jnp.square(loss_space(interval).out / error_space(interval).out)
        return EffectiveWeights(
            log_snr=-interval.gamma_t,
            per_time=jnp.where(unweighted, 0, weight * unit),
            x0=jnp.exp(-interval.gamma_t) * eps,
            eps=eps,
            v=jnp.exp(2 * log_alpha(interval.gamma_t)) * eps,
            relative=relative,
        )

    return jax.vmap(weights_at)(times)


def _checked_times(times: Numbers, timesteps: int | None) -> Array:
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
        # NumPy, because jnp's minimum of a known array is traced inside a traced function
        steps = np.asarray(times)
        if steps.min() < 0 or steps.max() >= timesteps:
            raise ValueError(f"times: expected steps in 0..{timesteps - 1}, found {steps.tolist()}")
    return jnp.asarray(times)


def _even_times(schedule: Schedule, params: Params, timesteps: int | None) -> Array:
    """Return times, or steps of a chain, with evenly spaced log-SNR, so that a curve over it has no gaps."""
    if timesteps is not None and timesteps <= LEVELS:
        return jnp.arange(timesteps)
    first, last = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
    gammas = first + (last - first) * jnp.linspace(0.0, 1.0, LEVELS)

    # bisection, because a schedule has no inverse but does not decrease
    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        is_below = schedule.gamma(params, middle) < gammas
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    bracket = jnp.zeros_like(gammas), jnp.ones_like(gammas)
    _, times = jax.lax.fori_loop(0, HALVINGS, halve, bracket)
    if timesteps is None:
        return times
    # the step whose noisier end is nearest, as `log_snr` is that of this end
    return jnp.clip(jnp.round(times * timesteps).astype(jnp.int32) - 1, 0, timesteps - 1)
