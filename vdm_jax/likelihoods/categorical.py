"""Likelihoods of K-level data by a softmax over the levels.

The logits are −(mean − level)²/(2·variance), with or without each position's log-histogram
(Kingma et al. 2021).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array
from vdm_jax.likelihoods.base import Likelihood
from vdm_jax.likelihoods.levels import (
    as_levels,
    level_codec,
    level_values,
    nearest_level,
    stored_type,
)


def check_log_counts(log_counts: Any, levels: int) -> np.ndarray:
    """Log-counts [..., K] as an array.

    Raises:
      ValueError: there are none, or their last axis is not the levels.
    """
    if log_counts is None:
        raise ValueError(
            "log_counts: expected those of the training split, as `fit_statistics` counts them, found None"
        )
    check_array(log_counts, "log_counts")
    log_counts = np.asarray(log_counts, np.float32)
    if log_counts.ndim < 1 or log_counts.shape[-1] != levels:
        raise ValueError(
            f"log_counts: expected the {levels} levels as the last axis, found shape {log_counts.shape}"
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
    log_counts = check_log_counts(log_counts, levels)
    if not np.all(np.isfinite(log_counts)):
        place = [int(i) for i in np.argwhere(~np.isfinite(log_counts))[0]]
        raise ValueError(
            f"log_counts{place}: expected a finite number, for data of a level that was never seen would be "
            f"impossible, found {log_counts[tuple(place)]}: smooth the counts"
        )
    return _softmax("histogram", levels, log_counts)


def bernoulli() -> Likelihood:
    """Two levels, 0 and 1, with log-odds mean/variance: the softmax over them."""
    return _softmax("bernoulli", 2)


NEAR = 5
"""Levels that a sum over all of them is restricted to where the others are lost in its rounding: the nearest
and two on either side. Neighbours of 256 levels are 6 σ apart at the γ_0 = −13.3 of a diffusion model; all are
needed from −11.5 on."""


class _Scores(NamedTuple):
    """Log-posterior of K levels given a noisy observation of a value, up to a constant.

    Attributes:
      levels: K.
      log_counts: [*d, K] or [K], the log-prior, or None for equal levels.
    """

    levels: int
    log_counts: np.ndarray | None

    @property
    def span(self) -> float:
        """The largest difference of two levels' log-priors."""
        return 0.0 if self.log_counts is None else float(np.max(np.ptp(self.log_counts, -1)))

    def prior_of(self, mean):
        """Return the log-prior of all levels, [*d or 1…, K]."""
        prior = jnp.asarray(self.log_counts, mean.dtype)
        return prior.reshape((1,) * (mean.ndim + 1 - prior.ndim) + prior.shape)

    def prior_at(self, level, mean):
        """Return the log-prior of one level for each position, [*d]."""
        index = level.astype(jnp.int32)[..., None]
        return jnp.take_along_axis(self.prior_of(mean), index, -1)[..., 0]

    def closer(self, level, own, mean, precision):
        """Return the log-likelihood of `level` relative to that of the level `own`, elementwise."""
        # a product: the difference of two squares, each far larger, would not sum to one over the levels
        # in float32
        middle = (level + own + 1) / self.levels - 1
        relative = precision * (mean - middle) * (level - own) * (2 / self.levels)
        # the selection keeps compilers from fusing the product into the subtraction of the largest, where
        # scores of 1e26 would differ from themselves by 1e19
        return jnp.where(level == own, 0, relative)

    def of_all(self, own, mean, log_var):
        """Return the logits of all levels, relative to that of the level `own` [*d]."""
        own = own.astype(mean.dtype)
        precision = jnp.exp(-jnp.broadcast_to(log_var, mean.shape))
        each = jnp.arange(self.levels, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
        relative = self.closer(each, own[..., None], mean[..., None], precision[..., None])
        if self.log_counts is None:
            return relative
        return relative + self.prior_of(mean) - self.prior_at(own, mean)[..., None]

    def over_all(self, own, mean, log_var):
        """Return log P(own), summed over the positions, from all levels."""
        return -jnp.sum(jax.nn.logsumexp(self.of_all(own, mean, log_var), -1))

    def over_near(self, own, mean, log_var):
        """Return log P(own), summed over the positions, from the `NEAR` levels around the observation."""
        own, precision = own.astype(mean.dtype), jnp.exp(-log_var)
        first = jnp.clip(nearest_level(mean, self.levels) - NEAR // 2, 0, self.levels - NEAR)

        def logit(level):
            relative = self.closer(level, own, mean, precision)
            if self.log_counts is None:
                return relative
            return relative + self.prior_at(level, mean) - self.prior_at(own, mean)

        # an array for each: XLA:CPU vectorises no short last axis
        logits = [logit(first + i) for i in range(NEAR)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
        nats = jnp.ravel(top + jnp.log(sum(jnp.exp(logit - top) for logit in logits)))
        # a product: XLA:CPU vectorises no sum, nor what it fuses into one
        return -jnp.dot(nats, jnp.ones_like(nats), precision="highest")

    def is_near(self, dtype, log_var):
        """Return True if the levels beyond the near ones are lost in the rounding of the sum."""
        # i spacings away from the nearest level, a logit is smaller by at least i (i − 1) of these
        half_square = 2 / self.levels**2 * jnp.exp(-log_var)
        beyond = (NEAR // 2 + 1) * (NEAR // 2) * half_square
        return beyond > self.span - math.log(jnp.finfo(dtype).eps / 4)


def _softmax(name: str, levels: Any, log_counts: np.ndarray | None = None) -> Likelihood:
    values = level_values(levels)
    encode, decode = level_codec(levels, name)
    scores = _Scores(levels, log_counts)

    # a conditional keeps the residuals of both of its branches
    @jax.checkpoint
    def over_near(own, mean, log_var):
        return scores.over_near(own, mean, log_var)

    @jax.checkpoint
    def over_all(own, mean, log_var):
        return scores.over_all(own, mean, log_var)

    def log_prob(x, mean, log_var):
        own = as_levels(x, levels, name)
        if levels <= NEAR or jnp.ndim(log_var) > 0:
            return scores.over_all(own, mean, log_var)
        near = scores.is_near(mean.dtype, log_var)
        return jax.lax.cond(near, over_near, over_all, own, mean, log_var)

    def sample(key, mean, log_var):
        logits = scores.of_all(decode(mean), mean, log_var)
        return jax.random.categorical(key, logits, axis=-1).astype(stored_type(levels))

    def expected(mean, log_var):
        mass = jax.nn.softmax(scores.of_all(decode(mean), mean, log_var), -1)
        return mass @ jnp.asarray(values, mean.dtype)

    return Likelihood(
        encode, decode, log_prob, sample, expected, uses_prediction=False, levels=levels
    )
