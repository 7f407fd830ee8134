"""The forward process and its posterior, in γ = −log SNR (variance preserving), eq. (5)–(9).

    α² = sigmoid(−γ),  σ² = sigmoid(γ)                                            (5)
    q(x_t | x_0) = N(α_t x_0, σ_t²)                                               (6)
    q(x_t | x_s) = N((α_t/α_s) x_s, σ_t²(1−e^{−Δ})),  Δ = γ_t − γ_s               (7)
    q(x_s | x_t, x_0) = N((α_s/α_t)e^{−Δ} x_t + α_s(1−e^{−Δ}) x_0, σ_s²(1−e^{−Δ}))  (9)

Δ is a separate input, never the difference of two rounded γ, which loses digits (docs/equations.md §7). The
data are the latent with γ = −∞: `Interval(-inf, gamma_0, inf)` is a valid interval, and its transition is the
marginal. Δ = 0 is also valid: on a flat stretch of a schedule, x_s = x_t.
Source: Kingma et al. 2021, arXiv 2107.00630.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_instance, check_real
from vdm_jax.gaussian import Gaussian, check_shape
from vdm_jax.typing import Data, Real, Reals, Scalar

SMALLEST = 1e-20
"""The smallest Δ for which variances are computed. It is small enough for the noise of such an interval to be
lost in the rounding of x, and large enough for logarithms and ratios of variances to stay finite."""


class Interval(NamedTuple):
    """Two times s < t of the process, as γ_s, γ_t and their exact difference Δ = γ_t − γ_s.

    Examples:
      >>> interval = vdm.Interval(
      ...     gamma_s=jnp.asarray(-2.0), gamma_t=jnp.asarray(0.0), delta=jnp.asarray(2.0)
      ... )
      >>> vdm.transition(jnp.zeros(3), interval).mean.shape
      (3,)
    """

    gamma_s: Reals
    gamma_t: Reals
    delta: Reals


INTERVAL = "vdm.interval(schedule, params, s, t)"  # the example in error messages


def log_alpha(gamma: Real) -> Reals:
    """Return log α, eq. (5)."""
    return 0.5 * jax.nn.log_sigmoid(-jnp.asarray(gamma))


def log_sigma(gamma: Real) -> Reals:
    """Return log σ, eq. (5)."""
    return 0.5 * jax.nn.log_sigmoid(jnp.asarray(gamma))


def alpha(gamma: Real) -> Reals:
    """Return the signal level α, eq. (5)."""
    return jnp.exp(log_alpha(gamma))


def sigma(gamma: Real) -> Reals:
    """Return the noise level σ, eq. (5); not √(1−α²), which is 0 in float32 below γ = −16."""
    return jnp.exp(log_sigma(gamma))


def data_interval(gamma_0: Scalar) -> Interval:
    """Return the interval from the data (γ = −∞) to the least noisy latent."""
    inf = jnp.full_like(gamma_0, jnp.inf)
    return Interval(-inf, gamma_0, inf)


def marginal(x0: Data, gamma_t: Real) -> Gaussian:
    """Return q(x_t | x_0), eq. (6), for `x0` of any shape.

    Raises:
      TypeError: no real numbers.

    Examples:
      >>> q = vdm.marginal(jnp.asarray([1.0, -1.0]), 0.0)  # SNR 1: α² = σ² = ½
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [ 0.707 -0.707] 0.500
    """
    check_real(x0, "x0")
    check_real(gamma_t, "gamma_t")
    return Gaussian(alpha(gamma_t) * x0, 2 * log_sigma(gamma_t))


def transition(xs: Data, interval: Interval) -> Gaussian:
    """Return q(x_t | x_s), eq. (7), for `xs` of any shape.

    Raises:
      TypeError: no real numbers, or no `Interval`.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> q = vdm.transition(jnp.asarray([1.0]), interval)
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [0.753] 0.432
    """
    check_instance(interval, Interval, "interval", INTERVAL)
    check_real(xs, "xs")
    gamma_s, gamma_t, delta = interval
    ratio = jnp.exp(log_alpha(gamma_t) - log_alpha(gamma_s))
    return Gaussian(ratio * xs, 2 * log_sigma(gamma_t) + log1mexp(delta))


def posterior(xt: Data, x0: Data, interval: Interval) -> Gaussian:
    """Return q(x_s | x_t, x_0), eq. (9). With a prediction x̂_0 as `x0` it is the generative p(x_s | x_t).

    Raises:
      TypeError: no real numbers, or no `Interval`.
      ValueError: `xt` and `x0` differ in shape.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> q = vdm.posterior(jnp.asarray([1.0]), jnp.asarray([0.5]), interval)
      >>> print(np.asarray(q.mean).round(3), f"{jnp.exp(q.log_var):.3f}")
      [0.585] 0.103
    """
    check_instance(interval, Interval, "interval", INTERVAL)
    check_real(xt, "xt")
    check_real(x0, "x0")
    check_shape(jnp.shape(x0), jnp.shape(xt), "posterior: x0")
    gamma_s, gamma_t, delta = interval
    xt_coefficient = jnp.exp(log_alpha(gamma_s) - log_alpha(gamma_t) - delta)
    x0_coefficient = -alpha(gamma_s) * jnp.expm1(-delta)
    mean = xt_coefficient * xt + x0_coefficient * x0
    return Gaussian(mean, 2 * log_sigma(gamma_s) + log1mexp(delta))


def bridge(xr: Data, xt: Data, before: Interval, after: Interval) -> Gaussian:
    """Return q(x_s | x_r, x_t) for r < s < t, eq. (17), from the intervals (r, s) and (s, t)."""
    gamma_s = before.gamma_t
    # precisions and variance in units of σ_s²; for x_r the data (Δ = ∞), (17) becomes (9)
    past_precision = -1 / jnp.expm1(-jnp.maximum(before.delta, SMALLEST))
    future_precision = 1 / jnp.expm1(jnp.maximum(after.delta, SMALLEST))
    variance = 1 / (past_precision + future_precision)
    past = jnp.exp(log_alpha(gamma_s) - log_alpha(before.gamma_s)) * past_precision * xr
    future = jnp.exp(log_alpha(gamma_s) - log_alpha(after.gamma_t)) * future_precision * xt
    return Gaussian(variance * (past + future), 2 * log_sigma(gamma_s) + jnp.log(variance))


def log1mexp(delta: Real) -> Reals:
    """Return log(1 − e^{−Δ}) for Δ ≥ 0, accurate for small and large Δ; Δ is raised to `SMALLEST` first."""
    delta = jnp.maximum(delta, SMALLEST)
    # 0.7 ≈ log 2: below, 1 − e^{−Δ} cancels; above, log loses the digits of a number close to 1. Each form gets
    # the argument 0.7 where the other is selected: its gradient might be infinite there, and 0 · ∞ is NaN
    is_small = delta < 0.7
    small_form = jnp.log(-jnp.expm1(-jnp.where(is_small, delta, 0.7)))
    return jnp.where(is_small, small_form, jnp.log1p(-jnp.exp(-jnp.where(is_small, 0.7, delta))))
