"""Gradients of the training losses of a sweep by noise level: norms, noise and directions."""

from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.comparison.measure import everywhere, keys, known_mean, per_noise_level
from vdm_jax.data import Split, train_batches
from vdm_jax.runs.sweep import Sweep
from vdm_jax.typing import Array, PyTree


class Gradients(NamedTuple):
    """Gradients of the training loss by bin of γ; those of the bins add up to the gradient of the loss.

    Attributes:
      norm: [V, S, K], norm of the expected gradient; NaN where its squared estimate is not positive.
      deviation: [V, S, K], root of the variance of one batch's gradient, summed over the parameters.
      total_norm, total_deviation: [V, S], norm and deviation for the sum over the bins.
      between_bins: [V, S, K, K], cosines between the expected gradients of two bins of a variant.
      between_variants: [K, V, V], cosines between those of two variants in a bin, averaged over the seeds; they
        can be compared before training, when the variants have the same weights.

    Inner products of expected gradients are estimated from pairs of different batches, so that the noise of
    the batches does not bias them. A cosine is NaN if the squared norm of one of its gradients is below the
    noise.
    """

    norm: np.ndarray
    deviation: np.ndarray
    total_norm: np.ndarray
    total_deviation: np.ndarray
    between_bins: np.ndarray
    between_variants: np.ndarray


def gradients(
    sweep: Sweep,
    at: list[tuple[PyTree, PyTree]],
    split: Split,
    edges: np.ndarray,
    *,
    batches: int,
    batch_size: int,
) -> list[Gradients]:
    """Return gradients of the training loss by bin, from batches that all runs share.

    Two gradients of every bin are kept: 2 K times the memory of the parameters of all runs.

    Args:
      sweep: the runs.
      at: (params, model states) at which to evaluate, trees of arrays [V, S, ...]; a result for each.
      split: data of the batches.
      edges: [K + 1], edges of the bins of γ.
      batches: number of batches, at least 2.
      batch_size: examples of a batch.
    """

    def bin_gradient(model, weights, key, batch, bin):
        params, model_state = weights
        parts = per_noise_level(model)
        return jax.grad(lambda p: parts.loss(p, key, batch, edges, model_state)[bin])(params)

    run, seed_keys = everywhere(sweep, bin_gradient, shared=2), keys(sweep, "train")
    data = train_batches(
        split, batch_size=batch_size, seed=0, start_step=0, stop_step=batches, stack=batches
    )
    stack = next(data)
    data.close()  # type: ignore[attr-defined]
    results = []
    for weights in at:
        totals: list[PyTree] = []
        bins_each, variants_each = np.zeros(()), np.zeros(())
        for i in range(batches):
            batch_keys = jax.vmap(jax.random.fold_in, (0, None))(seed_keys, i)
            batch = jax.tree.map(itemgetter(i), stack)
            # the bin is an argument, so that one program serves all bins
            each = [run(weights, batch_keys, batch, bin) for bin in range(len(edges) - 1)]
            bins_each = bins_each + np.asarray(_gram(each), np.float64)
            variants_each = variants_each + np.stack([np.asarray(_pairs(g), float) for g in each])
            totals = each if not totals else [_add(a, b) for a, b in zip(totals, each, strict=True)]
        bins_all = np.asarray(_gram(totals), np.float64)
        variants_all = np.stack([np.asarray(_pairs(g), float) for g in totals])
        results.append(_gradients(bins_each, bins_all, variants_each, variants_all, batches))
    return results


def _gradients(
    bins_each: np.ndarray,
    bins_all: np.ndarray,
    variants_each: np.ndarray,
    variants_all: np.ndarray,
    batches: int,
) -> Gradients:
    """Estimate norms, deviations and cosines from inner products of gradients.

    With g_i the gradient of batch i, `each` are Σ_i ⟨g_i, g_i⟩ and `all` are ⟨Σ_i g_i, Σ_i g_i⟩, so that their
    difference has the pairs of different batches alone.

    Args:
      bins_each, bins_all: inner products of bins, [V, S, K, K].
      variants_each, variants_all: inner products of variants, [K, S, V, V].
      batches: number of batches.
    """

    def expected(each, all_):
        return (all_ - each) / (batches * (batches - 1))

    def variance(each, all_):
        return ((each - all_ / batches) / (batches - 1)).clip(0)

    def mask_noise(products, each, all_):
        """Set products to NaN if a squared norm is below the variance of the mean over the batches."""
        square = np.diagonal(products, axis1=-2, axis2=-1)
        noise = np.diagonal(variance(each, all_), axis1=-2, axis2=-1) / batches
        clear = square > noise
        return np.where(clear[..., :, None] & clear[..., None, :], products, np.nan)

    products, spread = expected(bins_each, bins_all), variance(bins_each, bins_all)
    across = expected(variants_each, variants_all)
    # the gradient of the loss is the sum over the bins, and so are its inner products
    total_each, total_all = bins_each.sum((-2, -1)), bins_all.sum((-2, -1))
    return Gradients(
        norm=_root(np.diagonal(products, axis1=-2, axis2=-1)),
        deviation=np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1)),
        total_norm=_root(expected(total_each, total_all)),
        total_deviation=np.sqrt(variance(total_each, total_all)),
        between_bins=cosines(mask_noise(products, bins_each, bins_all)),
        between_variants=known_mean(cosines(mask_noise(across, variants_each, variants_all)), 1),
    )


def _root(square: np.ndarray) -> np.ndarray:
    """Return the square root, NaN for estimates that are not positive."""
    return np.sqrt(np.where(square > 0, square, np.nan))


@jax.jit
def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


@jax.jit
def _gram(trees: list[PyTree]) -> Array:
    """Return the inner products [V, S, K, K] of K trees of arrays [V, S, ...]."""
    leaves = [jax.tree.leaves(tree) for tree in trees]
    rows = [jnp.stack([_inner("vsp,vsp->vs", a, b) for b in leaves], -1) for a in leaves]
    return jnp.stack(rows, -2)


@jax.jit
def _pairs(tree: PyTree) -> Array:
    """Return the inner products [S, V, V] of the variants of one tree of arrays [V, S, ...]."""
    leaves = jax.tree.leaves(tree)
    return _inner("vsp,wsp->svw", leaves, leaves)


def _inner(axes: str, a: list[Array], b: list[Array]) -> Array:
    """Return einsums of arrays [V, S, ...] with flattened parameters p, summed over the arrays."""
    flat = [[leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves] for leaves in (a, b)]
    return sum(jnp.einsum(axes, x, y) for x, y in zip(*flat, strict=True))  # type: ignore[return-value]


def cosines(products: np.ndarray) -> np.ndarray:
    """Return cosines [..., n, n] from estimated inner products; NaN where a squared norm is not positive."""
    norm = _root(np.diagonal(products, axis1=-2, axis2=-1))
    # estimates may leave the range of a cosine
    return (products / (norm[..., :, None] * norm[..., None, :])).clip(-1, 1)
