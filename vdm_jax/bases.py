"""Base denoisers: fixed estimates of x_0 that the network corrects, eq. (22).

A base is a fixed denoiser b(x_t, γ_t); the network predicts the correction, x̂_0 = b + out·net. Each base
gives the estimate b, its error x_0 − b without cancellation where b is linear, and the standard
deviation of that error, by which the output scale `unit_variance` (23) multiplies the network's output.

    zero        b = skip·x_t                 F = net, no base
    input       b = (1−σ_t)/α_t · x_t        ε̂ = x_t, the "base measure" of Kingma et al. 2021
    levels      posterior mean over K levels under independent, uniform positions
    histogram   posterior mean over K levels under the training split's histogram of each position

The last two are close to soft discretization, Kong et al., Information-Theoretic Diffusion, ICLR 2023.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import alpha, log_alpha, log_sigma, marginal, sigma
from vdm_jax.likelihoods import check_log_counts, level_values, nearest_level
from vdm_jax.parameterizations import Preconditioning, TargetCoefficients, regression_target
from vdm_jax.typing import Data, Key, Numbers, Scalar


class Base(NamedTuple):
    """A fixed denoiser that treats each position separately, so that its error follows from histograms.

    Attributes:
      estimate: (xt, gamma_t, preconditioning) -> b [*d].
      error: (x0, eps, xt, gamma_t, preconditioning, target) -> x0 − b.
      deviation: (gamma_t, preconditioning, target) -> root mean square of x0 − b per position.
      informative: True if b contains information beyond x_t; the network then receives b as an input.

    Examples:
      >>> base = vdm.bases.levels(levels=2)  # data are −½ or ½
      >>> preconditioning = vdm.parameterizations.x0()(vdm.Interval(*jnp.asarray([-2.0, 0.0, 2.0])))
      >>> print(np.asarray(base.estimate(jnp.asarray([0.0, 5.0]), jnp.asarray(0.0), preconditioning)).round(3))
      [0.    0.499]
    """

    estimate: Callable[[Data, Scalar, Preconditioning], Data]
    error: Callable[[Data, Data, Data, Scalar, Preconditioning, TargetCoefficients], Data]
    deviation: Callable[[Scalar, Preconditioning, TargetCoefficients], Scalar]
    informative: bool


def zero(*, second_moment: float = 1 / 3) -> Base:
    """Return the base without a denoiser: the network outputs F itself.

    Args:
      second_moment: E[x_0²] of the data, per position.
    """

    def estimate(xt, gamma_t, preconditioning):
        del gamma_t
        return preconditioning.skip * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, gamma_t
        return preconditioning.out * regression_target(x0, eps, target)

    def deviation(gamma_t, preconditioning, target):
        del gamma_t
        # x_0 − b = out · target, and x_0 and ε are uncorrelated
        mean_square = second_moment * jnp.square(target.x0) + jnp.square(target.eps)
        return jnp.abs(preconditioning.out) * jnp.sqrt(mean_square)

    return Base(estimate, error, deviation, informative=False)


def input(*, second_moment: float = 1 / 3) -> Base:
    """Return the base ε̂ = x_t, which is exact where the latent is only noise.

    Args:
      second_moment: E[x_0²] of the data, per position.
    """

    def gain(gamma_t):  # (1 − σ)/α; expm1, because σ → 1 at high noise
        return -jnp.expm1(log_sigma(gamma_t)) * jnp.exp(-log_alpha(gamma_t))

    def estimate(xt, gamma_t, preconditioning):
        del preconditioning
        return gain(gamma_t) * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, preconditioning, target
        return sigma(gamma_t) * (x0 - gain(gamma_t) * eps)

    def deviation(gamma_t, preconditioning, target):
        del preconditioning, target
        return sigma(gamma_t) * jnp.sqrt(second_moment + jnp.square(gain(gamma_t)))

    return Base(estimate, error, deviation, informative=False)


def levels(
    *,
    levels: int,
    second_moment: float = 1 / 3,
    residual: tuple[np.ndarray, np.ndarray] | None = None,
) -> Base:
    """Return the posterior mean over `levels` equally spaced values under independent, uniform positions.

    Args:
      levels: K ≥ 2.
      second_moment: E[x_0²] of the data, per position.
      residual: the measured root mean square of x_0 − b, as returned by `measure_residual`; if None, that of
        Gaussian data with this `second_moment`.

    Raises:
      ValueError: `levels` is below 2, or None (continuous data).
    """
    values = level_values(levels)
    return _discrete(values, np.zeros_like(values), second_moment, residual)


def histogram(
    *,
    levels: int,
    log_counts: Numbers | None,
    second_moment: float = 1 / 3,
    residual: tuple[np.ndarray, np.ndarray] | None = None,
) -> Base:
    """Return the posterior mean over `levels` equally spaced values under each position's histogram.

    Args:
      levels: K ≥ 2.
      log_counts: [*d, K], log-probabilities or log-counts of each level at each position, fitted on the
        training split.
      second_moment, residual: as in `levels`.

    Raises:
      ValueError: as in `levels`; `log_counts` is None, or has another number of levels.
    """
    log_counts = check_log_counts(log_counts, levels)
    return _discrete(level_values(levels), log_counts, second_moment, residual)


def _discrete(
    values: np.ndarray,
    log_counts: np.ndarray,
    second_moment: float,
    residual: tuple[np.ndarray, np.ndarray] | None,
) -> Base:
    """Return the posterior mean over `values` [K] under the log-prior `log_counts`, [*d, K] or [K]."""
    log_prior = log_counts - np.max(log_counts, -1, keepdims=True).astype(float)
    # if so, masses relative to that of the nearest level do not overflow, nor do their derivatives
    is_bounded = np.min(log_prior) > -25

    def estimate(xt, gamma_t, preconditioning):
        del preconditioning
        alpha_t, inverse_sigma = alpha(gamma_t), jnp.exp(-log_sigma(gamma_t))
        table = jnp.asarray(values, xt.dtype)
        prior = jnp.asarray(log_prior, xt.dtype)
        last_axis = (1,) * jnp.ndim(xt) + values.shape
        level = table.reshape(last_axis)
        if prior.ndim == 1:
            prior = prior.reshape(last_axis)
        observed = xt / jnp.maximum(alpha_t, jnp.finfo(xt.dtype).tiny)
        index = nearest_level(observed, len(values)).astype(jnp.int32)[..., None]
        nearest = table[index]
        # −½ ‖x_t − α·level‖²/σ² relative to the nearest level, as a product: both squares may overflow, and so
        # may e^{−γ}
        middle = (xt[..., None] - alpha_t * (0.5 * (level + nearest))) * inverse_sigma
        relative = middle * ((level - nearest) * (alpha_t * inverse_sigma))
        # positive only where rounding chose a neighbour of the nearest level; large there if σ is small
        logits = prior + jnp.minimum(relative, 10)
        if is_bounded:
            top = jnp.take_along_axis(prior, index, -1)
        else:
            top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
        mass = jnp.exp(logits - top)
        # dot products, because XLA:CPU takes three times as long for sums over the last axis
        total = jnp.dot(mass, jnp.ones_like(table), precision="highest")
        return jnp.dot(mass, table, precision="highest") / total

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del eps, target
        return x0 - estimate(xt, gamma_t, preconditioning)

    def deviation(gamma_t, preconditioning, target):
        del preconditioning, target
        if residual is None:
            # the posterior deviation of Gaussian data: the precisions of prior and observation add
            return jax.lax.rsqrt(1 / second_moment + jnp.exp(-gamma_t))
        gammas, log_deviation = (jnp.asarray(column, gamma_t.dtype) for column in residual)
        # below the measured noise levels, the deviation is extrapolated in proportion to σ/α = e^{γ/2}
        below = jnp.minimum(gamma_t - gammas[0], 0)
        return jnp.exp(jnp.interp(gamma_t, gammas, log_deviation) + 0.5 * below)

    return Base(estimate, error, deviation, informative=True)


def measure_residual(
    base: Base, x0: Data, key: Key, gammas: Numbers
) -> tuple[np.ndarray, np.ndarray]:
    """Measure log √E[(x_0 − b)²] of an informative base on a sample `x0` [n, *d], for `deviation`.

    Returns:
      (gammas, log deviations), float32 vectors. Deviations are at least 10⁻³ σ, because smaller ones cannot be
      estimated from a finite sample.
    """
    # informative bases ignore them
    preconditioning = Preconditioning(jnp.zeros(()), jnp.zeros(()))
    target = TargetCoefficients(jnp.zeros(()), jnp.zeros(()))

    def mean_square_error(key, x0, gamma):
        q = marginal(x0, gamma)
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
        return jnp.mean(jnp.square(base.error(x0, eps, xt, gamma, preconditioning, target)))

    @jax.jit
    def log_deviation(gamma, key):
        keys = jax.random.split(key, x0.shape[0])
        mean_square = jnp.mean(jax.vmap(mean_square_error, (0, 0, None))(keys, x0, gamma))
        return 0.5 * jnp.log(jnp.maximum(mean_square, 1e-6 * jax.nn.sigmoid(gamma)))

    gammas = np.asarray(gammas, np.float32)
    # one key for all noise levels: with the same noise the curve is smooth
    deviations = [log_deviation(jnp.asarray(gamma), key) for gamma in gammas]
    return gammas, np.asarray(deviations, np.float32)


BASES: dict[str, Callable[..., Base]] = {
    "zero": zero,
    "input": input,
    "levels": levels,
    "histogram": histogram,
}
"""name -> factory of a `Base`."""
