"""Grids of noise levels that a sampler visits, between the ends of a schedule.

    schedule    those of the schedule at equidistant times
    uniform     equidistant γ
    karras      equidistant (σ/α)^{1/ρ} (Karras et al. 2022)
    explicit    given values of γ

The noise levels of a grid are those of a path at equidistant times, and a path is again a `Schedule`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vdm_jax.checks import is_traced, real_number
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule, as_time, check_monotone, piecewise_linear
from vdm_jax.specs import build
from vdm_jax.typing import Array, Numbers, Params, Spec


class Grid(NamedTuple):
    """The noise levels that a sampler visits.

    Attributes:
      path: (schedule, params, steps) -> the path of the sampler, a schedule without params.
      keeps_times: True if the path is the schedule itself.
      keeps_ends: True if the path has the ends of the schedule.
    """

    path: Callable[[Schedule, Params, int], Schedule]
    keeps_times: bool = False
    keeps_ends: bool = True


def schedule() -> Grid:
    """Return the grid of the schedule's own noise levels at equidistant times."""

    def path(given, params, steps):
        del steps
        return _path(lambda t: given.gamma(params, t), lambda s, t: given.delta(params, s, t))

    return Grid(path, keeps_times=True)


def uniform() -> Grid:
    """Return the grid of equidistant γ between the schedule's ends, which is uniform in the log-SNR."""

    def path(given, params, steps):
        del steps
        _check_signal(given)

        def gamma(t):
            first, last, _ = _ends(given, params, t.dtype)
            return first * (1 - t) + last * t

        def delta(s, t):
            return _ends(given, params, t.dtype)[2] * (t - s)

        return _path(gamma, delta)

    return Grid(path)


def karras(*, rho: float = 7.0) -> Grid:
    """Return the grid of equidistant (σ/α)^{1/ρ} between the schedule's ends (Karras et al. 2022).

    Args:
      rho: ρ ≥ 1; a larger ρ gives more of the steps to low noise levels.

    Raises:
      ValueError: `rho` is below 1 or above 100.
    """
    real_number(rho, "rho", "a number in [1, 100]", lambda value: 1 <= value <= 100)

    def path(given, params, steps):
        del steps
        _check_signal(given)

        def rise(dtype):  # of the root of σ/α, as a multiple of that at t = 0
            return jnp.expm1(_ends(given, params, dtype)[2] / (2 * rho))

        def gamma(t):
            first = _ends(given, params, t.dtype)[0]
            return first + 2 * rho * jnp.log1p(rise(t.dtype) * t)

        def delta(s, t):
            growth = rise(t.dtype)
            return 2 * rho * jnp.log1p(growth * (t - s) / (1 + growth * s))

        return _path(gamma, delta)

    return Grid(path)


def explicit(*, gammas: Numbers) -> Grid:
    """Return the grid of given noise levels.

    Args:
      gammas: γ from noise to data, [steps + 1], decreasing, between the ends of the schedule. The sampler
        starts from standard normal noise at the first of them, and predicts the data at the last.

    Raises:
      ValueError: `gammas` has another shape, does not decrease, or is traced. The path raises it for another
        number of steps, and for noise levels beyond those of a fixed schedule.
    """
    values = check_monotone(gammas, "gammas", rising=False)
    knots = piecewise_linear(gammas=values[::-1])

    def path(given, params, steps):
        if steps != values.size - 1:
            raise ValueError(f"steps: the grid has {values.size - 1}, found {steps}")
        with jax.ensure_compile_time_eval():
            low, high, _ = _ends(given, params, jnp.result_type(float))
        # those of a learned schedule are traced, or move
        known = not given.learned and not is_traced(low)
        if known and not (low - SLACK <= values[-1] and values[0] <= high + SLACK):
            raise ValueError(
                f"grid: expected noise levels in [{low:.4g}, {high:.4g}], those of the schedule, found "
                f"[{values[-1]:.4g}, {values[0]:.4g}]"
            )
        return knots

    return Grid(path, keeps_ends=False)


SLACK = 1e-3
"""By how much γ of an explicit grid may lie beyond the ends of the schedule."""

GRIDS: dict[str, Callable[..., Grid]] = {
    "schedule": schedule,
    "uniform": uniform,
    "karras": karras,
    "explicit": explicit,
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
        intervals of the training chain; a grid between the ends of a schedule that ends in SNR = 0.
    """
    built = build(GRIDS, grid, "grid")
    if not parameterization.continuous and not built.keeps_times:
        raise ValueError(
            "grid: the parameterization predicts on intervals of its chain, expected 'schedule', found another"
        )
    return built.path(schedule, params, steps)


def _ends(schedule: Schedule, params: Params, dtype: DTypeLike) -> tuple[Array, Array, Array]:
    """Return γ(0), γ(1) and their exact difference."""
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    return (
        jnp.asarray(schedule.gamma(params, zero)),
        jnp.asarray(schedule.gamma(params, one)),
        jnp.asarray(schedule.delta(params, zero, one)),
    )


def _check_signal(schedule: Schedule) -> None:
    """Raise ValueError for a schedule whose γ(1) stands for SNR = 0 and is no noise level to step from."""
    if schedule.no_signal:
        raise ValueError(
            "grid: the schedule ends in SNR = 0, expected 'schedule' or 'explicit', found another"
        )


def _path(gamma: Callable, delta: Callable) -> Schedule:
    """Return the schedule without params of two functions of times."""
    return Schedule(
        init=lambda key: {},
        gamma=lambda params, t: gamma(as_time(t)),
        delta=lambda params, s, t: delta(as_time(s, "s"), as_time(t)),
    )
