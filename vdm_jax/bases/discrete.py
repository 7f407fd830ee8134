"""Posterior means of K-level data under independent positions, with and without their histograms."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases.base import Base
from vdm_jax.diffusion import alpha, log_sigma
from vdm_jax.likelihoods import check_log_counts, level_values, nearest_level
from vdm_jax.typing import Numbers


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
