"""Densities that are constant on K bins of the training times, and draws from them, eq. (24), (25).

The bins divide the unit interval, or the steps of a chain into runs of consecutive ones. Probabilities are
whole multiples of 2⁻²⁰, so that the weights are exact and the mean over the draws is unbiased to the last bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import MAX_STEPS, real_number, whole_number
from vdm_jax.elbo import draw_times
from vdm_jax.time_samplers.base import TimeSample, TrainingPath
from vdm_jax.typing import Array, Float, Int, Key, Real

NODES = 8  # of a bin, at which an expected loss is averaged
GRAIN = 2.0**-20  # probabilities are whole multiples of it, so that float32 sums of them are exact
LARGEST = 1e15  # of the losses that are squared in float32


def check_bins(bins: Any, mix: Any) -> None:
    """Raise ValueError for bins or a uniform part that no density can have."""
    whole_number(bins, "bins", 1, MAX_STEPS)
    real_number(mix, "mix", "a number in (0, 1]", lambda value: 0 < value <= 1)
    if mix / bins < 16 * GRAIN:
        raise ValueError(
            f"mix: expected at least bins / 2**16 = {bins / 2**16:.2g}, so that each of the "
            f"{bins} bins is drawn at times, found {mix!r}"
        )


def bin_edges(bins: int, timesteps: int | None) -> np.ndarray:
    """Edges [K + 1] of the bins: times in [0, 1], or the first step of each bin of a chain, and T.

    A chain has at most T bins, of whole steps.
    """
    if timesteps is None:
        return np.arange(bins + 1) / bins
    bins = min(bins, timesteps)
    return np.arange(bins + 1) * timesteps // bins


def expected_moments(path: TrainingPath, bins: int) -> Float[Array, " K"]:
    """Return E[L² | bin] of a network whose output is zero, [K]."""
    return mean_square(path.expected_loss, bins, path.timesteps)


def mean_square(
    loss: Callable[[Array], Array], bins: int, timesteps: int | None
) -> Float[Array, " K"]:
    """Return E[L² | bin] of an expected loss of the time, by a mid-point rule; [K].

    Args:
      loss: times, or steps of a chain, [n] -> [n].
      bins: K.
      timesteps: of the chain, or None.
    """
    edges = bin_edges(bins, timesteps)
    bin, node = jnp.arange(len(edges) - 1)[:, None], jnp.arange(NODES, dtype=float)[None]
    times = _place(edges, bin, (node + 0.5) / NODES)
    losses = _bounded(loss(times.ravel())).reshape(times.shape)
    return jax.lax.stop_gradient(jnp.mean(jnp.square(losses), 1))


def bin_probabilities(
    mass: Float[Array, " K"] | Int[Array, " K"], mix: Real, timesteps: int | None
) -> Float[Array, " K"]:
    """Return the probabilities of the bins, in proportion to a mass and mixed with a uniform part.

    Args:
      mass: of each bin, at least 0. Where it says nothing, all zero or not finite, the density is uniform.
      mix: the uniform part.
      timesteps: of the chain, or None.

    Raises:
      ValueError: more bins than the chain has steps.

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
    known = jnp.isfinite(total) & (total > 0)
    part = jnp.where(known, mass / jnp.where(known, total, 1.0), share)
    upper = jnp.round(jnp.cumsum((1 - mix) * part + mix * share) / GRAIN) * GRAIN
    upper = upper.at[-1].set(1.0)
    return jax.lax.stop_gradient(jnp.diff(upper, prepend=jnp.zeros((1,), upper.dtype)))


def draw_weighted(
    key: Key, phase: Real, probability: Float[Array, " K"], timesteps: int | None
) -> TimeSample:
    """Draw times of a density that is constant on bins, stratified as `draw_times` does, eq. (24).

    Args:
      key: one for the batch.
      phase: in [0, 1), elementwise.
      probability: of each bin, from `bin_probabilities`.
      timesteps: of the chain, or None.

    Examples:
      >>> from vdm_jax.time_samplers import draw_weighted
      >>> phase = jnp.arange(8) / 8
      >>> drawn = draw_weighted(jax.random.key(0), phase, jnp.asarray([0.25, 0.75]), None)
      >>> sorted(drawn.bin.tolist()), drawn.weight.mean().round(3).tolist()
      ([0, 0, 1, 1, 1, 1, 1, 1], 1.0)
    """
    edges = bin_edges(len(probability), timesteps)
    key, fine_key = jax.random.split(key)
    u = draw_times(key, phase, None)
    upper = jnp.cumsum(probability)
    bin = jnp.searchsorted(upper, u, side="right", method="compare_all")
    chosen, eps = probability[bin], jnp.finfo(u.dtype).eps
    # the digits that u lacks: those that are left of it in a rare bin do not reach all steps of a long chain
    fine = jax.random.uniform(fine_key, (), u.dtype) * eps
    part = jnp.minimum((u - (upper[bin] - chosen) + fine) / chosen, 1 - eps)
    share = jnp.asarray(shares(edges), probability.dtype)[bin]
    return TimeSample(_place(edges, bin, part), share / chosen, bin, chosen)


def updated_moments(
    moments: Float[Array, " K"], sample: TimeSample, loss: Float[Array, " B"], rate: Real
) -> Float[Array, " K"]:
    """Move running averages of L² in each bin towards the squared losses of a batch.

    The step of estimate k is the mean over the batch of rate · (L² − estimate) / max(p_k, 1/K) over the draws
    in bin k: an average over the batch, so that it may be divided over devices, and zero in expectation where
    estimate = E[L² | bin]. Rare bins move more slowly, so that no estimate leaves the range of the observed
    squares if rate · (1 + K/B) ≤ 1 for the global batch B. Beyond that, an estimate may fall below zero, and
    then counts as zero.

    Args:
      moments: the averages.
      sample: of `draw_weighted`.
      loss: without the weights, of order one: nats per dimension.
      rate: in (0, 1].
    """
    assert sample.bin is not None and sample.probability is not None
    moments = jnp.maximum(moments, 0)
    step = rate / jnp.maximum(sample.probability, 1 / len(moments))
    change = step * (jnp.square(_bounded(loss)) - moments[sample.bin]) / len(loss)
    total = (
        jnp.zeros_like(moments).at[sample.bin].add(change)
    )  # summed before they are added: less rounding
    return jax.lax.stop_gradient(moments + total)


def best_mass(moments: Float[Array, " K"], edges: np.ndarray) -> Float[Array, " K"]:
    """Return the mass of the bins of the best density, eq. (25), from E[L² | bin]."""
    moments = _promoted(moments)
    return jnp.sqrt(jnp.maximum(moments, 0)) * jnp.asarray(shares(edges), moments.dtype)


def _promoted(values: Array) -> Array:
    """Return values as float32 at least; half precision has no multiples of `GRAIN`."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def shares(edges: np.ndarray) -> np.ndarray:
    """Return the uniform density's probability of each bin."""
    return np.diff(edges) / edges[-1]


def _place(edges: np.ndarray, bin: Array, part: Array) -> Array:
    """Return the time, or the step, at the fraction `part` in [0, 1) of its bin."""
    first, size = edges[:-1], np.diff(edges)
    if not np.issubdtype(edges.dtype, np.integer):
        return jnp.asarray(first, part.dtype)[bin] + jnp.asarray(size, part.dtype)[bin] * part
    # relative to the bin: steps of a long chain are told apart by integers, not by float32
    size = jnp.asarray(size, jnp.int32)[bin]
    inside = jnp.minimum(jnp.floor(part * size.astype(part.dtype)).astype(jnp.int32), size - 1)
    return jnp.asarray(first, jnp.int32)[bin] + inside


def _bounded(loss: Any) -> Array:
    """Clip losses to the range that float32 can square."""
    return jnp.minimum(loss, LARGEST)
