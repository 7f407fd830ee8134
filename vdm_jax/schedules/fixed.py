"""Fixed noise schedules, which have no params.

Sources: Kingma et al. 2021 (linear), Nichol & Dhariwal 2021 and Kingma & Gao 2023 (cosine), Jabri et al. 2022
(sigmoid), Liu et al. 2023 (rectified).
"""

import math

import jax.numpy as jnp

from vdm_jax.checks import real_number
from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    MAX_GAMMA,
    Schedule,
    as_time,
    check_ends,
    sigmoid_difference,
)
from vdm_jax.typing import Key, Params


def linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """Return the schedule with γ linear in t.

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32.

    Examples:
      >>> schedule = vdm.schedules.linear(gamma_min=-6.0, gamma_max=4.0)
      >>> print(schedule.gamma(None, jnp.asarray([0.0, 0.5, 1.0])))
      [-6. -1.  4.]
    """
    check_ends(gamma_min, gamma_max)

    def gamma(params, t):
        del params
        t = as_time(t)
        return gamma_min * (1 - t) + gamma_max * t

    def delta(params, s, t):
        del params
        return (gamma_max - gamma_min) * (as_time(t) - as_time(s, "s"))

    return Schedule(no_params, gamma, delta)


def cosine(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """Return the schedule α = cos(angle) with an angle linear in t, truncated to the given end points.

    γ = 2 log tan(angle). Both the angle and its complement are interpolated, so that neither end cancels.

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32.

    Examples:
      >>> schedule = vdm.schedules.cosine(gamma_min=-10.0, gamma_max=10.0)
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 0.25, 1.0]))).round(3))
      [-10.     -1.744  10.   ]
    """
    check_ends(gamma_min, gamma_max)
    first = math.atan(math.exp(gamma_min / 2))
    last = math.atan(math.exp(-gamma_max / 2))  # π/2 − the angle at t = 1, without cancellation
    length = math.pi / 2 - first - last

    def sin_angle(t):
        return jnp.sin(first + length * t)

    def cos_angle(t):
        return jnp.sin(last + length * (1 - t))

    def gamma(params, t):
        del params
        t = as_time(t)
        return 2 * (jnp.log(sin_angle(t)) - jnp.log(cos_angle(t)))

    def delta(params, s, t):
        del params
        s, t = as_time(s, "s"), as_time(t)
        # the addition formula for tan(angle(t)) / tan(angle(s)), docs/equations.md §7
        return 2 * jnp.log1p(jnp.sin(length * (t - s)) / (cos_angle(t) * sin_angle(s)))

    return Schedule(no_params, gamma, delta)


def sigmoid(
    *,
    gamma_min: float = GAMMA_MIN,
    gamma_max: float = GAMMA_MAX,
    start: float = -3.0,
    end: float = 3.0,
) -> Schedule:
    """Return the schedule with σ² an affine function of the logistic curve, with exact end points.

    Args:
      gamma_min, gamma_max: γ(0) and γ(1).
      start, end: the range of the logistic curve, in [−80, 80]; σ² becomes linear in t as the range shrinks.

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32;
        `start` or `end` is beyond ±80, or `start` is not below `end`.
    """
    check_ends(gamma_min, gamma_max)
    for name, value in (("start", start), ("end", end)):
        expected = f"a number in [-{MAX_GAMMA}, {MAX_GAMMA}]"
        real_number(value, name, expected, lambda value: abs(value) <= MAX_GAMMA)
    if not start < end:
        raise ValueError(f"start: expected less than end = {end}, found {start}")
    var_first, var_last = expit(gamma_min), expit(gamma_max)
    span, total = expit_difference(gamma_min, gamma_max), expit_difference(start, end)

    def progress(s, t):  # logistic(t) − logistic(s), as a fraction of the rise from start to end
        low, high = start + (end - start) * s, start + (end - start) * t
        return sigmoid_difference(low, high, (end - start) * (t - s)) / total

    def variances(t):  # σ² and α², each a sum of positive terms
        past, left = progress(jnp.zeros_like(t), t), progress(t, jnp.ones_like(t))
        noise = var_first * left + var_last * past
        return noise, expit(-gamma_min) * left + expit(-gamma_max) * past

    def gamma(params, t):
        del params
        noise, signal = variances(as_time(t))
        return jnp.log(noise) - jnp.log(signal)

    def delta(params, s, t):
        del params
        s, t = as_time(s, "s"), as_time(t)
        # Δ = log1p((σ_t² − σ_s²)/(α_t² σ_s²)), docs/equations.md §7
        numerator, noise = span * progress(s, t) / variances(t)[1], variances(s)[0]
        # a larger quotient may leave the range of float32; the 1 in log1p is then lost to rounding anyway
        is_in_range = numerator < 1e30 * noise
        exact = jnp.log1p(numerator / jnp.where(is_in_range, noise, 1.0))
        large = jnp.log(jnp.where(is_in_range, 1.0, numerator)) - jnp.log(noise)
        return jnp.where(is_in_range, exact, large)

    return Schedule(no_params, gamma, delta)


def rectified(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """Return the schedule of the straight path of flow matching, σ/(α + σ) linear in t, with exact end points.

    γ = 2 log(τ/(1 − τ)) with τ = σ/(α + σ), eq. (33) (Liu et al. 2023, Lipman et al. 2023).

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32.

    Examples:
      >>> schedule = vdm.schedules.rectified(gamma_min=-10.0, gamma_max=10.0)
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 0.25, 1.0]))).round(3))
      [-10.     -2.162  10.   ]
    """
    check_ends(gamma_min, gamma_max)
    # both τ and 1 − τ are interpolated, so that neither end cancels
    first, last = expit(gamma_min / 2), expit(-gamma_max / 2)
    length = expit_difference(gamma_min / 2, gamma_max / 2)

    def noise(t):  # τ
        return first + length * t

    def signal(t):  # 1 − τ
        return last + length * (1 - t)

    def gamma(params, t):
        del params
        t = as_time(t)
        return 2 * jnp.log(noise(t) / signal(t))

    def delta(params, s, t):
        del params
        s, t = as_time(s, "s"), as_time(t)
        # τ_t (1 − τ_s) / (τ_s (1 − τ_t)) = 1 + (τ_t − τ_s) / (τ_s (1 − τ_t))
        return 2 * jnp.log1p(length * (t - s) / (noise(s) * signal(t)))

    return Schedule(no_params, gamma, delta)


def no_params(key: Key | None = None) -> Params:
    """Return the empty params of a fixed schedule."""
    del key
    return {}


def expit(x: float) -> float:
    """Return the logistic function of a Python float, in float64."""
    return 1 / (1 + math.exp(-x))


def expit_difference(low: float, high: float) -> float:
    """Return expit(high) − expit(low) in float64, without the cancellation at large values."""
    return expit(high) * expit(-low) * -math.expm1(low - high)
