"""Schedules whose γ is given at knots, with γ linear between: the chains of DDPM, and lists of noise levels.

Sources: Ho et al. 2020 (betas), Lin et al. 2023 (zero terminal SNR).
"""

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import is_traced, real_number, whole_number
from vdm_jax.schedules.base import NO_SIGNAL, Schedule, as_time, check_ends
from vdm_jax.schedules.fixed import no_params
from vdm_jax.typing import Array, Int, Numbers, Reals


def from_betas(*, betas: Numbers) -> Schedule:
    """Return the schedule of a DDPM chain: γ(i/(T−1)) is that of Π_{j≤i}(1 − betas[j]), with γ linear between.

    A chain of T latents is T − 1 matching terms, eq. (8): use `timesteps = len(betas) - 1`.

    The last β may be 1, as in betas rescaled to zero terminal SNR (Lin et al. 2023). Then γ(1) = 60 stands for
    SNR = 0. Up to rounding, this is exact for parameterizations that do not divide by α; "eps" and "score"
    raise an error.

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
    knots, no_signal = _gamma_of_betas(np.asarray(betas, np.float64))
    return _through(knots)._replace(no_signal=no_signal)


def linear_betas(*, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """Return the schedule `from_betas` of betas that rise linearly, by default those of Ho et al. 2020.

    Args:
      steps: T ≥ 2, the number of betas; use `timesteps = steps - 1`.
      first, last: β_1 and β_T, in (0, 1).

    Raises:
      ValueError: an argument is out of range, or the SNR of the chain leaves the range of float32.

    Examples:
      >>> schedule = vdm.schedules.linear_betas()
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 1.0]))).round(3))
      [-9.21  10.118]
    """
    whole_number(steps, "steps", 2)
    for name, value in (("first", first), ("last", last)):
        real_number(value, name, "a number in (0, 1)", lambda value: 0 < value < 1)
    return from_betas(betas=np.linspace(first, last, steps))


def piecewise_linear(*, gammas: Numbers) -> Schedule:
    """Return the schedule through given noise levels at equidistant times, with γ linear between.

    Args:
      gammas: [n ≥ 2], rising.

    Raises:
      ValueError: `gammas` has another shape or does not rise, or an end is beyond ±80, where the SNR leaves the
        range of float32.

    Examples:
      >>> schedule = vdm.schedules.piecewise_linear(gammas=[-9.0, 0.0, 5.0])
      >>> print(schedule.gamma(None, jnp.asarray([0.0, 0.25, 0.5, 1.0])))
      [-9.  -4.5  0.   5. ]
    """
    return _through(check_monotone(gammas, "gammas", rising=True))


def check_monotone(values: Numbers, name: str, *, rising: bool) -> np.ndarray:
    """Return a vector of at least two numbers that rise or fall, in float64.

    Raises:
      ValueError: it is traced, has another shape, or has a number on the wrong side of the one before it.
    """
    if is_traced(values):
        raise ValueError(f"{name}: expected concrete numbers, found a traced array")
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"{name}: expected a vector of at least 2, found shape {values.shape}")
    moves = np.diff(values) > 0 if rising else np.diff(values) < 0  # False for NaN
    if not np.all(moves):
        i, kind = int(np.argmin(moves)), "rising" if rising else "decreasing"
        raise ValueError(
            f"{name}: expected {kind} numbers, found {values[i + 1]} after {values[i]}"
        )
    return values


def _through(knots: np.ndarray) -> Schedule:
    """Return the schedule through γ at equidistant times, [n], float64."""
    check_ends(knots[0], knots[-1])
    cells = knots.size - 1
    slopes = np.diff(knots) * cells
    # each knot is a sum of two float32 numbers, so that float32 differences from it are exact to the last bit
    times, gammas = _split(np.arange(knots.size) / cells), _split(knots)

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

    return Schedule(no_params, gamma, delta)


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


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float64 numbers into the nearest float32 numbers and the remainders."""
    high = table.astype(np.float32).astype(np.float64)
    return high, table - high


def _take(table: np.ndarray, index: Int[Array, "..."], t: Reals) -> Reals:
    """Return entries of a table in the type of the times `t`."""
    return jnp.asarray(table, t.dtype)[index]
