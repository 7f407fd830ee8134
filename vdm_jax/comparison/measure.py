"""What is measured of runs side by side: all of them at once, on the same examples, times and noise.

Arrays have the axes [V, S, ...]: variants and seeds. Nothing here depends on how the runs were trained.
"""

import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.data import Split, eval_batches, train_batches
from vdm_jax.elbo import Elbo
from vdm_jax.jobs import Many
from vdm_jax.models import ByNoise, Model
from vdm_jax.trained import stream
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import make_step
from vdm_jax.typing import Array, PyTree

REPEATS = 7  # of a timed step


class Bounds(NamedTuple):
    """−ELBO of n examples in bits/dim.

    Attributes:
      parts: `Elbo` of arrays [V, S, n].
      matching: [V, S, K], its matching term by bin, mean over the examples.
    """

    parts: Elbo
    matching: np.ndarray


class Gradients(NamedTuple):
    """Of the training loss at some weights, by bin of γ; the bins' gradients add up to the gradient.

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


def grid(many: Many, params: PyTree) -> PyTree:
    """[R, ...] as [V, S, ...]."""
    seeds = len(many.seeds)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, seeds, *leaf.shape[1:]), params)


def everywhere(many: Many, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Jit a function of one run (model, params, key, *shared) for params [V, S, ...] and keys [S]."""

    def one(setting, params, key, *others):
        return function(many.model_of(setting), params, key, *others)

    same = (None,) * shared
    seeds = jax.vmap(one, (None, 0, 0, *same))
    return jax.jit(partial(jax.vmap(seeds, (0, 0, None, *same)), many.settings))


def keys(many: Many, name: str) -> Array:
    """The key [S] of one part of the runs of each seed."""
    return jnp.stack([stream(seed, name) for seed in many.seeds])


def by_noise(model: Model) -> ByNoise:
    """Of a diffusion model."""
    assert model.by_noise is not None
    return model.by_noise


def bins(many: Many, params: PyTree, count: int) -> np.ndarray:
    """Edges [count + 1] of bins of equal width in γ between the ends of all runs' schedules."""
    ends = everywhere(many, lambda model, own, key: by_noise(model).gamma(own, jnp.arange(2.0)))
    found = np.asarray(ends(params, keys(many, "evaluate")), np.float64)
    return np.linspace(found[..., 0].min(), found[..., 1].max(), count + 1)


def bounds(
    many: Many, params: PyTree, split: Split, edges: np.ndarray, *, draws: int, batch_size: int
) -> Bounds:
    """The bound of each run on a whole split; that of a run is the one that it would have alone."""

    def one(model, params, key, batch, mask):
        elbo, matching = by_noise(model).elbo(params, key, batch, edges, draws)
        return elbo, jnp.sum(jnp.where(mask[:, None], matching, 0), 0)

    run, of_seeds = everywhere(many, one, shared=2), keys(many, "evaluate")
    parts, total = [], np.zeros(())
    for batch, mask in eval_batches(split, batch_size=min(batch_size, len(split.images))):
        elbo, matching = run(params, of_seeds, batch, mask)
        parts.append([np.asarray(part, np.float64)[..., mask] for part in elbo])
        total = total + np.asarray(matching, np.float64)
    bits = 1 / (many.statistics.dim * np.log(2))
    elbo = Elbo(*(bits * np.concatenate(part, -1) for part in zip(*parts, strict=True)))
    return Bounds(elbo, bits * total / len(split.images))


def gradients(
    many: Many,
    at: list[PyTree],
    split: Split,
    edges: np.ndarray,
    *,
    batches: int,
    batch_size: int,
) -> list[Gradients]:
    """Gradients of the training loss by bin, over some batches that all runs share, at each of some weights.

    Args:
      at: trees of arrays [V, S, ...].
      batches: at least 2.

    Two gradients of every bin are kept: 2 K times the memory of the parameters of all runs.
    """

    def one(model, params, key, batch, bin):
        return jax.grad(lambda p: by_noise(model).loss(p, key, batch, edges)[bin])(params)

    run, of_seeds = everywhere(many, one, shared=2), keys(many, "train")
    data = train_batches(
        split, batch_size=batch_size, seed=0, start_step=0, stop_step=batches, stack=batches
    )
    stack = next(data)
    data.close()  # type: ignore[attr-defined]
    found = []
    for params in at:
        totals: list[PyTree] = []
        bins_each, variants_each = np.zeros(()), np.zeros(())
        for i in range(batches):
            own = jax.vmap(jax.random.fold_in, (0, None))(of_seeds, i)
            batch = jax.tree.map(itemgetter(i), stack)
            each = [run(params, own, batch, bin) for bin in range(len(edges) - 1)]
            bins_each = bins_each + np.asarray(_gram(each), np.float64)
            variants_each = variants_each + np.stack([np.asarray(_pairs(g), float) for g in each])
            totals = each if not totals else [_add(a, b) for a, b in zip(totals, each, strict=True)]
        bins_all = np.asarray(_gram(totals), np.float64)
        variants_all = np.stack([np.asarray(_pairs(g), float) for g in totals])
        found.append(_gradients(bins_each, bins_all, variants_each, variants_all, batches))
    return found


def _gradients(bins_each, bins_all, variants_each, variants_all, batches: int) -> Gradients:
    """Of inner products of the gradients, summed over the batches, and of the sums of the gradients.

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


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN, and NaN where nothing is."""
    count = np.isfinite(values).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def gains(many: Many, params: PyTree, edges: np.ndarray) -> np.ndarray:
    """|∂x̂_0/∂net| at the time at which each variant's first seed passes the middle of each bin: [V, K]."""
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2)

    def one(setting, params):
        model = by_noise(many.model_of(setting))
        times = jnp.linspace(0.0, 1.0, 2001)[:-1]
        return model.gain(params, jnp.interp(middles, model.gamma(params, times), times))

    first = jax.tree.map(lambda leaf: leaf[:, 0], params)
    return np.asarray(jax.jit(jax.vmap(one))(many.settings, first))


def samples(many: Many, params: PyTree, n: int, steps: int) -> np.ndarray:
    """Draw [V, S, n, *d], as stored; the variants of a seed start from the same noise."""

    def one(model, params, key):
        return model.sample(params, key, n, steps=steps)

    return np.asarray(everywhere(many, one)(params, keys(many, "sample")))


def milliseconds(many: Many, state: TrainState, split: Split, batch_size: int) -> np.ndarray:
    """Wall time [V] of a training step of each variant alone: median of steps that take turns, after one."""

    @jax.jit
    def step(setting, state, batch):
        loss = many.model_of(setting).loss
        return make_step(loss, many.optimizer_of(setting))(state, batch)

    data = train_batches(split, batch_size=batch_size, seed=0, start_step=0, stop_step=1)
    batch = jax.tree.map(itemgetter(0), next(data))
    data.close()  # type: ignore[attr-defined]
    settings = many.variants
    count = len(settings)
    own = [jax.tree.map(lambda leaf, v=v: leaf[v * len(many.seeds)], state) for v in range(count)]
    spent = np.zeros((REPEATS + 1, count))
    for i in range(REPEATS + 1):
        for v in range(count):
            began = time.perf_counter()
            jax.block_until_ready(step(settings[v], own[v], batch))
            spent[i, v] = time.perf_counter() - began
    return 1e3 * np.median(spent[1:], 0)
