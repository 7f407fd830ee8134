"""Learned noise schedules of Kingma et al. 2021: learned ends, and a monotone network between them."""

import math

import jax
import jax.numpy as jnp

from vdm_jax.checks import (
    whole_number,
)
from vdm_jax.schedules.base import (
    GAMMA_MAX,
    GAMMA_MIN,
    Schedule,
    as_time,
    check_ends,
    sigmoid_difference,
)
from vdm_jax.typing import Params


def learned_linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """γ linear in t with both end points learned; the arguments are where they start.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.
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
    """γ a monotone network in t: a line plus `hidden` logistic curves with positive weights.

    The end points are parameters of their own (`learn_ends`) or pinned to the arguments; either way the
    curve is normalised, so that they are kept exactly whatever the network's weights are.

    Args:
      gamma_min, gamma_max: where the ends start.
      hidden: number of logistic curves.
      learn_ends: whether the ends are learned, always on the bound.
      trained_on: what the curve between them is trained on in continuous time, "variance" of the loss or
        "bound", whose expectation does not depend on it; of a chain it does, and the curve is trained on it.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR;
        no logistic curve; another name for what it is trained on.

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
        centres = (jnp.arange(hidden, dtype=float) + jax.random.uniform(key, (hidden,))) / hidden
        slopes = jnp.full((hidden,), 8.0, float)
        curve = {
            "line": jnp.zeros(()),
            "slope": slopes,
            "bias": -slopes * centres,
            "weight": jnp.full((hidden,), math.log(math.expm1(1 / hidden)), float),
        }
        return {"curve": curve} | (_init_ends() if learn_ends else {})

    def rise(
        curve, s, t
    ):  # exact and non-negative; the small constant keeps any weights invertible
        s, t = jnp.expand_dims(s, -1), jnp.expand_dims(t, -1)
        slope, bias, weight = (
            jnp.expand_dims(w, tuple(range(t.ndim - 1)))
            for w in (
                jax.nn.softplus(curve["slope"]),
                curve["bias"],
                jax.nn.softplus(curve["weight"]),
            )
        )
        logistic = sigmoid_difference(slope * s + bias, slope * t + bias, slope * (t - s))
        line = (jax.nn.softplus(curve["line"]) + 1e-3) * jnp.squeeze(t - s, -1)
        return line + jnp.sum(weight * logistic, -1)

    def gamma(params, t):
        params, t = require_params(params, "learned_monotone"), as_time(t)
        first, last, _ = ends(params)
        curve = params["curve"]
        past, left = rise(curve, jnp.zeros_like(t), t), rise(curve, t, jnp.ones_like(t))
        whole = past + left  # so that the two parts sum to one whatever their rounding
        return first * (left / whole) + last * (past / whole)

    def delta(params, s, t):
        params = require_params(params, "learned_monotone")
        s, t = as_time(s, "s"), as_time(t)
        curve = params["curve"]
        whole = rise(curve, jnp.zeros_like(t), jnp.ones_like(t))
        return ends(params)[-1] * rise(curve, s, t) / whole

    return Schedule(init, gamma, delta, learned=True, interior=interior)


def require_params(params: Params, name: str) -> Params:
    if not params:
        raise ValueError(f"schedule {name!r} is learned: pass schedule_params=schedule.init(key)")
    return params


def _learned_ends(gamma_min, gamma_max):
    def ends(params):  # γ(0), γ(1) and the width γ(1) − γ(0) > 0
        width = gamma_max - gamma_min
        if "gamma_min" not in params:
            return gamma_min, gamma_max, width
        first, width = gamma_min + params["gamma_min"], width * jnp.exp(params["log_width"])
        return first, first + width, width

    return ends


def _init_ends() -> Params:
    return {"gamma_min": jnp.zeros(()), "log_width": jnp.zeros(())}
