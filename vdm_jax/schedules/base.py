"""The type of a noise schedule, and the interval between two of its times.

A schedule is three pure functions: `init(key) -> params`, `gamma(params, t)` and `delta(params, s, t)`,
elementwise in the times. `delta` is γ(t) − γ(s) without cancellation. Every weight, transition and sampler
depends on this difference, and that of two rounded float32 γ at neighbouring times is mostly rounding error
(docs/equations.md §7).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_instance, check_times, is_traced, real_number
from vdm_jax.diffusion import Interval
from vdm_jax.typing import Params, Real, Reals, as_float

GAMMA_MIN, GAMMA_MAX = -13.3, 5.0  # the end points of Kingma et al. 2021

MAX_GAMMA = 80
"""The largest |γ| of an end point: e^80 ≈ 6·10³⁴ is within the range of float32."""

NO_SIGNAL = 60.0
"""γ(1) of a chain that ends in SNR = 0. SNR(s) − SNR(1), and so the bound, has an error of e^−60, and x_1 one
of α = e^−30 times the data; both are below the rounding of float64. With a larger γ, T expm1(Δ) would leave the
range of float32."""


class Schedule(NamedTuple):
    """A noise schedule as pure functions of its params and the time.

    Attributes:
      init: key -> params; {} for fixed schedules.
      gamma: (params, t) -> γ(t), elementwise.
      delta: (params, s, t) -> γ(t) − γ(s), elementwise, with a small relative error.
      learned: True if `params` are trained.
      interior: the key in `params` of the parameters that shape γ between its ends without moving them. In
        continuous time they are trained on the variance of the loss (`vdm_jax.variance`). None if all params
        are trained on the bound.
      no_signal: True if γ(1) stands for SNR = 0, which excludes parameterizations that divide by α.

    Examples:
      >>> schedule = vdm.schedules.Schedule(
      ...     init=lambda key: {},
      ...     gamma=lambda params, t: 10.0 * jnp.asarray(t) - 5.0,
      ...     delta=lambda params, s, t: 10.0 * (jnp.asarray(t) - jnp.asarray(s)),
      ... )
      >>> gamma_t, dgamma = schedule.gamma_and_dgamma({}, 0.5)
      >>> float(gamma_t), float(dgamma)
      (0.0, 10.0)
    """

    init: Callable[..., Params]
    gamma: Callable[[Params, Real], Reals]
    delta: Callable[[Params, Real, Real], Reals]
    learned: bool = False
    interior: str | None = None
    no_signal: bool = False

    def gamma_and_dgamma(self, params: Params, t: Real) -> tuple[Reals, Reals]:
        """Return γ(t) and its derivative γ'(t)."""
        t = as_time(t)
        # forward mode, because γ is elementwise in times of any shape
        return jax.jvp(lambda time: self.gamma(params, time), (t,), (jnp.ones_like(t),))


def interval(schedule: Schedule, params: Params, s: Real, t: Real) -> Interval:
    """Return the interval between the times s < t of a schedule.

    Raises:
      ValueError: a time is outside [0, 1], or s is above t.
      TypeError: `schedule` is not a `Schedule`, or a time is not a real number.

    Examples:
      >>> interval = vdm.interval(vdm.schedules.linear(), None, 0.0, 2.0**-20)
      >>> print(f"{interval.delta:.6e}")  # 18.3 / 2²⁰; the rounded γ differ by 1.716614e-05
      1.745224e-05
    """
    check_instance(schedule, Schedule, "schedule", "vdm.schedules.linear()")
    check_times(s, "s")
    check_times(t, "t")
    if not (is_traced(s) or is_traced(t)) and np.any(np.asarray(s) > np.asarray(t)):
        raise ValueError(f"interval: expected times s < t, found s = {s} and t = {t}")
    return Interval(
        schedule.gamma(params, s), schedule.gamma(params, t), schedule.delta(params, s, t)
    )


def check_schedule_params(schedule: Schedule, params: Params) -> None:
    """Raise ValueError unless `params` match those of a learned schedule's `init` in structure and shapes."""
    if not schedule.learned:
        return
    if params is None or not jax.tree.leaves(params):
        raise ValueError(
            f"schedule_params: the schedule is learned, expected schedule.init(key), found {params}"
        )
    expected = jax.eval_shape(schedule.init, jax.random.key(0))
    # types are not compared: params of another float type are valid
    matches = jax.tree.structure(params) == jax.tree.structure(expected)
    if matches:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        matches = shapes == [leaf.shape for leaf in jax.tree.leaves(expected)]
    if not matches:
        raise ValueError("schedule_params: expected those of schedule.init(key), found others")


def as_time(t: Real, name: str = "t") -> Reals:
    """Return times as an array of floats.

    Raises:
      ValueError: a time is outside [0, 1], or NaN.
      TypeError: a time is not a real number.
    """
    check_times(t, name)
    return as_float(t)


def check_ends(gamma_min: float, gamma_max: float) -> None:
    """Raise ValueError unless γ rises from `gamma_min` to `gamma_max` within ±`MAX_GAMMA`."""
    for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
        real_number(value, name, "a number", lambda _: True)  # NaN and ∞ fail the comparisons below
    if not gamma_min < gamma_max:
        raise ValueError(
            f"gamma_min: expected less than gamma_max = {gamma_max}, found {gamma_min}"
        )
    if max(abs(gamma_min), abs(gamma_max)) > MAX_GAMMA:
        raise ValueError(
            f"expected ends in [-{MAX_GAMMA}, {MAX_GAMMA}], where float32 holds the SNR, "
            f"found {gamma_min} and {gamma_max}"
        )


def sigmoid_difference(low: Reals, high: Reals, gap: Reals) -> Reals:
    """Return sigmoid(high) − sigmoid(low) without cancellation from the exact gap = high − low ≥ 0."""
    return jax.nn.sigmoid(high) * jax.nn.sigmoid(-low) * -jnp.expm1(-gap)
