"""Grids of noise levels that a sampler visits, between the ends of a schedule.

    schedule    those of the schedule at equidistant times
    uniform     equidistant γ
    karras      equidistant (σ/α)^{1/ρ} (Karras et al. 2022)
    levels      given values of γ

A grid is again a schedule: a path through the noise levels, at whose equidistant times the sampler stops.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import real_number
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule, as_time, piecewise_linear
from vdm_jax.specs import build, name_of
from vdm_jax.typing import Array, Numbers, Params, Spec

Grid = Callable[[Schedule, Params, int], Schedule]
"""(schedule, its params, steps) -> the path of the sampler, a schedule without params."""


def schedule() -> Grid:
    """Return the grid of the schedule's own noise levels at equidistant times."""

    def path(schedule, params, steps):
        del steps
        return _fixed(
            lambda t: schedule.gamma(params, t), lambda s, t: schedule.delta(params, s, t)
        )

    return path


def uniform() -> Grid:
    """Return the grid of equidistant γ between the schedule's ends, which is uniform in the log-SNR."""

    def path(schedule, params, steps):
        del steps
        first, last, length = _ends(schedule, params)
        return _fixed(
            lambda t: first * (1 - as_time(t)) + last * as_time(t),
            lambda s, t: length * (as_time(t) - as_time(s, "s")),
        )

    return path


def karras(*, rho: float = 7.0) -> Grid:
    """Return the grid of equidistant (σ/α)^{1/ρ} between the schedule's ends (Karras et al. 2022).

    Args:
      rho: ρ ≥ 1; a larger ρ gives more of the steps to low noise levels.

    Raises:
      ValueError: `rho` is below 1 or above 100.
    """
    real_number(rho, "rho", "a number in [1, 100]", lambda value: 1 <= value <= 100)

    def path(schedule, params, steps):
        del steps
        first, _, length = _ends(schedule, params)
        # the root of σ/α, as a multiple of that at t = 0
        rise = jnp.expm1(length / (2 * rho))

        def gamma(t):
            return first + 2 * rho * jnp.log1p(rise * as_time(t))

        def delta(s, t):
            s, t = as_time(s, "s"), as_time(t)
            return 2 * rho * jnp.log1p(rise * (t - s) / (1 + rise * s))

        return _fixed(gamma, delta)

    return path


def levels(*, gammas: Numbers) -> Grid:
    """Return the grid of given noise levels.

    Args:
      gammas: γ from noise to data, [steps + 1], decreasing. The sampler starts from standard normal noise at
        the first of them, and predicts the data at the last.

    Raises:
      ValueError: `gammas` has another shape or does not decrease, or an end is beyond ±80.
    """
    values = np.asarray(gammas, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"gammas: expected a vector of at least 2, found shape {values.shape}")
    falls = np.diff(values) < 0  # False for NaN
    if not np.all(falls):
        i = int(np.argmin(falls))
        raise ValueError(
            f"gammas: expected decreasing numbers, found {values[i + 1]} after {values[i]}"
        )
    given = piecewise_linear(gammas=values[::-1])

    def path(schedule, params, steps):
        del schedule, params
        if steps != values.size - 1:
            raise ValueError(f"steps: the grid has {values.size - 1}, found {steps}")
        return given

    return path


GRIDS: dict[str, Callable[..., Grid]] = {
    "schedule": schedule,
    "uniform": uniform,
    "karras": karras,
    "levels": levels,
}
"""name -> factory of a `Grid`."""


def build_path(
    grid: Spec | Grid,
    parameterization: Parameterization,
    schedule: Schedule,
    params: Params,
    steps: int,
) -> Schedule:
    """Build a grid, and return its path between the ends of a schedule.

    Raises:
      ValueError, TypeError: as in `build`; another grid than `schedule` for a parameterization that predicts on
        intervals of the training chain.
    """
    if not parameterization.continuous and name_of(grid) != "schedule":
        raise ValueError(
            f"grid: the parameterization predicts on intervals of its chain, expected 'schedule', found "
            f"{name_of(grid)!r}"
        )
    return build(GRIDS, grid, "grid")(schedule, params, steps)


def _ends(schedule: Schedule, params: Params) -> tuple[Array, Array, Array]:
    """Return γ(0), γ(1) and their exact difference."""
    return (
        jnp.asarray(schedule.gamma(params, 0.0)),
        jnp.asarray(schedule.gamma(params, 1.0)),
        jnp.asarray(schedule.delta(params, 0.0, 1.0)),
    )


def _fixed(gamma: Callable, delta: Callable) -> Schedule:
    """Return the schedule of functions of the times only."""
    return Schedule(lambda key: {}, lambda params, t: gamma(t), lambda params, s, t: delta(s, t))
