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
from vdm_jax.typing import Array, Params, PyTree

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
    """Of the training loss at some weights, by bin; the bins' gradients add up to the gradient.

    Attributes:
      norm: [V, S, K], of the mean gradient, without the noise of the batches.
      deviation: [V, S, K], root of the variance of one batch's gradient, summed over the parameters.
      total_norm, total_deviation: [V, S], the same of the whole loss.
      between_bins: [V, S, K, K], cosines of the mean gradients of two bins of a variant.
      between_variants: [K, V, V], cosines of those of two variants in a bin, mean over the seeds; they are
        comparable where the variants have the same weights, before training.
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


def first_run(many: Many, params: PyTree) -> tuple[ByNoise, Params]:
    """The first variant's functions with its first seed's parameters, of params [V, S, ...]."""
    model = many.model_of(many.variants[0])
    return by_noise(model), jax.tree.map(lambda leaf: leaf[0, 0], params)


def bins(many: Many, params: PyTree, count: int) -> np.ndarray:
    """Edges [count + 1] of bins of equal width in γ between the ends of the first run's schedule."""
    model, own = first_run(many, params)
    first, last = (float(model.gamma(own, t)) for t in (0.0, 1.0))
    return np.linspace(first, last, count + 1)


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
    many: Many, params: PyTree, split: Split, edges: np.ndarray, *, batches: int, batch_size: int
) -> Gradients:
    """Gradients of the training loss by bin, over some batches that all runs share.

    The gradients of all bins are kept: K times the memory of the parameters of all runs.
    """

    def one(model, params, key, batch, bin):
        def loss(params):
            by_bin = by_noise(model).loss(params, key, batch, edges)
            return jnp.append(by_bin, jnp.sum(by_bin))[bin]  # the last is all of it

        return jax.grad(loss)(params)

    run = everywhere(many, one, shared=2)
    each = jax.jit(
        lambda grads: sum(
            jnp.sum(jnp.square(leaf), tuple(range(2, leaf.ndim))) for leaf in jax.tree.leaves(grads)
        )
    )
    add = jax.jit(partial(jax.tree.map, jnp.add))
    of_seeds = keys(many, "train")
    means, variances = [], []
    data = train_batches(
        split, batch_size=batch_size, seed=0, start_step=0, stop_step=batches, stack=batches
    )
    stack = next(data)
    data.close()  # type: ignore[attr-defined]
    for bin in range(len(edges)):
        total, squares = None, np.zeros(())
        for i in range(batches):
            own = jax.vmap(jax.random.fold_in, (0, None))(of_seeds, i)
            found = run(params, own, jax.tree.map(itemgetter(i), stack), bin)
            total = found if total is None else add(total, found)
            squares = squares + np.asarray(each(found), np.float64)
        mean = jax.tree.map(lambda leaf: leaf / batches, total)
        means.append(mean)
        size = np.asarray(each(mean), np.float64)
        variances.append((squares - batches * size) / max(batches - 1, 1))
    products = gram(means)  # [V, S, K + 1, K + 1]
    variance = np.moveaxis(np.asarray(variances), 0, -1).clip(0)
    square = np.diagonal(products, axis1=-2, axis2=-1)
    norm, deviation = np.sqrt((square - variance / batches).clip(0)), np.sqrt(variance)
    across = np.stack([pairs(mean) for mean in means[:-1]])
    return Gradients(
        norm=norm[..., :-1],
        deviation=deviation[..., :-1],
        total_norm=norm[..., -1],
        total_deviation=deviation[..., -1],
        between_bins=cosines(products[..., :-1, :-1]),
        between_variants=cosines(across).mean(1),
    )


@jax.jit
def _gram(rows: list[PyTree]) -> Array:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, 2), *rows)
    flat = [leaf.reshape(*leaf.shape[:3], -1) for leaf in jax.tree.leaves(stacked)]
    return sum(jnp.einsum("vskp,vslp->vskl", leaf, leaf) for leaf in flat)  # type: ignore[return-value]


def gram(rows: list[PyTree]) -> np.ndarray:
    """Inner products [V, S, K, K] of K trees of arrays [V, S, ...]."""
    return np.asarray(_gram(rows), np.float64)


@jax.jit
def _pairs(tree: PyTree) -> Array:
    flat = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(tree)]
    return sum(jnp.einsum("vsp,wsp->svw", leaf, leaf) for leaf in flat)  # type: ignore[return-value]


def pairs(tree: PyTree) -> np.ndarray:
    """Inner products [S, V, V] of the variants of one tree of arrays [V, S, ...]."""
    return np.asarray(_pairs(tree), np.float64)


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines [..., n, n] from inner products; NaN with what is zero."""
    size = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / (size[..., :, None] * size[..., None, :])


def gains(many: Many, params: PyTree, edges: np.ndarray) -> np.ndarray:
    """|∂x̂_0/∂net| in the middle of each bin: [V, K]."""
    model, own = first_run(many, params)
    times = np.linspace(0, 1, 2001)[:-1]
    gamma = np.asarray(model.gamma(own, jnp.asarray(times)))
    middles = jnp.asarray(np.interp((edges[1:] + edges[:-1]) / 2, gamma, times))

    def one(setting, params):
        return by_noise(many.model_of(setting)).gain(params, middles)

    first = jax.tree.map(lambda leaf: leaf[:, 0], params)
    return np.asarray(jax.vmap(one)(many.settings, first))


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
