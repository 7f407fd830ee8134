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
      own: [n], the weight w of the squared error in the model's `space`, with t uniform.
      x0, eps, v: [n], the weight ω of the squared error in that space per unit of log-SNR. Where the schedule
        is flat, a loss that still counts its draws, such as `simple`, has no such weight: 0, and `own` says how
        much it counts.
      relative: [n], in units of the bound's: the same number in every space.
    """

    log_snr: Reals
    own: Reals
    x0: Reals
    eps: Reals
    v: Reals
    relative: Reals


def training_weight(
    step: Interval,
    time_weight: Scalar,
    row: Parameterization,
    space: Parameterization,
    weighting: Weighting,
) -> ErrorWeight:
    """Return the weight of the error x_0 − x̂_0 in a training loss, see `elbo.weighted_square`.

    Weight and scale are products: a ratio to the bound's own weight would be 0/0 where a schedule is flat.

    Args:
      step, time_weight: of `training_interval`.
      row: what the network outputs.
      space: of the model; the weighting decides whether the loss depends on it.
      weighting: of `WEIGHTINGS`, built.
    """
    written = weighting.space(space)
    weight = weighting(-step.gamma_t, _exact_weight(step, time_weight, written))
    return ErrorWeight(jnp.where(is_blind(step, row, written), 0, weight), 1 / written(step).out)


def _exact_weight(step: Interval, time_weight: Scalar, space: Parameterization) -> Scalar:
    """Return the weight of a squared error of a space in the bound; 0 where a schedule is flat."""
    return jnp.where(time_weight == 0, 0, exact_weight(step, space(step), time_weight))


def is_blind(step: Interval, row: Parameterization, space: Parameterization) -> Bool[Array, ""]:
    """Return whether an output says nothing of the error in a space.

    Of the table's rows only `mean` is so, where the schedule is flat: there it is x_t, whatever x_0 is, and an
    error of it would be one of x_0 times 1/Δ. Its own error is fine.
    """

    def magnified(step):
        return jnp.abs(row(step).out / space(step).out)

    usual = magnified(step._replace(delta=jnp.ones_like(step.delta)))
    return (step.delta == 0) & (magnified(step) > 1e3 * usual)


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
      space: in which `simple`, or a function as the weighting, takes its error, and the space of `own`; None is
        the parameterization's.
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
    own = build(PARAMETERIZATIONS, parameterization, "parameterization")
    space = own if space is None else build(PARAMETERIZATIONS, space, "space")
    weighting = build_weighting(weighting)
    schedule = build(SCHEDULES, schedule, "schedule")
    check_timesteps(timesteps, own)
    check_timesteps(timesteps, space, "space")
    check_schedule_params(schedule, schedule_params)
    if times is None:
        times = _even_times(schedule, schedule_params, timesteps)
    times = _checked_times(times, timesteps)

    def at(t):
        step, time_weight = training_interval(schedule, schedule_params, t, timesteps)
        written = weighting.space(space)
        exact = _exact_weight(step, time_weight, written)
        # the slope is the ratio of the two where both are 0, as of `elbo` and `sigmoid` in a flat stretch
        weight, slope = jax.jvp(
            lambda exact: weighting(-step.gamma_t, exact), (exact,), (jnp.ones_like(exact),)
        )
        flat, none = exact == 0, (weight == 0) | is_blind(step, space, written)
        relative = jnp.where(
            flat, jnp.where(weight == 0, slope, 0), weight / jnp.where(flat, 1, exact)
        )
        # expm1(Δ)/Δ, its limit where there is no interval
        chain = jnp.where(step.delta > 0, jnp.expm1(step.delta) / _positive(step.delta), 1.0)
        eps = 0.5 * relative * chain
        return EffectiveWeights(
            log_snr=-step.gamma_t,
            own=jnp.where(none, 0, weight * jnp.square(space(step).out / written(step).out)),
            x0=jnp.exp(-step.gamma_t) * eps,
            eps=eps,
            v=jnp.exp(2 * log_alpha(step.gamma_t)) * eps,
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


def _positive(delta: Scalar) -> Scalar:
    return jnp.where(delta > 0, delta, 1.0)
