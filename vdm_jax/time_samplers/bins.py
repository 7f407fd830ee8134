"""Densities that are constant on K bins of the training times, and draws from them, eq. (37), (38).

The bins divide the unit interval, or the steps of a chain into consecutive groups. Probabilities are whole
multiples of 2⁻²⁰, so that the weights are exact and the mean over the draws is unbiased to the last bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import MAX_STEPS, real_number, whole_number
from vdm_jax.elbo import draw_times
from vdm_jax.time_samplers.base import TimeSample, TrainingPath
from vdm_jax.typing import Array, Float, Int, Key, Real, Reals

NODES = 8  # points of a bin over which an expected loss is averaged
GRAIN = 2.0**-20  # probabilities are whole multiples of it, so that float32 sums of them are exact
LARGEST = 1e15  # larger losses are clipped, so that their squares stay in the range of float32


def check_bins(bins: int, mix: float) -> None:
    """Raise ValueError for a number of bins or a uniform part that a density cannot have."""
    whole_number(bins, "bins", 1, MAX_STEPS)
    real_number(mix, "mix", "a number in (0, 1]", lambda value: 0 < value <= 1)
    if mix / bins < 16 * GRAIN:
        raise ValueError(
            f"mix: expected at least bins / 2**16 = {bins / 2**16:.2g}, so that each of the "
            f"{bins} bins is drawn at times, found {mix!r}"
        )


def bin_edges(bins: int, timesteps: int | None) -> np.ndarray:
    """Return the edges [K + 1] of the bins: times in [0, 1], or the first step of each bin of a chain, and T.

    A chain has at most T bins, because each has at least one step.
    """
    if timesteps is None:
        return np.arange(bins + 1) / bins
    bins = min(bins, timesteps)
    return np.arange(bins + 1) * timesteps // bins


def expected_moments(path: TrainingPath, bins: int) -> Float[Array, " K"]:
    """Return E[L² | bin] [K] of a network whose output is zero."""
    return mean_square(path.expected_loss, bins, path.timesteps)


def mean_square(
    loss: Callable[[Array], Array], bins: int, timesteps: int | None
) -> Float[Array, " K"]:
    """Return the mean of L² in each bin [K] by the mid-point rule, for an expected loss L of the time.

    Args:
      loss: times, or steps of a chain, [n] -> [n].
      bins: K.
      timesteps: T of a chain, or None for continuous time.
    """
    edges = bin_edges(bins, timesteps)
    bin, node = jnp.arange(len(edges) - 1)[:, None], jnp.arange(NODES, dtype=float)[None]
    times = _place(edges, bin, (node + 0.5) / NODES)
    losses = _bounded(loss(times.ravel())).reshape(times.shape)
    # the density passes no gradient to the params that the expected loss depends on
    return jax.lax.stop_gradient(jnp.mean(jnp.square(losses), 1))


def bin_probabilities(
    mass: Float[Array, " K"] | Int[Array, " K"], mix: Real, timesteps: int | None
) -> Float[Array, " K"]:
    """Return the probabilities of the bins, proportional to a mass and mixed with a uniform part.

    Args:
      mass: the mass of each bin, at least 0. If the sum is zero or not finite, the density is uniform.
      mix: the uniform part, in [0, 1].
      timesteps: T of a chain, or None for continuous time.

    Raises:
      ValueError: there are more bins than steps of the chain.

    Examples:
      >>> from vdm_jax.time_samplers import bin_probabilities
      >>> print(bin_probabilities(jnp.asarray([1.0, 3.0]), 0.5, None))
      [0.375 0.625]
    """
    if timesteps is not None and len(mass) > timesteps:
        raise ValueError(f"bins: expected at most timesteps = {timesteps}, found {len(mass)}")
    mass = _promoted(mass)
    share = jnp.asarray(shares(bin_edges(len(mass), timesteps)), mass.dtype)
    total = jnp.sum(mass)
    is_valid = jnp.isfinite(total) & (total > 0)
    fraction = jnp.where(is_valid, mass / jnp.where(is_valid, total, 1.0), share)
    # the distribution function is rounded, not its differences, so that the probabilities sum to exactly 1
    upper = jnp.round(jnp.cumsum((1 - mix) * fraction + mix * share) / GRAIN) * GRAIN
    upper = upper.at[-1].set(1.0)
    return jax.lax.stop_gradient(jnp.diff(upper, prepend=jnp.zeros((1,), upper.dtype)))


def draw_weighted(
    key: Key, phase: Real, probability: Float[Array, " K"], timesteps: int | None
) -> TimeSample:
    """Draw times from a density that is constant on bins, stratified as in `draw_times`, eq. (37).

    Args:
      key: one key for the batch.
      phase: in [0, 1), elementwise.
      probability: of each bin, from `bin_probabilities`.
      timesteps: T of a chain, or None for continuous time.

    Examples:
      >>> from vdm_jax.time_samplers import draw_weighted
      >>> phase = jnp.arange(8) / 8
      >>> sample = draw_weighted(jax.random.key(0), phase, jnp.asarray([0.25, 0.75]), None)
      >>> sorted(sample.bin.tolist()), sample.weight.mean().round(3).tolist()
      ([0, 0, 1, 1, 1, 1, 1, 1], 1.0)
    """
    edges = bin_edges(len(probability), timesteps)
    key, fine_key = jax.random.split(key)
    u = draw_times(key, phase, None)
    upper = jnp.cumsum(probability)
    bin = jnp.searchsorted(upper, u, side="right", method="compare_all")
    bin_probability, spacing = probability[bin], jnp.finfo(u.dtype).eps
    # random digits below those of u: in a rare bin, u has too few digits to reach all steps of a long chain
    fine = jax.random.uniform(fine_key, (), u.dtype) * spacing
    lower = upper[bin] - bin_probability
    fraction = jnp.minimum((u - lower + fine) / bin_probability, 1 - spacing)
    share = jnp.asarray(shares(edges), probability.dtype)[bin]
    return TimeSample(_place(edges, bin, fraction), share / bin_probability, bin, bin_probability)


def updated_moments(
    moments: Float[Array, " K"], sample: TimeSample, loss: Float[Array, " B"], rate: Real
) -> Float[Array, " K"]:
    """Move running averages of L² in each bin towards the squared losses of a batch.

    Average k changes by the mean over the batch of rate · (L² − average) / max(p_k, 1/K), where draws outside
    bin k count as 0. As a mean over the batch it can be computed on several devices, and its expectation is
    zero at average = E[L² | bin]. Rare bins move more slowly, so that the averages stay in the range of the
    observed squares if rate · (1 + K/B) ≤ 1 for the global batch B. Otherwise an average may fall below zero,
    and then counts as zero.

    Args:
      moments: the averages.
      sample: from `draw_weighted`.
      loss: without the importance weights and of order one: nats per dimension.
      rate: in (0, 1].
    """
    assert sample.bin is not None and sample.probability is not None
    moments = jnp.maximum(moments, 0)
    scale = rate / jnp.maximum(sample.probability, 1 / len(moments))
    change = scale * (jnp.square(_bounded(loss)) - moments[sample.bin]) / len(loss)
    # the changes are summed before they are added to the larger averages, which loses fewer digits
    total = jnp.zeros_like(moments).at[sample.bin].add(change)
    return jax.lax.stop_gradient(moments + total)


def best_mass(moments: Float[Array, " K"], edges: np.ndarray) -> Float[Array, " K"]:
    """Return the mass of each bin under the optimal density, eq. (38), from E[L² | bin]."""
    moments = _promoted(moments)
    return jnp.sqrt(jnp.maximum(moments, 0)) * jnp.asarray(shares(edges), moments.dtype)


def _promoted(values: Array) -> Array:
    """Return values as float32 or wider; half precision cannot represent the multiples of `GRAIN`."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def shares(edges: np.ndarray) -> np.ndarray:
    """Return the probability of each bin under the uniform density."""
    return np.diff(edges) / edges[-1]


def _place(edges: np.ndarray, bin: Array, fraction: Array) -> Array:
    """Return the time, or the step of a chain, at a fraction in [0, 1) of its bin."""
    dtype = fraction.dtype
    firsts, sizes = edges[:-1], np.diff(edges)
    if not np.issubdtype(edges.dtype, np.integer):
        return jnp.asarray(firsts, dtype)[bin] + jnp.asarray(sizes, dtype)[bin] * fraction
    # only the offset in the bin is computed in float32, which cannot represent the steps of a long chain
    size = jnp.asarray(sizes, jnp.int32)[bin]
    offset = jnp.minimum(jnp.floor(fraction * size.astype(dtype)).astype(jnp.int32), size - 1)
    return jnp.asarray(firsts, jnp.int32)[bin] + offset


def _bounded(loss: Reals) -> Reals:
    """Clip losses to the range that float32 can square."""
    return jnp.minimum(loss, LARGEST)
