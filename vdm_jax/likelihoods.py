"""p(x | mean, variance): what a Gaussian observation of the data says of them, eq. (2), (12).

    softmax               K levels, softmax of −(mean − level)²/(2·variance)           (Kingma et al. 2021)
    histogram             the same, with each position's log-histogram added to the logits
    discretized_gaussian  K levels, N(mean, variance) integrated over each level's bin  (Ho et al. 2020)
    bernoulli             two levels, log-odds mean/variance
    gaussian              continuous data, N(mean, variance)

A VAE's decoder outputs mean and variance. A diffusion model has learned nothing of them: `least_noisy` reads
them off its last latent, or takes its prediction x̂_0. `mean` is on the scale of x_0.

A likelihood also says how data are stored: K-level data are integers 0…K−1, which `encode` puts at the
centres of K bins of [−1, 1].
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from vdm_jax.diffusion import alpha, log1mexp, log_sigma
from vdm_jax.gaussian import Gaussian
from vdm_jax.typing import Array, Data, Key, Reals, Scalar


class Likelihood(NamedTuple):
    """p(x | mean, variance) of one example; `log_var` has the mean's shape or is a scalar.

    Attributes:
      encode: stored data -> x0, floats of the data shape; TypeError for data of another kind, NaN for integers
        that are no level.
      decode: x0 -> stored data (nearest level).
      log_prob: (x, mean, log_var) -> nats, summed; `x` as stored.
      sample: (key, mean, log_var) -> x, as stored.
      expected: (mean, log_var) -> E[x0].
      denoised: whether a diffusion model's mean is its prediction x̂_0 (or else its least noisy latent).
      levels: K, or None for continuous data.

    Examples:
      >>> likelihood = vdm.LIKELIHOODS["softmax"](levels=4)
      >>> x = jnp.asarray([0, 3])
      >>> print(likelihood.encode(x), likelihood.decode(likelihood.encode(x)))
      [-0.75  0.75] [0 3]
      >>> print(f"{likelihood.log_prob(x, likelihood.encode(x), jnp.asarray(-8.0)):.3f}")  # almost certain
      -0.000
    """

    encode: Callable[[Any], Data]
    decode: Callable[[Data], Array]
    log_prob: Callable[[Any, Data, Reals], Scalar]
    sample: Callable[[Key, Data, Reals], Array]
    expected: Callable[[Data, Reals], Data]
    denoised: bool
    levels: int | None


def least_noisy(likelihood: Likelihood, latent: Data, x0_hat: Any, gamma_0: Scalar) -> Gaussian:
    """The observation that a diffusion model decodes from, eq. (12).

    Returns:
      N(x̂_0, σ_0²) if the likelihood reads the prediction, else N(x_{t=0}/α_0, σ_0²/α_0²).
    """
    if likelihood.denoised:
        return Gaussian(x0_hat, 2 * log_sigma(gamma_0))
    return Gaussian(latent / alpha(gamma_0), jnp.asarray(gamma_0))


def level_values(levels: Any) -> np.ndarray:
    """The K centres (2k+1)/K − 1 of equal bins of [−1, 1], float64 [K].

    Raises:
      ValueError: levels below 2, or None, of continuous data.

    Examples:
      >>> from vdm_jax.likelihoods import level_values
      >>> print(level_values(4))
      [-0.75 -0.25  0.25  0.75]
    """
    if levels is None:
        raise ValueError("levels: expected K-level data, found continuous values")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, found {levels}")
    return (2 * np.arange(levels) + 1) / levels - 1


def nearest_level(x0: Data, levels: int) -> Data:
    """Index of the level nearest to each of `x0`, a whole number in their own type."""
    return jnp.clip(jnp.floor((x0 + 1) * (levels / 2)), 0, levels - 1)


def of_levels(log_counts: Any, levels: int) -> np.ndarray:
    """Log-counts [..., K] as an array.

    Raises:
      ValueError: there are none, or their last axis is not the levels.
    """
    if log_counts is None:
        raise ValueError(
            "histogram: expected log_counts of the training split, as `fit_statistics` counts them, found None"
        )
    log_counts = np.asarray(log_counts, np.float32)
    if log_counts.ndim < 1 or log_counts.shape[-1] != levels:
        raise ValueError(
            f"histogram: the last axis of log_counts must be the {levels} levels, "
            f"found shape {log_counts.shape}"
        )
    return log_counts


def softmax(*, levels: Any = 256) -> Likelihood:
    """Normalised Gaussian scores over the K levels.

    Raises:
      ValueError: levels below 2, or None, of continuous data.
    """
    return _softmax("softmax", levels)


def histogram(*, levels: Any, log_counts: Any) -> Likelihood:
    """Bayes' rule for independent positions: their own histograms times the Gaussian scores.

    An observation without information (a large variance) leaves the histogram.

    Args:
      levels: K ≥ 2.
      log_counts: [*d, K] or [K], log-probabilities or log-counts, fitted on the training split.

    Raises:
      ValueError: as `softmax`; no log_counts, of another number of levels, or not finite.
    """
    level_values(levels)
    log_counts = of_levels(log_counts, levels)
    if not np.all(np.isfinite(log_counts)):
        place = [int(i) for i in np.argwhere(~np.isfinite(log_counts))[0]]
        raise ValueError(
            "histogram: log_counts must be finite, or data of a level that was never seen would be impossible; "
            f"found {log_counts[tuple(place)]} at {place}: smooth the counts"
        )
    return _softmax("histogram", levels, log_counts)


def bernoulli() -> Likelihood:
    """Two levels, 0 and 1, with log-odds mean/variance: the softmax over them."""
    return _softmax("bernoulli", 2)


def discretized_gaussian(*, levels: Any = 256) -> Likelihood:
    """N(mean, variance) integrated over each level's bin; the outer bins reach to infinity.

    Raises:
      ValueError: levels below 2, or None, of continuous data.
    """

    encode, decode = _level_codec(levels, "discretized_gaussian")

    def log_prob(x, mean, log_var):
        scale = jnp.exp(-0.5 * log_var)
        offset = encode(x) - mean
        upper, lower = (offset + 1 / levels) * scale, (offset - 1 / levels) * scale
        # in the left tail, where log Φ is accurate
        right = offset > 0
        high, low = jnp.where(right, -lower, upper), jnp.where(right, -upper, lower)
        log_high, log_low = log_ndtr(high), log_ndtr(low)
        # of a narrow bin the difference of the tails is lost in rounding; the series in its width is not
        width, place = jnp.broadcast_to(2 / levels * scale, offset.shape), offset * scale
        narrow = width < jnp.finfo(width.dtype).eps ** 0.25
        by_density = jnp.log(width) - 0.5 * (place**2 + math.log(2 * math.pi))
        by_density += width**2 * (place**2 - 1) / 24
        by_tails = log_high + log1mexp(jnp.where(narrow, 1.0, log_high - log_low))
        inner = jnp.where(narrow, by_density, by_tails)
        x = jnp.asarray(x)
        outer = jnp.where(x == 0, log_ndtr(upper), log_ndtr(-lower))
        return jnp.sum(jnp.where((x == 0) | (x == levels - 1), outer, inner))

    def sample(key, mean, log_var):
        return decode(Gaussian(mean, log_var).sample(key))

    def expected(mean, log_var):  # up to the rounding to levels and the outer bins
        del log_var
        return jnp.clip(mean, -1, 1)

    return Likelihood(encode, decode, log_prob, sample, expected, denoised=True, levels=levels)


def gaussian() -> Likelihood:
    """N(mean, variance) for continuous data."""

    def encode(x):  # half precision holds data, but neither noise nor times
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"likelihood 'gaussian': expected floats, found {x.dtype} of shape {x.shape}"
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def log_prob(x, mean, log_var):
        return Gaussian(mean, log_var).log_prob(encode(x))

    def sample(key, mean, log_var):
        return Gaussian(mean, log_var).sample(key)

    def expected(mean, log_var):
        del log_var
        return mean

    return Likelihood(
        encode, lambda x0: x0, log_prob, sample, expected, denoised=False, levels=None
    )


NEAR = 5
"""Levels that a sum over all of them is restricted to where the others are lost in its rounding: the nearest
and two on either side. Neighbours of 256 levels are 6 σ apart at the γ_0 = −13.3 of a diffusion model; all are
needed from −11.5 on."""


def _softmax(name: str, levels: Any, log_counts: np.ndarray | None = None) -> Likelihood:
    values = level_values(levels)
    encode, decode = _level_codec(levels, name)
    span = 0.0 if log_counts is None else float(np.max(np.ptp(log_counts, -1)))

    def prior_of(mean):
        """Log-prior of all levels, [*d or 1…, K]."""
        prior = jnp.asarray(log_counts, mean.dtype)
        return prior.reshape((1,) * (mean.ndim + 1 - prior.ndim) + prior.shape)

    def prior_at(level, mean):
        """Log-prior of one level for each position, [*d]."""
        index = level.astype(jnp.int32)[..., None]
        return jnp.take_along_axis(prior_of(mean), index, -1)[..., 0]

    def closer(level, own, mean, precision):
        """Log-likelihood of `level` relative to that of the level `own`, elementwise."""
        # a product: the difference of two squares, each far larger, would not sum to one over the levels
        # in float32
        middle = (level + own + 1) / levels - 1
        relative = precision * (mean - middle) * (level - own) * (2 / levels)
        # the selection keeps compilers from fusing the product into the subtraction of the largest, where
        # scores of 1e26 would differ from themselves by 1e19
        return jnp.where(level == own, 0, relative)

    def scores(own, mean, log_var):
        """Logits of all levels, relative to that of the level `own` [*d]."""
        own = own.astype(mean.dtype)
        precision = jnp.exp(-jnp.broadcast_to(log_var, mean.shape))
        each = jnp.arange(levels, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
        relative = closer(each, own[..., None], mean[..., None], precision[..., None])
        if log_counts is None:
            return relative
        return relative + prior_of(mean) - prior_at(own, mean)[..., None]

    def over_all(own, mean, log_var):
        return -jnp.sum(jax.nn.logsumexp(scores(own, mean, log_var), -1))

    def over_near(own, mean, log_var):
        own, precision = own.astype(mean.dtype), jnp.exp(-log_var)
        first = jnp.clip(nearest_level(mean, levels) - NEAR // 2, 0, levels - NEAR)

        def logit(level):
            relative = closer(level, own, mean, precision)
            if log_counts is None:
                return relative
            return relative + prior_at(level, mean) - prior_at(own, mean)

        # an array for each: XLA:CPU vectorises no short last axis
        logits = [logit(first + i) for i in range(NEAR)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
        nats = jnp.ravel(top + jnp.log(sum(jnp.exp(logit - top) for logit in logits)))
        # a product: XLA:CPU vectorises no sum, nor what it fuses into one
        return -jnp.dot(nats, jnp.ones_like(nats), precision="highest")

    def is_near(dtype, log_var):
        """Whether what lies beyond the near levels is lost in the rounding of the sum."""
        # i spacings away from the nearest level, a logit is smaller by at least i (i − 1) of these
        half_square = 2 / levels**2 * jnp.exp(-log_var)
        beyond = (NEAR // 2 + 1) * (NEAR // 2) * half_square
        return beyond > span - math.log(jnp.finfo(dtype).eps / 4)

    # a conditional keeps the residuals of both of its branches
    branches = [jax.checkpoint(branch) for branch in (over_near, over_all)]

    def log_prob(x, mean, log_var):
        own = _as_levels(x, levels, name)
        if levels <= NEAR or jnp.ndim(log_var) > 0:
            return over_all(own, mean, log_var)
        near = is_near(mean.dtype, log_var)
        return jax.lax.cond(near, *branches, own, mean, log_var)

    def sample(key, mean, log_var):
        logits = scores(decode(mean), mean, log_var)
        return jax.random.categorical(key, logits, axis=-1).astype(_stored_type(levels))

    def expected(mean, log_var):
        mass = jax.nn.softmax(scores(decode(mean), mean, log_var), -1)
        return mass @ jnp.asarray(values, mean.dtype)

    return Likelihood(encode, decode, log_prob, sample, expected, denoised=False, levels=levels)


def _as_levels(x: Any, levels: int, name: str) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"likelihood {name!r}: expected integers 0..{levels - 1}, found {x.dtype} of shape {x.shape}"
        )
    return x


def _stored_type(levels: int):
    return jnp.uint8 if levels <= 256 else jnp.int32


def _level_codec(levels: Any, name: str):
    values = level_values(levels)

    def encode(x):
        x = _as_levels(x, levels, name).astype(jnp.int32)
        # from the table that the bases read: another rounding of a level would be an error of theirs
        x0 = jnp.asarray(values, jnp.result_type(float))[x]
        return jnp.where((x >= 0) & (x < levels), x0, jnp.nan)

    def decode(x0):
        return nearest_level(x0, levels).astype(_stored_type(levels))

    return encode, decode


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "softmax": softmax,
    "histogram": histogram,
    "discretized_gaussian": discretized_gaussian,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
}
"""name -> factory of a `Likelihood`."""
