"""Noise schedules: γ(t) = −log SNR, increasing on [0, 1], with exact differences.

A schedule is three pure functions: `init(key) -> params`, `gamma(params, t)` and `delta(params, s, t)`,
elementwise in the times. Fixed schedules ignore their params. `delta` is γ(t) − γ(s) without the
cancellation: float32 γ differ by rounding alone for neighbouring times, and every weight, transition
and sampler lives on that difference (docs/equations.md §7). Sources: Kingma et al. 2021 (linear,
learned), Nichol & Dhariwal 2021 and Kingma & Gao 2023 (cosine), Jabri et al. 2022 (sigmoid), Ho et al.
2020 (betas).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import Interval
from vdm_jax.typing import Params, Real, Reals, as_float

GAMMA_MIN, GAMMA_MAX = -13.3, 5.0  # the end points of Kingma et al. 2021
MAX_GAMMA = 80


class Schedule(NamedTuple):
    """γ as pure functions of (params, time).

    Attributes:
      init: key -> params; {} for fixed schedules.
      gamma: (params, t) -> γ(t), elementwise.
      delta: (params, s, t) -> γ(t) − γ(s), elementwise, accurate relative to itself.
      learned: whether `params` have anything to learn.
      interior: the key in `params` of what shapes γ between its ends and leaves them as they are, to be
        trained in continuous time on the variance of the loss (`vdm_jax.variance`); None: all are trained on
        the bound.

    Examples:
      >>> ours = vdm.Schedule(
      ...     init=lambda key: {},
      ...     gamma=lambda params, t: 10.0 * jnp.asarray(t) - 5.0,
      ...     delta=lambda params, s, t: 10.0 * (jnp.asarray(t) - jnp.asarray(s)),
      ... )
      >>> gamma_t, rate = ours.rate({}, 0.5)
      >>> float(gamma_t), float(rate)
      (0.0, 10.0)
    """

    init: Callable[..., Params]
    gamma: Callable[[Params, Real], Reals]
    delta: Callable[[Params, Real, Real], Reals]
    learned: bool = False
    interior: str | None = None

    def rate(self, params: Params, t: Real) -> tuple[Reals, Reals]:
        """γ(t) and γ'(t), by differentiation."""
        t = as_float(t)
        return jax.jvp(lambda time: self.gamma(params, time), (t,), (jnp.ones_like(t),))


def interval(schedule: Schedule, params: Params, s: Real, t: Real) -> Interval:
    """The interval between the times s < t of a schedule.

    Examples:
      >>> step = vdm.interval(vdm.SCHEDULES["linear"](), None, 0.0, 2.0**-20)
      >>> print(f"{step.delta:.6e}")  # 18.3 / 2²⁰; the rounded γ differ by 1.716614e-05
      1.745224e-05
    """
    return Interval(
        schedule.gamma(params, s), schedule.gamma(params, t), schedule.delta(params, s, t)
    )


def linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """γ linear in t.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.

    Examples:
      >>> schedule = vdm.SCHEDULES["linear"](gamma_min=-6.0, gamma_max=4.0)
      >>> print(schedule.gamma(None, jnp.asarray([0.0, 0.5, 1.0])))
      [-6. -1.  4.]
    """
    _check_ends(gamma_min, gamma_max)

    def gamma(params, t):
        del params
        t = as_float(t)
        return gamma_min * (1 - t) + gamma_max * t

    def delta(params, s, t):
        del params
        return (gamma_max - gamma_min) * (as_float(t) - as_float(s))

    return Schedule(_no_params, gamma, delta)


def cosine(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """α = cos(angle) with the angle linear in t, cut so that the end points are exact.

    γ = 2 log tan(angle); both the angle and its complement are interpolated, so that neither end cancels.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.

    Examples:
      >>> schedule = vdm.SCHEDULES["cosine"](gamma_min=-10.0, gamma_max=10.0)
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 0.25, 1.0]))).round(3))
      [-10.     -1.744  10.   ]
    """
    _check_ends(gamma_min, gamma_max)
    first = math.atan(math.exp(gamma_min / 2))
    last = math.atan(math.exp(-gamma_max / 2))  # complement of the angle at t = 1
    length = math.pi / 2 - first - last

    def sin_angle(t):
        return jnp.sin(first + length * t)

    def cos_angle(t):
        return jnp.sin(last + length * (1 - t))

    def gamma(params, t):
        del params
        t = as_float(t)
        return 2 * (jnp.log(sin_angle(t)) - jnp.log(cos_angle(t)))

    def delta(params, s, t):
        del params
        s, t = as_float(s), as_float(t)
        return 2 * jnp.log1p(jnp.sin(length * (t - s)) / (cos_angle(t) * sin_angle(s)))

    return Schedule(_no_params, gamma, delta)


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
    _check_ends(gamma_min, gamma_max)
    if not start < end:
        raise ValueError(f"sigmoid schedule: start must be below end, found {start} >= {end}")
    var_first, var_last = _expit(gamma_min), _expit(gamma_max)
    span = _expit(gamma_max) - _expit(gamma_min)
    total = _expit(end) - _expit(start)

    def progress(s, t):  # logistic(t) − logistic(s), as a part of the whole curve
        low, high = start + (end - start) * s, start + (end - start) * t
        return _sigmoid_difference(low, high, (end - start) * (t - s)) / total

    def variances(t):  # σ² and α², each a sum of positive terms
        p, q = progress(jnp.zeros_like(t), t), progress(t, jnp.ones_like(t))
        return var_first * q + var_last * p, _expit(-gamma_min) * q + _expit(-gamma_max) * p

    def gamma(params, t):
        del params
        noise, signal = variances(as_float(t))
        return jnp.log(noise) - jnp.log(signal)

    def delta(params, s, t):
        del params
        s, t = as_float(s), as_float(t)
        more, noise = span * progress(s, t) / variances(t)[1], variances(s)[0]
        fits = more < 1e30 * noise  # the quotient in float32; else the 1 is lost beside it
        exact = jnp.log1p(more / jnp.where(fits, noise, 1.0))
        return jnp.where(fits, exact, jnp.log(jnp.where(fits, 1.0, more)) - jnp.log(noise))

    return Schedule(_no_params, gamma, delta)


def from_betas(*, betas: Any) -> Schedule:
    """The schedule of a DDPM chain: γ(i/(T−1)) is that of ᾱ_{i+1} = Π_{j≤i}(1 − β_j), linear between.

    A chain of T latents is T − 1 matching terms, eq. (8): use `timesteps = len(betas) - 1`.

    Args:
      betas: [T ≥ 2], the per-step noise variances, each in (0, 1).

    Raises:
      ValueError: another shape, a value outside (0, 1), or a chain that ends in more noise than float32 holds.

    Examples:
      >>> schedule = vdm.SCHEDULES["from_betas"](betas=np.linspace(1e-4, 0.02, 1000))
      >>> print(np.asarray(schedule.gamma(None, jnp.asarray([0.0, 1.0]))).round(3))
      [-9.21  10.118]
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"from_betas: betas must be a vector of at least 2, found {betas.shape}")
    if not np.all((betas > 0) & (betas < 1)):
        bad = int(np.argmax(~((betas > 0) & (betas < 1))))
        raise ValueError(f"from_betas: betas must lie in (0, 1), found betas[{bad}] = {betas[bad]}")
    log_signal = np.cumsum(np.log1p(-betas))
    knots = np.log(-np.expm1(log_signal)) - log_signal
    _check_ends(knots[0], knots[-1])
    cells = betas.size - 1
    slopes = np.diff(knots) * cells
    # each knot as a sum of two floats, so that float32 differences from it are exact to the last bit
    times, values = _split(np.arange(betas.size) / cells), _split(knots)

    def since(t, i):  # t − (time of knot i)
        high, low = (_take(part, i, t) for part in times)
        return (t - high) - low

    def locate(t):
        cell = jnp.searchsorted(jnp.asarray(times[0], t.dtype), t, side="right") - 1
        return jnp.clip(cell - (since(t, cell) < 0), 0, cells - 1)

    def gamma(params, t):
        del params
        t = as_float(t)
        cell = locate(t)
        return _take(knots, cell, t) + _take(slopes, cell, t) * since(t, cell)

    def delta(params, s, t):
        del params
        s, t = as_float(s), as_float(t)
        i, j = locate(s), locate(t)
        first, last = _take(slopes, i, s), _take(slopes, j, t)
        high, low = (_take(part, j, t) - _take(part, i + 1, t) for part in values)
        ends = last * since(t, j) - first * since(s, i + 1)
        return jnp.where(i == j, first * (t - s), high + (low + ends))

    return Schedule(_no_params, gamma, delta)


def learned_linear(*, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX) -> Schedule:
    """γ linear in t with both end points learned; the arguments are where they start.

    Raises:
      ValueError: ends in the wrong order, or beyond ±80, where float32 no longer holds the SNR.
    """
    _check_ends(gamma_min, gamma_max)
    ends = _learned_ends(gamma_min, gamma_max)

    def gamma(params, t):
        first, last, _ = ends(_need(params, "learned_linear"))
        t = as_float(t)
        return first * (1 - t) + last * t

    def delta(params, s, t):
        return ends(_need(params, "learned_linear"))[-1] * (as_float(t) - as_float(s))

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
      >>> schedule = vdm.SCHEDULES["learned_monotone"](gamma_min=-6.0, gamma_max=4.0)
      >>> params = schedule.init(jax.random.key(0))
      >>> print(np.asarray(schedule.gamma(params, jnp.asarray([0.0, 1.0]))).round(3), schedule.learned)
      [-6.  4.] True
    """
    _check_ends(gamma_min, gamma_max)
    if hidden < 1:
        raise ValueError(f"learned_monotone: hidden must be at least 1, found {hidden}")
    if trained_on not in ("variance", "bound"):
        raise ValueError(
            f"learned_monotone: trained_on must be 'variance' or 'bound', found {trained_on!r}"
        )
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
        logistic = _sigmoid_difference(slope * s + bias, slope * t + bias, slope * (t - s))
        line = (jax.nn.softplus(curve["line"]) + 1e-3) * jnp.squeeze(t - s, -1)
        return line + jnp.sum(weight * logistic, -1)

    def gamma(params, t):
        params, t = _need(params, "learned_monotone"), as_float(t)
        first, last, _ = ends(params)
        curve = params["curve"]
        past, left = rise(curve, jnp.zeros_like(t), t), rise(curve, t, jnp.ones_like(t))
        whole = past + left  # so that the two parts sum to one whatever their rounding
        return first * (left / whole) + last * (past / whole)

    def delta(params, s, t):
        params = _need(params, "learned_monotone")
        s, t = as_float(s), as_float(t)
        curve = params["curve"]
        whole = rise(curve, jnp.zeros_like(t), jnp.ones_like(t))
        return ends(params)[-1] * rise(curve, s, t) / whole

    return Schedule(init, gamma, delta, learned=True, interior=interior)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "from_betas": from_betas,
    "learned_linear": learned_linear,
    "learned_monotone": learned_monotone,
}
"""name -> factory of a `Schedule`; `from_betas` needs its `betas`."""


def _no_params(key=None):
    del key
    return {}


def _need(params: Params, name: str) -> Params:
    if not params:
        raise ValueError(f"schedule {name!r} is learned: pass schedule_params=schedule.init(key)")
    return params


def _check_ends(gamma_min: float, gamma_max: float) -> None:
    if not gamma_min < gamma_max:
        raise ValueError(
            f"schedule: gamma_min must be below gamma_max, found {gamma_min} >= {gamma_max}"
        )
    if max(abs(gamma_min), abs(gamma_max)) > MAX_GAMMA:
        raise ValueError(
            f"schedule: end points must lie in [-{MAX_GAMMA}, {MAX_GAMMA}], where float32 holds the SNR, "
            f"found {gamma_min} and {gamma_max}"
        )


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


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _sigmoid_difference(low, high, gap):
    """sigmoid(high) − sigmoid(low) from the exact gap = high − low ≥ 0."""
    return jax.nn.sigmoid(high) * jax.nn.sigmoid(-low) * -jnp.expm1(-gap)


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest float32 numbers and what they lack."""
    high = table.astype(np.float32).astype(np.float64)
    return high, table - high


def _take(table: np.ndarray, index, like) -> Reals:
    return jnp.asarray(table, like.dtype)[index]
