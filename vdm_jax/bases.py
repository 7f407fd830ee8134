"""Base denoisers: what can be computed need not be learned, eq. (22).

A base is a fixed denoiser b(x_t, γ_t); the network predicts the correction, x̂_0 = b + out·net. Each row
gives the estimate b, its error x_0 − b without cancellation where b is linear, and the standard
deviation of that error, by which the output scale `unit_variance` (23) multiplies the network's output.

    zero        b = skip·x_t                 F = net, the parameterization as printed
    input       b = (1−σ_t)/α_t · x_t        ε̂ = x_t, the "base measure" of Kingma et al. 2021
    levels      posterior mean over K levels under independent uniform pixels
    histogram   the same under the training split's per-position histogram

The last two are close to soft discretization, Kong et al., Information-Theoretic Diffusion, ICLR 2023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import alpha, log_alpha, log_sigma, marginal, sigma
from vdm_jax.likelihoods import check_log_counts, level_values, nearest_level
from vdm_jax.parameterizations import Preconditioning, TargetCoefficients, regression_target
from vdm_jax.typing import Data, Key, Scalar


class Base(NamedTuple):
    """A fixed denoiser that treats each position alone: its error follows from the histograms of the data.

    Attributes:
      estimate: (xt, gamma_t, preconditioning) -> b, of the data's shape.
      error: (x0, eps, xt, gamma_t, preconditioning, target) -> x0 − b.
      deviation: (gamma_t, preconditioning, target) -> root mean square of x0 − b per position.
      informative: True if b holds information that x_t does not; then it is an input of the network.

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
    """No base: the network's output is F itself. `second_moment` is E[x_0²] of the data."""

    def estimate(xt, gamma_t, preconditioning):
        del gamma_t
        return preconditioning.skip * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, gamma_t
        return preconditioning.out * regression_target(x0, eps, target)

    def deviation(gamma_t, preconditioning, target):
        del gamma_t
        power = second_moment * jnp.square(target.x0) + jnp.square(target.eps)
        return jnp.abs(preconditioning.out) * jnp.sqrt(power)

    return Base(estimate, error, deviation, informative=False)


def input(*, second_moment: float = 1 / 3) -> Base:
    """ε̂ = x_t: right at t = 1, where the latent is noise alone."""

    def gain(gamma_t):  # (1 − σ)/α
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


def levels(*, levels: int, second_moment: float = 1 / 3, residual: Any = None) -> Base:
    """Posterior mean over `levels` equally spaced values under independent uniform positions.

    Args:
      levels: K ≥ 2.
      residual: the measured root mean square of x_0 − b, `measure_residual`; without it, that of a
        Gaussian with the data's `second_moment`.

    Raises:
      ValueError: levels below 2, or None, of continuous data.
    """
    values = level_values(levels)
    return _discrete(values, np.zeros_like(values), second_moment, residual)


def histogram(
    *, levels: int, log_counts: Any, second_moment: float = 1 / 3, residual: Any = None
) -> Base:
    """The posterior mean of `levels` under each position's own histogram.

    Args:
      log_counts: [*d, K], log-probabilities or log-counts of each level at each position, fitted on the
        training split.

    Raises:
      ValueError: as `levels`; no log_counts, or of another number of levels.
    """
    log_counts = check_log_counts(log_counts, levels)
    return _discrete(level_values(levels), log_counts, second_moment, residual)


def _discrete(values: np.ndarray, log_counts: np.ndarray, second_moment, residual) -> Base:
    log_counts = log_counts - np.max(log_counts, -1, keepdims=True).astype(float)
    # then neither a sum relative to the nearest level nor its derivatives overflow
    narrow = np.min(log_counts) > -25

    def estimate(xt, gamma_t, preconditioning):
        del preconditioning
        alpha_t, scale = alpha(gamma_t), jnp.exp(-log_sigma(gamma_t))
        table, prior = (jnp.asarray(array, xt.dtype) for array in (values, log_counts))
        last = (1,) * jnp.ndim(xt) + values.shape
        level, prior = table.reshape(last), prior.reshape(last) if prior.ndim == 1 else prior
        place = xt / jnp.maximum(alpha_t, jnp.finfo(xt.dtype).tiny)
        index = nearest_level(place, len(values)).astype(jnp.int32)[..., None]
        nearest = table[index]
        # −½ of the squared distance in σ less that of the nearest level, as a product: the squares may both
        # overflow, and so may e^{−γ} alone
        middle = (xt[..., None] - alpha_t * (0.5 * (level + nearest))) * scale
        closer = middle * ((level - nearest) * (alpha_t * scale))
        # above 0 where rounding took a neighbour for the nearest: by far, where there is hardly any noise
        logits = prior + jnp.minimum(closer, 10)
        if narrow:
            top = jnp.take_along_axis(prior, index, -1)
        else:
            top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
        mass = jnp.exp(logits - top)
        # products: on CPUs XLA takes three times as long for sums over a last axis
        total = jnp.dot(mass, jnp.ones_like(table), precision="highest")
        return jnp.dot(mass, table, precision="highest") / total

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del eps, target
        return x0 - estimate(xt, gamma_t, preconditioning)

    def deviation(gamma_t, preconditioning, target):
        del preconditioning, target
        if residual is None:
            return jax.lax.rsqrt(1 / second_moment + jnp.exp(-gamma_t))
        gammas, log_deviation = (jnp.asarray(column, gamma_t.dtype) for column in residual)
        below = jnp.minimum(gamma_t - gammas[0], 0)  # not measured there: falls with σ/α
        return jnp.exp(jnp.interp(gamma_t, gammas, log_deviation) + 0.5 * below)

    return Base(estimate, error, deviation, informative=True)


def measure_residual(base: Base, x0: Data, key: Key, gammas: Any) -> tuple[np.ndarray, np.ndarray]:
    """Measure log √E[(x_0 − b)²] of an informative base on a sample `x0` [n, *d], for `deviation`.

    Returns:
      (gammas, log deviations), float32 vectors; the deviation is kept above 10⁻³ σ, below which the estimate
      is exact for every purpose and a finite sample knows no number.
    """
    nothing = (
        Preconditioning(jnp.zeros(()), jnp.zeros(())),
        TargetCoefficients(jnp.zeros(()), jnp.zeros(())),
    )

    def one(key, x0, gamma):
        q = marginal(x0, gamma)
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
        return jnp.mean(jnp.square(base.error(x0, eps, xt, gamma, *nothing)))

    @jax.jit
    def at(gamma, key):
        keys = jax.random.split(key, x0.shape[0])
        mean_square = jnp.mean(jax.vmap(one, (0, 0, None))(keys, x0, gamma))
        return 0.5 * jnp.log(jnp.maximum(mean_square, 1e-6 * jax.nn.sigmoid(gamma)))

    gammas = np.asarray(gammas, np.float32)
    return gammas, np.asarray([at(jnp.asarray(gamma), key) for gamma in gammas], np.float32)


BASES: dict[str, Callable[..., Base]] = {
    "zero": zero,
    "input": input,
    "levels": levels,
    "histogram": histogram,
}
"""name -> factory of a `Base`."""
