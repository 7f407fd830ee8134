"""Fixed noise schedules, whose params are empty.

Sources: Kingma et al. 2021 (linear), Nichol & Dhariwal 2021 and Kingma & Gao 2023 (cosine), Jabri et al. 2022
(sigmoid), Ho et al. 2020 (betas), Lin et al. 2023 (zero terminal SNR).
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import (
    real_number,
)
from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    NO_SIGNAL,
    Schedule,
    as_time,
    check_ends,
    sigmoid_difference,
)
from vdm_jax.typing import Reals


def linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """γ linear in t.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.

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
    """α = cos(angle) with the angle linear in t, cut so that the end points are exact.

    γ = 2 log tan(angle); both the angle and its complement are interpolated, so that neither end cancels.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.

    Examples:
      >>> schedule = vdm.schedules.cosine(gamma_min=-10.0, gamma_max=10.0)
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 0.25, 1.0]))).round(3))
      [-10.     -1.744  10.   ]
    """
    check_ends(gamma_min, gamma_max)
    first = math.atan(math.exp(gamma_min / 2))
    last = math.atan(math.exp(-gamma_max / 2))  # complement of the angle at t = 1
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
        return 2 * jnp.log1p(jnp.sin(length * (t - s)) / (cos_angle(t) * sin_angle(s)))

    return Schedule(no_params, gamma, delta)


def sigmoid(
    *,
    gamma_min: float = GAMMA_MIN,
    gamma_max: float = GAMMA_MAX,
    start: float = -3.0,
    end: float = 3.0,
) -> Schedule:
    """σ² an affine function of the logistic curve on [start, end], with exact end points.

    Args:
      gamma_min, gamma_max: the ends.
      start, end: the part of the logistic curve that is followed; as they meet, σ² becomes linear in t.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR; start not
        below end.
    """
    check_ends(gamma_min, gamma_max)
    for name, value in (("start", start), ("end", end)):
        real_number(value, name)
    if not start < end:
        raise ValueError(f"start: expected less than end = {end}, found {start}")
    var_first, var_last = expit(gamma_min), expit(gamma_max)
    span = expit(gamma_max) - expit(gamma_min)
    total = expit(end) - expit(start)

    def progress(s, t):  # logistic(t) − logistic(s), as a part of the whole curve
        low, high = start + (end - start) * s, start + (end - start) * t
        return sigmoid_difference(low, high, (end - start) * (t - s)) / total

    def variances(t):  # σ² and α², each a sum of positive terms
        p, q = progress(jnp.zeros_like(t), t), progress(t, jnp.ones_like(t))
        return var_first * q + var_last * p, expit(-gamma_min) * q + expit(-gamma_max) * p

    def gamma(params, t):
        del params
        noise, signal = variances(as_time(t))
        return jnp.log(noise) - jnp.log(signal)

    def delta(params, s, t):
        del params
        s, t = as_time(s, "s"), as_time(t)
        more, noise = span * progress(s, t) / variances(t)[1], variances(s)[0]
        fits = more < 1e30 * noise  # the quotient in float32; else the 1 is lost beside it
        exact = jnp.log1p(more / jnp.where(fits, noise, 1.0))
        return jnp.where(fits, exact, jnp.log(jnp.where(fits, 1.0, more)) - jnp.log(noise))

    return Schedule(no_params, gamma, delta)


def from_betas(*, betas: Any) -> Schedule:
    """The schedule of a DDPM chain: γ(i/(T−1)) is that of ᾱ_{i+1} = Π_{j≤i}(1 − β_j), linear between.

    A chain of T latents is T − 1 matching terms, eq. (8): use `timesteps = len(betas) - 1`.

    The last β may be 1, as in betas rescaled to zero terminal SNR (Lin et al. 2023). Then γ(1) = 60 stands for
    SNR = 0, which is exact to rounding for parameterizations that do not divide by α ("x0", "v", "mean"); the
    others are refused.

    Args:
      betas: [T ≥ 2], the per-step noise variances, each in (0, 1), the last in (0, 1].

    Raises:
      ValueError: another shape, a value outside (0, 1), or a chain that ends in more noise than float32 holds.

    Examples:
      >>> schedule = vdm.schedules.from_betas(betas=np.linspace(1e-4, 0.02, 1000))
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 1.0]))).round(3))
      [-9.21  10.118]
    """
    betas = np.asarray(betas, np.float64)
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
    log_signal = np.cumsum(np.log1p(-betas[:-1] if no_signal else -betas))
    knots = np.log(-np.expm1(log_signal)) - log_signal
    if no_signal:
        if knots[-1] >= NO_SIGNAL:
            raise ValueError(
                f"betas: the signal is lost before the last step, log SNR = {-knots[-1]:.1f}; "
                "shorten the chain"
            )
        knots = np.append(knots, NO_SIGNAL)
    check_ends(knots[0], knots[-1])
    cells = betas.size - 1
    slopes = np.diff(knots) * cells
    # each knot as a sum of two floats, so that float32 differences from it are exact to the last bit
    times, values = _split(np.arange(betas.size) / cells), _split(knots)

    def since(t, i):  # t − (time of knot i)
        high, low = (_take(part, i, t) for part in times)
        return (t - high) - low

    def locate(t):
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
        i, j = locate(s), locate(t)
        first, last = _take(slopes, i, s), _take(slopes, j, t)
        high, low = (_take(part, j, t) - _take(part, i + 1, t) for part in values)
        ends = last * since(t, j) - first * since(s, i + 1)
        return jnp.where(i == j, first * (t - s), high + (low + ends))

    return Schedule(no_params, gamma, delta, no_signal=no_signal)


def no_params(key=None):
    del key
    return {}


def expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest float32 numbers and what they lack."""
    high = table.astype(np.float32).astype(np.float64)
    return high, table - high


def _take(table: np.ndarray, index, like) -> Reals:
    return jnp.asarray(table, like.dtype)[index]
