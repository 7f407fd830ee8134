"""The forward process and its posterior, in γ = −log SNR (variance preserving), eq. (5)–(9).

    α² = sigmoid(−γ),  σ² = sigmoid(γ)                                            (5)
    q(x_t | x_0) = N(α_t x_0, σ_t²)                                               (6)
    q(x_t | x_s) = N((α_t/α_s) x_s, σ_t²(1−e^{−Δ})),  Δ = γ_t − γ_s               (7)
    q(x_s | x_t, x_0) = N((α_s/α_t)e^{−Δ} x_t + α_s(1−e^{−Δ}) x_0, σ_s²(1−e^{−Δ}))  (9)

Δ is an input of its own and never recomputed from two rounded γ. The data themselves are the latent
with γ = −∞: `Interval(-inf, gamma_0, inf)` is a valid interval, and its transition is the marginal. Δ = 0 is
valid, too: a flat stretch of a schedule, where x_s = x_t.
Source: Kingma et al. 2021, arXiv 2107.00630.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_instance, check_real
from vdm_jax.gaussian import Gaussian, check_shape
from vdm_jax.typing import Data, Real, Reals, Scalar

SMALLEST = 1e-20
"""The least Δ that variances are computed with. The noise of such a step is lost in the rounding of x, while
logarithms and ratios of variances stay finite."""


class Interval(NamedTuple):
    """Two times s < t of the process, as γ_s, γ_t and their exact difference Δ = γ_t − γ_s.

    Examples:
      >>> step = vdm.Interval(gamma_s=jnp.asarray(-2.0), gamma_t=jnp.asarray(0.0), delta=jnp.asarray(2.0))
      >>> vdm.transition(jnp.zeros(3), step).mean.shape
      (3,)
    """

    gamma_s: Reals
    gamma_t: Reals
    delta: Reals


INTERVAL = "vdm.interval(schedule, params, s, t)"


def log_alpha(gamma: Real) -> Reals:
    """log α, eq. (5)."""
    return 0.5 * jax.nn.log_sigmoid(-jnp.asarray(gamma))


def log_sigma(gamma: Real) -> Reals:
    """log σ, eq. (5)."""
    return 0.5 * jax.nn.log_sigmoid(jnp.asarray(gamma))


def alpha(gamma: Real) -> Reals:
    """Signal level α, eq. (5)."""
    return jnp.exp(log_alpha(gamma))


def sigma(gamma: Real) -> Reals:
    """Noise level σ, eq. (5); never √(1−α²), which is 0 in float32 below γ = −16."""
    return jnp.exp(log_sigma(gamma))


def data_interval(gamma_0: Scalar) -> Interval:
    """The interval from the data (γ = −∞) to the least noisy latent."""
    inf = jnp.full_like(gamma_0, jnp.inf)
    return Interval(-inf, gamma_0, inf)


def marginal(x0: Data, gamma_t: Real) -> Gaussian:
    """q(x_t | x_0), eq. (6), for `x0` of any shape.

    Examples:
      >>> q = vdm.marginal(jnp.asarray([1.0, -1.0]), 0.0)  # SNR 1: α² = σ² = ½
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [ 0.707 -0.707] 0.500
    """
    check_real(x0, "x0")
    check_real(gamma_t, "gamma_t")
    return Gaussian(alpha(gamma_t) * x0, 2 * log_sigma(gamma_t))


def transition(xs: Data, interval: Interval) -> Gaussian:
    """q(x_t | x_s), eq. (7), for `xs` of any shape.

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> q = vdm.transition(jnp.asarray([1.0]), step)
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [0.753] 0.432
    """
    check_instance(interval, Interval, "interval", INTERVAL)
    check_real(xs, "xs")
    gamma_s, gamma_t, delta = interval
    ratio = jnp.exp(log_alpha(gamma_t) - log_alpha(gamma_s))
    return Gaussian(ratio * xs, 2 * log_sigma(gamma_t) + log1mexp(delta))


def posterior(xt: Data, x0: Data, interval: Interval) -> Gaussian:
    """q(x_s | x_t, x_0), eq. (9); with a prediction x̂_0 for `x0`, the generative p(x_s | x_t).

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> q = vdm.posterior(jnp.asarray([1.0]), jnp.asarray([0.5]), step)
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [0.585] 0.103
    """
    check_instance(interval, Interval, "interval", INTERVAL)
    for name, array in (("xt", xt), ("x0", x0)):
        check_real(array, name)
    check_shape(jnp.shape(x0), jnp.shape(xt), "posterior: x0")
    gamma_s, gamma_t, delta = interval
    keep = jnp.exp(log_alpha(gamma_s) - log_alpha(gamma_t) - delta)
    new = -alpha(gamma_s) * jnp.expm1(-delta)
    return Gaussian(keep * xt + new * x0, 2 * log_sigma(gamma_s) + log1mexp(delta))


def bridge(xr: Data, xt: Data, before: Interval, after: Interval) -> Gaussian:
    """q(x_s | x_r, x_t) for r < s < t, eq. (17), from the intervals (r, s) and (s, t)."""
    gamma_s = before.gamma_t
    from_past = -1 / jnp.expm1(-jnp.maximum(before.delta, SMALLEST))
    from_future = 1 / jnp.expm1(jnp.maximum(after.delta, SMALLEST))
    variance = 1 / (from_past + from_future)  # in units of σ_s²
    past = jnp.exp(log_alpha(gamma_s) - log_alpha(before.gamma_s)) * from_past * xr
    future = jnp.exp(log_alpha(gamma_s) - log_alpha(after.gamma_t)) * from_future * xt
    return Gaussian(variance * (past + future), 2 * log_sigma(gamma_s) + jnp.log(variance))


def log1mexp(delta: Real) -> Reals:
    """Return log(1 − e^{−Δ}) for Δ ≥ 0, accurate for small and for large Δ; Δ is at least `SMALLEST`."""
    delta = jnp.maximum(delta, SMALLEST)
    small = delta < 0.7
    near = jnp.log(-jnp.expm1(-jnp.where(small, delta, 0.7)))
    return jnp.where(small, near, jnp.log1p(-jnp.exp(-jnp.where(small, 0.7, delta))))
