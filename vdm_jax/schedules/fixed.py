"""Fixed noise schedules, which have no params.

Sources: Kingma et al. 2021 (linear), Nichol & Dhariwal 2021 and Kingma & Gao 2023 (cosine), Jabri et al. 2022
(sigmoid), Ho et al. 2020 (betas), Lin et al. 2023 (zero terminal SNR).
"""

import math

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import real_number
from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    MAX_GAMMA,
    NO_SIGNAL,
    Schedule,
    as_time,
    check_ends,
    sigmoid_difference,
)
from vdm_jax.typing import Array, Int, Key, Numbers, Params, Reals


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


def from_betas(*, betas: Numbers) -> Schedule:
    """Return the schedule of a DDPM chain: γ(i/(T−1)) is that of Π_{j≤i}(1 − betas[j]), with γ linear between.

    A chain of T latents is T − 1 matching terms, eq. (8): use `timesteps = len(betas) - 1`.

    The last β may be 1, as in betas rescaled to zero terminal SNR (Lin et al. 2023). Then γ(1) = 60 stands for
    SNR = 0. Up to rounding, this is exact for parameterizations that do not divide by α ("x0", "v", "mean");
    the others raise an error.

    Args:
      betas: [T ≥ 2], the per-step noise variances, each in (0, 1), the last in (0, 1].

    Raises:
      ValueError: `betas` has another shape or a value outside (0, 1), or the SNR of the chain leaves the range
        of float32.

    Examples:
      >>> schedule = vdm.schedules.from_betas(betas=np.linspace(1e-4, 0.02, 1000))
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 1.0]))).round(3))
      [-9.21  10.118]
    """
    betas = np.asarray(betas, np.float64)
    knots, no_signal = _gamma_of_betas(betas)
    check_ends(knots[0], knots[-1])
    cells = betas.size - 1
    slopes = np.diff(knots) * cells
    # each knot is a sum of two float32 numbers, so that float32 differences from it are exact to the last bit
    times, gammas = _split(np.arange(betas.size) / cells), _split(knots)

    def since(t, i):  # t − (time of knot i)
        high, low = (_take(half, i, t) for half in times)
        return (t - high) - low

    def locate(t):  # the cell of t; `searchsorted` sees rounded times, which may be off by one cell
        cell = jnp.searchsorted(jnp.asarray(times[0], t.dtype), t, side="right") - 1
        return jnp.clip(jnp.where(since(t, cell) < 0, cell - 1, cell), 0, cells - 1)

    def gamma(params, t):
        del params
        t = as_time(t)
        cell = locate(t)
        return _take(knots, cell, t) + _take(slopes, cell, t) * since(t, cell)

    def delta(params, s, t):
        del params
        s, t = as_time(s, "s"), as_time(t)
        cell_s, cell_t = locate(s), locate(t)
        slope_s, slope_t = _take(slopes, cell_s, s), _take(slopes, cell_t, t)
        # from s to the next knot, from there to the last knot before t, and on to t
        high, low = (_take(half, cell_t, t) - _take(half, cell_s + 1, t) for half in gammas)
        ends = slope_t * since(t, cell_t) - slope_s * since(s, cell_s + 1)
        return jnp.where(cell_s == cell_t, slope_s * (t - s), high + (low + ends))

    return Schedule(no_params, gamma, delta, no_signal=no_signal)


def _gamma_of_betas(betas: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return γ of each latent of a DDPM chain, [T], and True if the chain ends in SNR = 0."""
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"betas: expected a vector of at least 2, found shape {betas.shape}")
    no_signal = bool(betas[-1] == 1)
    allowed = (betas > 0) & (betas < 1)
    allowed[-1] |= no_signal
    if not np.all(allowed):
        bad = int(np.argmax(~allowed))
        raise ValueError(
            f"betas[{bad}]: expected a number in (0, 1), or 1 for the last, found {betas[bad]}"
        )
    # γ = log((1 − ᾱ)/ᾱ) from log ᾱ: a product of numbers close to 1 would lose 1 − ᾱ
    log_alpha_bar = np.cumsum(np.log1p(-betas[:-1] if no_signal else -betas))
    gamma = np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar
    if no_signal:
        if gamma[-1] >= NO_SIGNAL:
            raise ValueError(
                f"betas: the signal is lost before the last step, log SNR = {-gamma[-1]:.1f}; "
                "shorten the chain"
            )
        gamma = np.append(gamma, NO_SIGNAL)
    if not gamma[0] < gamma[-1]:
        raise ValueError("betas: the SNR does not fall after the first step, up to rounding")
    return gamma, no_signal


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


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float64 numbers into the nearest float32 numbers and the remainders."""
    high = table.astype(np.float32).astype(np.float64)
    return high, table - high


def _take(table: np.ndarray, index: Int[Array, "..."], t: Reals) -> Reals:
    """Return entries of a table in the type of the times `t`."""
    return jnp.asarray(table, t.dtype)[index]
