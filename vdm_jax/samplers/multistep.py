"""DPM-Solver++: solvers that extrapolate earlier predictions of x_0, eq. (28), (29).

Both rows replace the prediction x̂_0 of a step by the mean D of a polynomial through the last predictions, in
half the log-SNR. With order 1, D = x̂_0.

    dpm_solver_pp        solves the probability flow with D, as `ddim` with x̂_0
    sde_dpm_solver_pp    draws from q(x_s | x_t, D), as `ancestral` with x̂_0

Source: Lu et al. 2022, DPM-Solver++, arXiv 2211.01095.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import real_number, whole_number
from vdm_jax.diffusion import Interval
from vdm_jax.samplers.ancestral import draw_posterior
from vdm_jax.samplers.base import Sampler
from vdm_jax.samplers.ddim import solve
from vdm_jax.samplers.heun import change_of_prediction
from vdm_jax.typing import Data, Key, Keys, Reals

MAX_ORDER = 3


class Memory(NamedTuple):
    """The last predictions of a multistep solver, the most recent one first.

    Attributes:
      predictions: x̂_0 of earlier steps, each of the shape of x_t.
      lengths: h of these steps, scalars; 0 for a step before the first.
    """

    predictions: tuple[Data, ...]
    lengths: tuple[Reals, ...]


def dpm_solver_pp(*, order: int = 2, max_step_ratio: float = 2.0) -> Sampler:
    """Return the multistep solver of the probability flow, eq. (28), without extrapolation on long steps.

    The first steps are of lower order. The chain ends with a prediction of the data from x_{t=0}, a step of
    order 1. The third order makes a second prediction in the first step, whose error would otherwise be of
    second order, and takes the exact mean of the quadratic polynomial; published code has half of its
    curvature, and is of order 2.

    Args:
      order: 1 (`ddim`), 2 or 3.
      max_step_ratio: a step that is more than this many times as long as the step before it is of lower order,
        because it would extrapolate too far; ∞ for the solver of Lu et al. 2022.

    Raises:
      ValueError: another order, or `max_step_ratio` is not positive.
    """

    def move(key, xt, x0_hat, interval):
        del key
        return solve(xt, x0_hat, interval)

    return _multistep(order, max_step_ratio, move, exponent=1)


def sde_dpm_solver_pp(*, order: int = 2, max_step_ratio: float = 2.0) -> Sampler:
    """Return the multistep solver that draws noise in each step, eq. (29).

    Args:
      order: number of predictions that a step uses: 1 (`ancestral`), 2 or 3. The error of the variance of
        draws is of order 1, 2 and 2.
      max_step_ratio: as in `dpm_solver_pp`.

    Raises:
      ValueError: as in `dpm_solver_pp`.
    """
    return _multistep(order, max_step_ratio, draw_posterior, exponent=2)


def _multistep(
    order: int,
    max_step_ratio: float,
    move: Callable[[Key | Keys | None, Data, Data, Interval], Data],
    exponent: int,
) -> Sampler:
    """Return the sampler that moves with extrapolated predictions.

    Args:
      order, max_step_ratio: as in `dpm_solver_pp`.
      move: as in `without_memory`.
      exponent: k of the density ∝ e^{khu} with which a step weighs the predictions at its positions u.
    """
    whole_number(order, "order", 1, MAX_ORDER)
    real_number(max_step_ratio, "max_step_ratio", "a number above 0", lambda value: value > 0)

    def init(x1):
        return Memory((jnp.zeros_like(x1),) * (order - 1), (jnp.zeros((), x1.dtype),) * (order - 1))

    def step(key, xt, interval, predict, memory):
        x0_hat, h = predict(xt, interval), 0.5 * interval.delta
        first = jnp.zeros_like(xt)
        if order == MAX_ORDER:
            first = jax.lax.cond(
                memory.lengths[0] > 0,
                lambda: first,
                lambda: 0.5 * change_of_prediction(xt, x0_hat, interval, predict),
            )
        correction = _correction(x0_hat, h, memory, max_step_ratio, exponent, first)
        kept = Memory((x0_hat, *memory.predictions), (h, *memory.lengths))
        memory = Memory(*(column[: order - 1] for column in kept))
        return move(key, xt, x0_hat + correction, interval), memory

    return Sampler(init, step)


def _correction(
    x0_hat: Data, h: Reals, memory: Memory, max_step_ratio: float, exponent: int, first: Data
) -> Data:
    """Return D − x̂_0, where D is the mean on a step of the polynomial through the last predictions.

    With the position u = 0 at the start of the step and 1 at its end, the earlier predictions were made at
    u = −r_1 and u = −r_1 − r_2. The mean has the density ∝ e^{khu} of the exact solution, with k the exponent.
    For order 2, (28) has the mean ½ of u for h → 0.

    Args:
      x0_hat: the prediction at the start of the step.
      h: the length of the step.
      memory: the earlier predictions.
      max_step_ratio, exponent: as in `_multistep`.
      first: D − x̂_0 of a step without earlier predictions.
    """
    if not memory.lengths:
        return first
    (last, *before), (length, *length_before) = memory
    known = (length > 0) & (h > 0) & jnp.isfinite(h) & (h <= max_step_ratio * length)
    r_1 = jnp.where(known, length, 1) / jnp.where(known, h, 1)
    slope = (x0_hat - last) / r_1
    second = jnp.where(known, 0.5 * slope, first)
    if not before:
        return second
    known_twice = known & (length_before[0] > 0) & (length <= max_step_ratio * length_before[0])
    r_2 = jnp.where(known_twice, length_before[0], 1) / jnp.where(known_twice, h, 1)
    # Newton's divided difference: x̂_0 + slope u + curvature u (u + r_1)
    curvature = (slope - (last - before[0]) / r_2) / (r_1 + r_2)
    mean, mean_square = _moments(exponent * jnp.where(known_twice, h, 1))
    third = mean * slope + (mean_square + r_1 * mean) * curvature
    return jnp.where(known_twice, third, second)


def _moments(h: Reals) -> tuple[Reals, Reals]:
    """Return E u and E u² under the density ∝ e^{hu} on [0, 1]."""
    is_small = h < 0.1
    far = jnp.where(is_small, 1, h)
    scale = -1 / jnp.expm1(-far)
    mean = scale - 1 / far
    mean_square = scale - 2 / far * mean
    # the first terms of the series in h, because the differences above cancel
    near = jnp.where(is_small, h, 0)
    near_mean = 1 / 2 + near / 12 - near**3 / 720 + near**5 / 30240
    near_square = 1 / 3 + near / 12 + near**2 / 360 - near**3 / 720 - near**4 / 15120
    return jnp.where(is_small, near_mean, mean), jnp.where(is_small, near_square, mean_square)
