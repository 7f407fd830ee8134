"""The gradients of the training losses of a sweep, by noise level: their norms, noise and directions."""

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
    """Gradients of the training loss by bin of γ; the bins' gradients add up to the gradient.

    Attributes:
      norm: [V, S, K], of the expected gradient; NaN where the batches' noise hides it.
      deviation: [V, S, K], root of the variance of one batch's gradient, summed over the parameters.
      total_norm, total_deviation: [V, S], the same of the whole loss.
      between_bins: [V, S, K, K], cosines of the expected gradients of two bins of a variant.
      between_variants: [K, V, V], cosines of those of two variants in a bin, mean over the seeds; they are
        comparable where the variants have the same weights, before training.

    Inner products of expected gradients are estimated from pairs of different batches, so that the noise of
    the batches adds to none of them; cosines are NaN where it is larger than one of the two.
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
    """Return gradients of the training loss by bin, over some batches that all runs share, at some weights.

    Args:
      at: params and model states, trees of arrays [V, S, ...].
      batches: at least 2.

    Two gradients of every bin are kept: 2 K times the memory of the parameters of all runs.
    """

    def one(model, weights, key, batch, bin):
        params, model_state = weights
        parts = per_noise_level(model)
        return jax.grad(lambda p: parts.loss(p, key, batch, edges, model_state)[bin])(params)

    run, of_seeds = everywhere(sweep, one, shared=2), keys(sweep, "train")
    data = train_batches(
        split, batch_size=batch_size, seed=0, start_step=0, stop_step=batches, stack=batches
    )
    stack = next(data)
    data.close()  # type: ignore[attr-defined]
    found = []
    for weights in at:
        totals: list[PyTree] = []
        bins_each, variants_each = np.zeros(()), np.zeros(())
        for i in range(batches):
            own = jax.vmap(jax.random.fold_in, (0, None))(of_seeds, i)
            batch = jax.tree.map(itemgetter(i), stack)
            each = [run(weights, own, batch, bin) for bin in range(len(edges) - 1)]
            bins_each = bins_each + np.asarray(_gram(each), np.float64)
            variants_each = variants_each + np.stack([np.asarray(_pairs(g), float) for g in each])
            totals = each if not totals else [_add(a, b) for a, b in zip(totals, each, strict=True)]
        bins_all = np.asarray(_gram(totals), np.float64)
        variants_all = np.stack([np.asarray(_pairs(g), float) for g in totals])
        found.append(_gradients(bins_each, bins_all, variants_each, variants_all, batches))
    return found


def _gradients(bins_each, bins_all, variants_each, variants_all, batches: int) -> Gradients:
    """Return inner products of the gradients, summed over the batches, and those of the sums of the gradients.

    Those of the bins are [V, S, K, K], those of the variants [K, S, V, V].
    """

    def expected(each, all_):
        return (all_ - each) / (batches * (batches - 1))

    def variance(each, all_):
        return ((each - all_ / batches) / (batches - 1)).clip(0)

    def seen(products, each, all_):
        """The products, NaN with what is smaller than the noise of its mean over the batches."""
        size = np.diagonal(products, axis1=-2, axis2=-1)
        noise = np.diagonal(variance(each, all_), axis1=-2, axis2=-1) / batches
        good = size > noise
        return np.where(good[..., :, None] & good[..., None, :], products, np.nan)

    products, spread = expected(bins_each, bins_all), variance(bins_each, bins_all)
    across = expected(variants_each, variants_all)
    total = expected(bins_each.sum((-2, -1)), bins_all.sum((-2, -1)))
    return Gradients(
        norm=_root(np.diagonal(products, axis1=-2, axis2=-1)),
        deviation=np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1)),
        total_norm=_root(total),
        total_deviation=np.sqrt(variance(bins_each.sum((-2, -1)), bins_all.sum((-2, -1)))),
        between_bins=cosines(seen(products, bins_each, bins_all)),
        between_variants=known_mean(cosines(seen(across, variants_each, variants_all)), 1),
    )


def _root(square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(square > 0, square, np.nan))


@jax.jit
def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


@jax.jit
def _gram(rows: list[PyTree]) -> Array:
    """Inner products [V, S, K, K] of K trees of arrays [V, S, ...]."""
    trees = [jax.tree.leaves(row) for row in rows]
    return jnp.stack(
        [jnp.stack([_inner("vsp,vsp->vs", a, b) for b in trees], -1) for a in trees], -2
    )


@jax.jit
def _pairs(tree: PyTree) -> Array:
    """Inner products [S, V, V] of the variants of one tree of arrays [V, S, ...]."""
    leaves = jax.tree.leaves(tree)
    return _inner("vsp,wsp->svw", leaves, leaves)


def _inner(axes: str, a: list[Array], b: list[Array]) -> Array:
    flat = [[leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves] for leaves in (a, b)]
    return sum(jnp.einsum(axes, x, y) for x, y in zip(*flat, strict=True))  # type: ignore[return-value]


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines [..., n, n] from estimated inner products, NaN where one's size is not above zero."""
    size = _root(np.diagonal(products, axis1=-2, axis2=-1))
    return (products / (size[..., :, None] * size[..., None, :])).clip(-1, 1)
