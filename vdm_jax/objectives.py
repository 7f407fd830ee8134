"""What a training loss weighs: the same loss as a weighted error of x_0, of ε and of v.

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

from vdm_jax.diffusion import Interval, log_alpha
from vdm_jax.elbo import check_timesteps, training_interval
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, snr_weight
from vdm_jax.schedules import SCHEDULES, Schedule
from vdm_jax.specs import build
from vdm_jax.typing import Array, Params, Reals, Scalar
from vdm_jax.weightings import WEIGHTINGS, Weighting

LEVELS = 201  # noise levels of a curve
HALVINGS = 64  # times near 0 are told apart as finely as floats are


class EffectiveWeights(NamedTuple):
    """Of one training loss, at n noise levels.

    Attributes:
      log_snr: [n], falling with the times; of a step of a chain, that of its noisier end.
      own: [n], w of the space that the loss is written in, with t uniform: what the code multiplies.
      x0, eps, v: [n], the weight ω of the squared error in that space per unit of log-SNR.
      relative: [n], in units of the bound's: the same number in every space.
    """

    log_snr: Reals
    own: Reals
    x0: Reals
    eps: Reals
    v: Reals
    relative: Reals


def bound_weight(step: Interval, rate: Scalar, space: Parameterization) -> Scalar:
    """The weight of a squared error of `space` in the bound at a time of this `rate` (see `Probe`)."""
    return 0.5 * rate * snr_weight(step, space(step))


def relative_weight(
    step: Interval, rate: Scalar, space: Parameterization, weighting: Weighting
) -> Scalar:
    """The training weight of a squared error of `space`, in units of the bound's own."""
    exact = bound_weight(step, rate, space)
    return weighting(-step.gamma_t, exact) / exact


def effective_weights(
    parameterization: Any = "eps",
    weighting: Any = "elbo",
    *,
    space: Any = None,
    schedule: Any = "linear",
    schedule_params: Params = None,
    timesteps: int | None = None,
    times: Any = None,
) -> EffectiveWeights:
    """Weights of a training loss in x_0-, ε- and v-space over the log-SNR.

    Args:
      parameterization: what the network outputs, of `PARAMETERIZATIONS`.
      weighting: of the squared error, of `WEIGHTINGS`.
      space: in which that error is taken; None is the parameterization's.
      schedule: of `SCHEDULES`; the one that training draws its times by.
      schedule_params: of a learned one.
      timesteps: T ≥ 1, or None for continuous time.
      times: [n] in [0, 1], or whole numbers i < T of the steps of a chain. By default those of 201 noise
        levels, evenly spaced in log-SNR between the schedule's ends; of a shorter chain, all of its steps.

    Raises:
      ValueError: unknown names, `mean` in continuous time, a learned schedule without its params, a single
        time.

    Examples:
      >>> import vdm_jax as vdm
      >>> found = vdm.effective_weights("v", "elbo", times=[0.1, 0.9])
      >>> found.eps.round(3).tolist()  # the bound, whatever the parameterization
      [0.5, 0.5]
    """
    own = build(PARAMETERIZATIONS, parameterization, "parameterization")
    space = own if space is None else build(PARAMETERIZATIONS, space, "space")
    weighting = build(WEIGHTINGS, weighting, "weighting")
    schedule = build(SCHEDULES, schedule, "schedule")
    check_timesteps(timesteps, own)
    check_timesteps(timesteps, space, "space")
    if times is None:
        times = _even_times(schedule, schedule_params, timesteps)
    times = jnp.asarray(times)
    if times.ndim != 1:
        raise ValueError(f"times: expected a list of them, found shape {times.shape}")

    def at(t):
        step, rate = training_interval(schedule, schedule_params, t, timesteps)
        relative = relative_weight(step, rate, space, weighting)
        # expm1(Δ)/Δ, its limit where there is no interval
        chain = jnp.where(step.delta > 0, jnp.expm1(step.delta) / _positive(step.delta), 1.0)
        eps = 0.5 * relative * chain
        return EffectiveWeights(
            log_snr=-step.gamma_t,
            own=bound_weight(step, rate, space) * relative,
            x0=jnp.exp(-step.gamma_t) * eps,
            eps=eps,
            v=jnp.exp(2 * log_alpha(step.gamma_t)) * eps,
            relative=relative,
        )

    return jax.vmap(at)(times)


def _even_times(schedule: Schedule, params: Params, timesteps: int | None) -> Array:
    """Times, or steps of a chain, whose log-SNR is evenly spaced: a curve over it has no gaps."""
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


def _positive(delta: Scalar) -> Scalar:
    return jnp.where(delta > 0, delta, 1.0)
