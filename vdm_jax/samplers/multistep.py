"""DPM-Solver++: solvers that extrapolate earlier predictions of x_0, eq. (28), (29).

Both rows replace the prediction x̂_0 of a step by the mean D of a polynomial through the last predictions, as
functions of half the log-SNR. With order 1, D = x̂_0.

    dpm_solver_pp        solves the probability flow with D, as `ddim` with x̂_0
    sde_dpm_solver_pp    draws from q(x_s | x_t, D), as `ancestral` with x̂_0

Source: Lu et al. 2022, DPM-Solver++, arXiv 2211.01095.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import real_number, whole_number
from vdm_jax.diffusion import Interval, posterior
from vdm_jax.samplers.base import Sampler, noise_like
from vdm_jax.samplers.ddim import solve
from vdm_jax.samplers.heun import change
from vdm_jax.typing import Data, Key, Keys, Reals

MAX_ORDER = 3


class Memory(NamedTuple):
    """The last predictions of a multistep solver, the most recent one first.

    Attributes:
      predictions: x̂_0 of earlier steps, each of the shape of x_t.
      steps: lengths h of these steps, scalars; 0 for a step before the first.
    """

    predictions: tuple[Data, ...]
    steps: tuple[Reals, ...]


def dpm_solver_pp(*, order: int = 2, longest_step: float = 2.0) -> Sampler:
    """Return the multistep solver of the probability flow, eq. (28) (Lu et al. 2022).

    The first steps are of lower order. The chain ends with a prediction of the data from x_{t=0}, a step of
    order 1. The third order makes a second prediction in the first step, whose error would otherwise be of
    second order, and takes the exact mean of the quadratic polynomial; published code has half of its
    curvature, and is of order 2.

    Args:
      order: 1 (`ddim`), 2 or 3.
      longest_step: a step that is more than this many times as long as the step before it is of lower order,
        because it would extrapolate too far; ∞ for the published solver.

    Raises:
      ValueError: another order, or `longest_step` is not positive.
    """
    return _multistep(
        order, longest_step, lambda key, xt, x0_hat, interval: solve(xt, x0_hat, interval)
    )


def sde_dpm_solver_pp(*, order: int = 2, longest_step: float = 2.0) -> Sampler:
    """Return the multistep solver that draws noise in each step, eq. (29) (Lu et al. 2022).

    Args:
      order, longest_step: as in `dpm_solver_pp`; with order 1 it is `ancestral`.

    Raises:
      ValueError: as in `dpm_solver_pp`.
    """

    def move(key, xt, x0_hat, interval):
        q = posterior(xt, x0_hat, interval)
        return q.mean + jnp.exp(0.5 * q.log_var) * noise_like(key, q.mean)

    return _multistep(order, longest_step, move)


def _multistep(
    order: int,
    longest_step: float,
    move: Callable[[Key | Keys | None, Data, Data, Interval], Data],
) -> Sampler:
    """Return the sampler that moves with extrapolated predictions; `move` is that of `without_memory`."""
    whole_number(order, "order", 1, MAX_ORDER)
    real_number(longest_step, "longest_step", "a number above 0", lambda value: value > 0)

    def init(x1):
        return Memory((jnp.zeros_like(x1),) * (order - 1), (jnp.zeros((), x1.dtype),) * (order - 1))

    def step(key, xt, interval, predict, memory):
        x0_hat, h = predict(xt, interval), 0.5 * interval.delta
        ahead = jnp.zeros_like(xt)
        if order == MAX_ORDER:
            ahead = jax.lax.cond(
                memory.steps[0] > 0,
                lambda: ahead,
                lambda: 0.5 * change(xt, x0_hat, interval, predict),
            )
        xs = move(key, xt, x0_hat + _extrapolate(x0_hat, h, memory, longest_step, ahead), interval)
        kept = Memory((x0_hat, *memory.predictions), (h, *memory.steps))
        return xs, Memory(*(column[: order - 1] for column in kept))

    return Sampler(init, step)


def _extrapolate(x0_hat: Data, h: Reals, memory: Memory, longest_step: float, ahead: Data) -> Data:
    """Return D − x̂_0, where D is the mean on a step of the polynomial through the last predictions.

    With the position u = 0 at the start of the step and 1 at its end, the earlier predictions were made at
    u = −r_1 and u = −r_1 − r_2. The mean has the density ∝ e^{hu} of the exact solution. For order 2, (28) has
    the mean ½ of u for h → 0.

    Args:
      x0_hat: the prediction at the start of the step.
      h: the length of the step.
      memory: the earlier predictions.
      longest_step: as in `dpm_solver_pp`.
      ahead: D − x̂_0 of a step without earlier predictions.
    """
    if not memory.steps:
        return ahead
    (last, *before), (step, *step_before) = memory
    known = (step > 0) & (h > 0) & (h <= longest_step * step)
    r_1 = jnp.where(known, step, 1) / jnp.where(known, h, 1)
    slope = (x0_hat - last) / r_1
    second = jnp.where(known, 0.5 * slope, ahead)
    if not before:
        return second
    known_twice = known & (step_before[0] > 0) & (step <= longest_step * step_before[0])
    r_2 = jnp.where(known_twice, step_before[0], 1) / jnp.where(known_twice, h, 1)
    # Newton's divided difference: x̂_0 + slope u + curvature u (u + r_1)
    curvature = (slope - (last - before[0]) / r_2) / (r_1 + r_2)
    mean, mean_square = _moments(jnp.where(known_twice, h, 1))
    third = mean * slope + (mean_square + r_1 * mean) * curvature
    return jnp.where(known_twice, third, second)


def _moments(h: Reals) -> tuple[Reals, Reals]:
    """Return E u and E u² under the density ∝ e^{hu} on [0, 1]."""
    is_small = h < 0.1
    far = jnp.where(is_small, 1, h)
    scale = -1 / jnp.expm1(-far)
    mean = scale - 1 / far
    mean_square = scale - 2 / far * mean
    near = jnp.where(
        is_small, h, 0
    )  # the first terms of the series in h, because the differences cancel
    near_mean = 1 / 2 + near / 12 - near**3 / 720 + near**5 / 30240
    near_square = 1 / 3 + near / 12 + near**2 / 360 - near**3 / 720 - near**4 / 15120
    return jnp.where(is_small, near_mean, mean), jnp.where(is_small, near_square, mean_square)
