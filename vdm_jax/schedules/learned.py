"""Learned noise schedules of Kingma et al. 2021: learned ends, and a monotone network between them."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.checks import whole_number
from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    Schedule,
    as_time,
    check_ends,
    sigmoid_difference,
)
from vdm_jax.typing import Params, Real


def learned_linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """Return the schedule with γ linear in t and both end points learned, initially the arguments.

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32.
    """
    check_ends(gamma_min, gamma_max)
    ends = _learned_ends(gamma_min, gamma_max)

    def gamma(params, t):
        first, last, _ = ends(require_params(params, "learned_linear"))
        t = as_time(t)
        return first * (1 - t) + last * t

    def delta(params, s, t):
        return ends(require_params(params, "learned_linear"))[-1] * (as_time(t) - as_time(s, "s"))

    return Schedule(lambda key: _init_ends(), gamma, delta, learned=True)


def learned_monotone(
    *,
    gamma_min: float = GAMMA_MIN,
    gamma_max: float = GAMMA_MAX,
    hidden: int = 64,
    learn_ends: bool = True,
    trained_on: str = "variance",
) -> Schedule:
    """Return the schedule with γ a monotone network in t: a line plus logistic curves with positive weights.

    The end points are separate parameters (`learn_ends`) or fixed to the arguments. The curve between them is
    normalised, so that the network's weights do not move them.

    Args:
      gamma_min, gamma_max: the initial ends.
      hidden: number of logistic curves.
      learn_ends: True to learn the ends, which are always trained on the bound.
      trained_on: the objective of the curve between the ends in continuous time, the "variance" of the loss or
        the "bound", whose expectation does not depend on the curve. The bound of a chain does, and the curve is
        then trained on it.

    Raises:
      ValueError: the ends are in the wrong order, or beyond ±80, where the SNR leaves the range of float32;
        `hidden` is below 1; `trained_on` has another value.

    Examples:
      >>> schedule = vdm.schedules.learned_monotone(gamma_min=-6.0, gamma_max=4.0)
      >>> params = schedule.init(jax.random.key(0))
      >>> print(np.asarray(schedule.gamma(params, jnp.asarray([0.0, 1.0]))).round(3), schedule.learned)
      [-6.  4.] True
    """
    check_ends(gamma_min, gamma_max)
    whole_number(hidden, "hidden", 1)
    if trained_on not in ("variance", "bound"):
        raise ValueError(f"trained_on: expected 'variance' or 'bound', found {trained_on!r}")
    interior = "curve" if trained_on == "variance" else None
    ends = _learned_ends(gamma_min, gamma_max)

    def init(key):
        # one centre in each of `hidden` equal parts of [0, 1]
        centres = (jnp.arange(hidden, dtype=float) + jax.random.uniform(key, (hidden,))) / hidden
        slopes = jnp.full((hidden,), 8.0, float)
        curve = {
            "line": jnp.zeros(()),
            "slope": slopes,
            "bias": -slopes * centres,
            # softplus of it is 1/hidden: the weights sum to one
            "weight": jnp.full((hidden,), math.log(math.expm1(1 / hidden)), float),
        }
        return {"curve": curve} | (_init_ends() if learn_ends else {})

    def rise(curve, s, t):
        """Return D(s, t) of docs/equations.md §7, a sum of positive terms."""
        s, t = jnp.expand_dims(s, -1), jnp.expand_dims(t, -1)

        def per_curve(weights):  # [hidden] -> [1…, hidden], beside the times [..., 1]
            return jnp.expand_dims(weights, tuple(range(t.ndim - 1)))

        slope, weight = jax.nn.softplus(curve["slope"]), jax.nn.softplus(curve["weight"])
        slope, bias, weight = per_curve(slope), per_curve(curve["bias"]), per_curve(weight)
        logistic = sigmoid_difference(slope * s + bias, slope * t + bias, slope * (t - s))
        # the small constant keeps γ strictly increasing, whatever the weights are
        line = (jax.nn.softplus(curve["line"]) + 1e-3) * jnp.squeeze(t - s, -1)
        return line + jnp.sum(weight * logistic, -1)

    def gamma(params, t):
        params, t = require_params(params, "learned_monotone"), as_time(t)
        first, last, _ = ends(params)
        curve = params["curve"]
        past, left = rise(curve, jnp.zeros_like(t), t), rise(curve, t, jnp.ones_like(t))
        total = past + left  # not D(0, 1), so that the fractions sum to one in spite of rounding
        return first * (left / total) + last * (past / total)

    def delta(params, s, t):
        params = require_params(params, "learned_monotone")
        s, t = as_time(s, "s"), as_time(t)
        curve = params["curve"]
        total = rise(curve, jnp.zeros_like(t), jnp.ones_like(t))
        return ends(params)[-1] * rise(curve, s, t) / total

    return Schedule(init, gamma, delta, learned=True, interior=interior)


def require_params(params: Params, name: str) -> Params:
    """Return the params of a learned schedule, or raise ValueError if there are none."""
    if not params:
        raise ValueError(f"schedule {name!r} is learned: pass schedule_params=schedule.init(key)")
    return params


def _learned_ends(
    gamma_min: float, gamma_max: float
) -> Callable[[Params], tuple[Real, Real, Real]]:
    """Return the function params -> (γ(0), γ(1), γ(1) − γ(0)), whose last value is positive."""

    def ends(params):
        width = gamma_max - gamma_min
        if "gamma_min" not in params:  # fixed ends
            return gamma_min, gamma_max, width
        first = gamma_min + params["gamma_min"]
        width = width * jnp.exp(params["log_width"])
        return first, first + width, width

    return ends


def _init_ends() -> Params:
    """Return the params for which the ends are the schedule's arguments."""
    return {"gamma_min": jnp.zeros(()), "log_width": jnp.zeros(())}
