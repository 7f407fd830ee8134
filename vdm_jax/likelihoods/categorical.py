"""Likelihoods of K-level data by a softmax over the levels (Kingma et al. 2021).

The logits are −(mean − level)²/(2·variance), with or without each position's log-histogram.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vdm_jax.checks import check_array
from vdm_jax.likelihoods.base import Likelihood
from vdm_jax.likelihoods.levels import (
    as_levels,
    level_codec,
    level_values,
    nearest_level,
    stored_type,
)
from vdm_jax.typing import Array, Bool, Data, Numbers, Reals, Scalar


def check_log_counts(log_counts: Numbers | None, levels: int) -> np.ndarray:
    """Return log-counts [..., K] as a float32 array.

    Raises:
      ValueError: `log_counts` is None, or its last axis does not have K entries.
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


def softmax(*, levels: int = 256) -> Likelihood:
    """Return the likelihood with Gaussian scores, normalised over the K levels.

    Raises:
      ValueError: `levels` is below 2, or None (continuous data).
    """
    return _softmax("softmax", levels)


def histogram(*, levels: int, log_counts: Numbers | None) -> Likelihood:
    """Return Bayes' rule for independent positions: the histogram of each times the Gaussian scores.

    For an uninformative observation (a large variance), the likelihood is the histogram.

    Args:
      levels: K ≥ 2.
      log_counts: [*d, K] or [K], log-probabilities or log-counts, fitted on the training split.

    Raises:
      ValueError: as in `softmax`; `log_counts` is None, has another number of levels, or is not finite.
    """
    level_values(levels)  # to report wrong `levels` before counts that do not match them
    log_counts = check_log_counts(log_counts, levels)
    if not np.all(np.isfinite(log_counts)):
        index = [int(i) for i in np.argwhere(~np.isfinite(log_counts))[0]]
        raise ValueError(
            f"log_counts{index}: expected a finite number, or else unseen levels are impossible, "
            f"found {log_counts[tuple(index)]}: smooth the counts"
        )
    return _softmax("histogram", levels, log_counts)


def bernoulli() -> Likelihood:
    """Return the softmax over two levels, 0 and 1, whose log-odds are mean/variance."""
    return _softmax("bernoulli", 2)


NEAR = 5
"""The number of levels in a sum restricted to the nearest level and two on either side, which replaces the sum
over all levels where the others are lost in rounding. At the γ_0 = −13.3 of a diffusion model, neighbours of
256 levels are 6 σ apart; from −11.5 on, all levels are needed."""


class _Scores(NamedTuple):
    """The log-posterior of K levels given a noisy observation of a value, up to a constant.

    Levels are given by their index; `mean` and `log_var` are those of the observation.

    Attributes:
      levels: K.
      log_counts: [*d, K] or [K], the log-prior, or None for equally likely levels.
    """

    levels: int
    log_counts: np.ndarray | None

    @property
    def prior_range(self) -> float:
        """The largest difference between the log-priors of two levels at one position."""
        return 0.0 if self.log_counts is None else float(np.max(np.ptp(self.log_counts, -1)))

    def log_priors(self, mean: Data) -> Reals:
        """Return the log-prior of all levels, [*d or 1…, K]."""
        prior = jnp.asarray(self.log_counts, mean.dtype)
        return prior.reshape((1,) * (mean.ndim + 1 - prior.ndim) + prior.shape)

    def log_prior(self, level: Array, mean: Data) -> Reals:
        """Return the log-prior of one level for each position, [*d]."""
        index = level.astype(jnp.int32)[..., None]
        return jnp.take_along_axis(self.log_priors(mean), index, -1)[..., 0]

    def relative_log_likelihood(
        self, level: Reals, reference: Reals, mean: Reals, precision: Reals
    ) -> Reals:
        """Return the log-likelihood of `level` relative to that of the level `reference`, elementwise."""
        # a product: with the difference of two squares, each far larger, the probabilities would not sum to one
        # in float32
        middle = (level + reference + 1) / self.levels - 1
        relative = precision * (mean - middle) * (level - reference) * (2 / self.levels)
        # the selection keeps compilers from fusing the product into the subtraction of the maximum, where
        # scores of 1e26 would differ from themselves by 1e19
        return jnp.where(level == reference, 0, relative)

    def logits(self, reference: Array, mean: Data, log_var: Reals) -> Reals:
        """Return the logits of all levels relative to that of the level `reference` [*d], [*d, K]."""
        reference = reference.astype(mean.dtype)
        precision = jnp.exp(-jnp.broadcast_to(log_var, mean.shape))
        level = jnp.arange(self.levels, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
        relative = self.relative_log_likelihood(
            level, reference[..., None], mean[..., None], precision[..., None]
        )
        if self.log_counts is None:
            return relative
        return relative + self.log_priors(mean) - self.log_prior(reference, mean)[..., None]

    def log_prob_all(self, level: Array, mean: Data, log_var: Reals) -> Scalar:
        """Return log P(level), summed over the positions, normalised over all levels."""
        # the logit of the reference is 0
        return -jnp.sum(jax.nn.logsumexp(self.logits(level, mean, log_var), -1))

    def log_prob_near(self, level: Array, mean: Data, log_var: Reals) -> Scalar:
        """Return log P(level), summed over the positions, normalised over the `NEAR` levels around the mean."""
        level, precision = level.astype(mean.dtype), jnp.exp(-log_var)
        first = jnp.clip(nearest_level(mean, self.levels) - NEAR // 2, 0, self.levels - NEAR)

        def logit(near):
            relative = self.relative_log_likelihood(near, level, mean, precision)
            if self.log_counts is None:
                return relative
            return relative + self.log_prior(near, mean) - self.log_prior(level, mean)

        # one array per level, because XLA:CPU does not vectorise along a short last axis
        logits = [logit(first + i) for i in range(NEAR)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
        nats = jnp.ravel(top + jnp.log(sum(jnp.exp(logit - top) for logit in logits)))
        # a dot product, because XLA:CPU vectorises neither a sum nor the operations fused into it
        return -jnp.dot(nats, jnp.ones_like(nats), precision="highest")

    def near_is_enough(self, dtype: DTypeLike, log_var: Scalar) -> Bool[Array, ""]:
        """Return True if the levels beyond the `NEAR` ones are lost in the rounding of the sum."""
        # i spacings away from the nearest level, a logit is smaller by at least i (i − 1) half_square
        half_square = 2 / self.levels**2 * jnp.exp(-log_var)
        beyond = (NEAR // 2 + 1) * (NEAR // 2) * half_square
        return beyond > self.prior_range - math.log(jnp.finfo(dtype).eps / 4)


def _softmax(name: str, levels: int, log_counts: np.ndarray | None = None) -> Likelihood:
    """Return the likelihood with Gaussian scores and a log-prior over the levels."""
    values = level_values(levels)
    encode, decode = level_codec(levels, name)
    scores = _Scores(levels, log_counts)

    # without checkpoints, a conditional would keep the residuals of both of its branches
    @jax.checkpoint
    def log_prob_near(level, mean, log_var):
        return scores.log_prob_near(level, mean, log_var)

    @jax.checkpoint
    def log_prob_all(level, mean, log_var):
        return scores.log_prob_all(level, mean, log_var)

    def log_prob(x, mean, log_var):
        level = as_levels(x, levels, name)
        if levels <= NEAR or jnp.ndim(log_var) > 0:
            return scores.log_prob_all(level, mean, log_var)
        near_is_enough = scores.near_is_enough(mean.dtype, log_var)
        return jax.lax.cond(near_is_enough, log_prob_near, log_prob_all, level, mean, log_var)

    def sample(key, mean, log_var):
        logits = scores.logits(decode(mean), mean, log_var)
        return jax.random.categorical(key, logits, axis=-1).astype(stored_type(levels))

    def expected(mean, log_var):
        mass = jax.nn.softmax(scores.logits(decode(mean), mean, log_var), -1)
        return mass @ jnp.asarray(values, mean.dtype)

    return Likelihood(
        encode, decode, log_prob, sample, expected, uses_prediction=False, levels=levels
    )
