"""Which times a training step draws: importance sampling over t, eq. (24), (25).

    E_t L(t) = E_u[w L(t(u))],   t = F⁻¹(u),   w = 1/p(t)                                   (24)
    its variance is least for    p(t) ∝ √E[L² | t]                                         (25)

The density p is constant on K bins of the unit interval, or on K runs of consecutive steps of a chain, and
mixed with a uniform one, which bounds the weights. It decides where draws are spent and never what is
estimated: every density gives the same expectation. u is that of eq. (15), stratified over the global batch.

    uniform     p = 1: no weights
    analytic    (25) of a network whose output is zero, which is known before training: its error is the base's
    learned     (25) of running averages of L² in each bin, which start there

In high dimension L is nearly the same for all examples of a time, so that √E[L² | t] is close to E[L | t].
Sources: Kingma et al. 2021 (15); Nichol & Dhariwal 2021 (p ∝ √E[L²], from the last losses of each step).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.elbo import check_steps, draw_times
from vdm_jax.typing import Array, Float, Int, Key, Real, Reals, Scalar

RUNNING = "running_averages"
"""The part of a model's params that holds them: their "gradient" is the step they take, which `make_step` takes
off them and hides from the optimizer."""

NODES = 8  # of a bin, at which an expected loss is averaged
GRAIN = 2.0**-20  # probabilities are whole multiples of it, so that float32 sums of them are exact
LARGEST = 1e15  # of the losses that are squared in float32


class Times(NamedTuple):
    """How training spreads its draws over the times; a row of `TIMES`.

    Attributes:
      bins: K on which the density is constant, or None for the uniform density.
      mix: the part of the draws that is spread uniformly, so that no weight exceeds about 1/mix.
      rate: of the running averages, or None for a density that is not learned.
    """

    bins: int | None = None
    mix: float = 1.0
    rate: float | None = None


class Drawn(NamedTuple):
    """Times and what they count, elementwise.

    Attributes:
      t: as `training_interval` takes them: in [0, 1], or the steps of a chain.
      bin: which they lie in; None of uniform times, which have none.
      weight: w, the ratio of the uniform density to that of the draw, of mean 1; None where it is 1 throughout.
    """

    t: Array
    bin: Int[Array, "..."] | None = None
    weight: Reals | None = None


def uniform() -> Times:
    """Stratified and uniform, eq. (15)."""
    return Times()


def analytic(*, bins: int = 64, mix: float = 0.1) -> Times:
    """The best density of a network whose output is zero, as it is before training.

    Raises:
      ValueError: fewer bins than one; mix outside (0, 1], or so small that float32 never draws some bin.
    """
    return _checked(Times(bins, mix))


def learned(*, bins: int = 64, mix: float = 0.1, rate: float = 0.02) -> Times:
    """The best density of the losses that were seen, averaged in each bin over about 1/rate steps.

    With batches of much less than rate · bins examples, one draw moves the average of its bin past what it saw.

    Raises:
      ValueError: as `analytic`; rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate: expected a number in (0, 1], found {rate!r}")
    return _checked(Times(bins, mix, rate))


TIMES: dict[str, Callable[..., Times]] = {
    "uniform": uniform,
    "analytic": analytic,
    "learned": learned,
}
"""name -> factory of `Times`."""


def _checked(times: Times) -> Times:
    check_steps(times.bins, "bins: expected a whole number of at least 1")
    if not 0 < times.mix <= 1:
        raise ValueError(f"mix: expected a number in (0, 1], found {times.mix!r}")
    if times.bins and times.mix / times.bins < 16 * GRAIN:
        raise ValueError(
            f"mix: expected at least bins / 2**16 = {times.bins / 2**16:.2g}, so that each of the "
            f"{times.bins} bins is drawn at times, found {times.mix!r}"
        )
    return times


def bin_edges(bins: int, timesteps: int | None) -> np.ndarray:
    """Edges [K + 1] of the bins: times in [0, 1], or the first step of each bin of a chain, and T.

    A chain has at most T bins, of whole steps.
    """
    if timesteps is None:
        return np.arange(bins + 1) / bins
    bins = min(bins, timesteps)
    return np.arange(bins + 1) * timesteps // bins


def _shares(edges: np.ndarray) -> np.ndarray:
    """The uniform density's probability of each bin."""
    return np.diff(edges) / edges[-1]


def _place(edges: np.ndarray, bin: Array, part: Array) -> Array:
    """The time, or the step, that has a `part` in [0, 1) of its bin before it."""
    first, size = edges[:-1], np.diff(edges)
    if not np.issubdtype(edges.dtype, np.integer):
        return jnp.asarray(first, part.dtype)[bin] + jnp.asarray(size, part.dtype)[bin] * part
    # relative to the bin: steps of a long chain are told apart by integers, not by float32
    size = jnp.asarray(size, jnp.int32)[bin]
    inside = jnp.minimum(jnp.floor(part * size).astype(jnp.int32), size - 1)
    return jnp.asarray(first, jnp.int32)[bin] + inside


def mean_square(loss: Callable[[Array], Array], bins: int, timesteps: int | None) -> Array:
    """E[L² | bin] of an expected loss of the time, by a mid-point rule; [K].

    Args:
      loss: times, or steps of a chain, [n] -> [n].
      bins: K.
      timesteps: of the chain, or None.
    """
    edges = bin_edges(bins, timesteps)
    bin, node = jnp.arange(len(edges) - 1)[:, None], jnp.arange(NODES)[None]
    at = _place(edges, bin, (node + 0.5) / NODES)
    found = _bounded(loss(at.ravel())).reshape(at.shape)
    return jax.lax.stop_gradient(jnp.mean(jnp.square(found), 1))


def probabilities(
    moments: Float[Array, " K"], mix: float, timesteps: int | None
) -> Float[Array, " K"]:
    """Probabilities of the bins, ∝ √moments of eq. (25), mixed with a uniform part.

    Args:
      moments: E[L² | bin]. Where they say nothing, all zero or not finite, the density is uniform.
      mix: the uniform part.
      timesteps: of the chain, or None.

    Examples:
      >>> from vdm_jax.times import probabilities
      >>> print(probabilities(jnp.asarray([1.0, 9.0]), 0.5, None))
      [0.375 0.625]
    """
    # half precision has no multiples of GRAIN
    moments = moments.astype(jnp.promote_types(moments.dtype, jnp.float32))
    share = jnp.asarray(_shares(bin_edges(len(moments), timesteps)), moments.dtype)
    own = jnp.sqrt(jnp.maximum(moments, 0)) * share
    total = jnp.sum(own)
    known = jnp.isfinite(total) & (total > 0)
    own = jnp.where(known, own / jnp.where(known, total, 1.0), share)
    upper = jnp.round(jnp.cumsum((1 - mix) * own + mix * share) / GRAIN) * GRAIN
    upper = upper.at[-1].set(1.0)
    return jax.lax.stop_gradient(jnp.diff(upper, prepend=jnp.zeros((1,), upper.dtype)))


def draw_weighted(
    key: Key, phase: Real, chances: Float[Array, " K"], timesteps: int | None
) -> Drawn:
    """Draw times of a density that is constant on bins, stratified as `draw_times` does, eq. (24).

    Args:
      key: one for the batch.
      phase: in [0, 1), elementwise.
      chances: of `probabilities`.
      timesteps: of the chain, or None.

    Examples:
      >>> from vdm_jax.times import draw_weighted
      >>> phase = jnp.arange(8) / 8
      >>> drawn = draw_weighted(jax.random.key(0), phase, jnp.asarray([0.25, 0.75]), None)
      >>> sorted(drawn.bin.tolist()), drawn.weight.mean().round(3).tolist()
      ([0, 0, 1, 1, 1, 1, 1, 1], 1.0)
    """
    edges = bin_edges(len(chances), timesteps)
    key, fine_key = jax.random.split(key)
    u = draw_times(key, phase, None)
    upper = jnp.cumsum(chances)
    bin = jnp.searchsorted(upper, u, side="right", method="compare_all")
    chance, eps = chances[bin], jnp.finfo(u.dtype).eps
    # the digits that u lacks: those that are left of it in a rare bin do not reach all steps of a long chain
    fine = jax.random.uniform(fine_key, (), u.dtype) * eps
    part = jnp.minimum((u - (upper[bin] - chance) + fine) / chance, 1 - eps)
    share = jnp.asarray(_shares(edges), chances.dtype)[bin]
    return Drawn(_place(edges, bin, part), bin, share / chance)


def follow(
    estimates: Float[Array, " K"],
    drawn: Drawn,
    loss: Float[Array, " B"],
    chances: Float[Array, " K"],
    rate: float,
) -> Scalar:
    """A term of value 0 whose gradient moves running averages towards the squared losses of a batch.

    The step of estimate k is the mean over the batch of rate · (estimate − L²) / max(chance, 1/K) over the
    draws in bin k: an average over the batch, so that it may be divided over devices, and zero in expectation
    where estimate = E[L² | bin]. Rare bins move more slowly, and with it no estimate leaves the range of
    what was observed if rate · (1 + K/B) ≤ 1 for the global batch B.

    Args:
      estimates: to differentiate by; take the gradient itself off them, as `RUNNING` says.
      drawn, chances: of `draw_weighted`.
      loss: without the weights, of order one: nats per dimension.
      rate: in (0, 1].
    """
    here = estimates[drawn.bin]
    step = rate / jnp.maximum(chances, 1 / len(chances))[drawn.bin]
    off = jax.lax.stop_gradient(step * (here - jnp.square(_bounded(loss))))
    # each factor is zero, not their difference: squares near the end of float32 have no product
    return jnp.mean(off * (here - jax.lax.stop_gradient(here)))


def _bounded(loss: Any) -> Array:
    """What float32 can square."""
    return jnp.minimum(loss, LARGEST)
