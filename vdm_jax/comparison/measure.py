"""Measurements of a sweep: all runs at once, on the same examples, times and noise.

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
from vdm_jax.models import Model, PerNoiseLevel
from vdm_jax.runs.sweep import Sweep
from vdm_jax.runs.trained import stream
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


def grid(sweep: Sweep, params: PyTree) -> PyTree:
    """[R, ...] as [V, S, ...]."""
    seeds = len(sweep.seeds)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, seeds, *leaf.shape[1:]), params)


def everywhere(sweep: Sweep, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Jit a function of one run (model, params, key, *shared) for params [V, S, ...] and keys [S]."""

    def one(variant, params, key, *others):
        return function(sweep.model_of(variant), params, key, *others)

    same = (None,) * shared
    seeds = jax.vmap(one, (None, 0, 0, *same))
    return jax.jit(partial(jax.vmap(seeds, (0, 0, None, *same)), sweep.variants))


def keys(sweep: Sweep, name: str) -> Array:
    """The key [S] of one part of the runs of each seed."""
    return jnp.stack([stream(seed, name) for seed in sweep.seeds])


def per_noise_level(model: Model) -> PerNoiseLevel:
    """Return the functions by noise level, which every diffusion model has."""
    assert model.per_noise_level is not None
    return model.per_noise_level


def bins(sweep: Sweep, params: PyTree, count: int) -> np.ndarray:
    """Edges [count + 1] of bins of equal width in γ between the ends of all runs' schedules."""
    ends = everywhere(
        sweep, lambda model, own, key: per_noise_level(model).gamma(own, jnp.arange(2.0))
    )
    found = np.asarray(ends(params, keys(sweep, "evaluate")), np.float64)
    return np.linspace(found[..., 0].min(), found[..., 1].max(), count + 1)


def bounds(
    sweep: Sweep, params: PyTree, split: Split, edges: np.ndarray, *, draws: int, batch_size: int
) -> Bounds:
    """The bound of each run on a whole split; that of a run is the one that it would have alone."""

    def one(model, params, key, batch, mask):
        elbo, matching = per_noise_level(model).elbo(params, key, batch, edges, draws)
        return elbo, jnp.sum(jnp.where(mask[:, None], matching, 0), 0)

    run, of_seeds = everywhere(sweep, one, shared=2), keys(sweep, "evaluate")
    parts, total = [], np.zeros(())
    for batch, mask in eval_batches(split, batch_size=min(batch_size, len(split.images))):
        elbo, matching = run(params, of_seeds, batch, mask)
        parts.append([np.asarray(part, np.float64)[..., mask] for part in elbo])
        total = total + np.asarray(matching, np.float64)
    bits = 1 / (sweep.statistics.dim * np.log(2))
    elbo = Elbo(*(bits * np.concatenate(part, -1) for part in zip(*parts, strict=True)))
    return Bounds(elbo, bits * total / len(split.images))


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN, and NaN where nothing is."""
    count = np.isfinite(values).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def output_gains(sweep: Sweep, params: PyTree, edges: np.ndarray) -> np.ndarray:
    """|∂x̂_0/∂net| at the time at which each variant's first seed passes the middle of each bin: [V, K]."""
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2)

    def one(variant, params):
        model = per_noise_level(sweep.model_of(variant))
        times = jnp.linspace(0.0, 1.0, 2001)[:-1]
        return model.output_gain(params, jnp.interp(middles, model.gamma(params, times), times))

    first = jax.tree.map(lambda leaf: leaf[:, 0], params)
    return np.asarray(jax.jit(jax.vmap(one))(sweep.variants, first))


def samples(sweep: Sweep, params: PyTree, n: int, steps: int) -> np.ndarray:
    """Draw [V, S, n, *d], as stored; the variants of a seed start from the same noise."""

    def one(model, params, key):
        return model.sample(params, key, n, steps=steps)

    return np.asarray(everywhere(sweep, one)(params, keys(sweep, "sample")))


def milliseconds(sweep: Sweep, state: TrainState, split: Split, batch_size: int) -> np.ndarray:
    """Wall time [V] of a training step of each variant alone: median of steps that take turns, after one."""

    @jax.jit
    def step(variant, state, batch):
        loss = sweep.model_of(variant).loss
        return make_step(loss, sweep.optimizer_of(variant))(state, batch)

    data = train_batches(split, batch_size=batch_size, seed=0, start_step=0, stop_step=1)
    batch = jax.tree.map(itemgetter(0), next(data))
    data.close()  # type: ignore[attr-defined]
    variants = sweep.each_variant
    count = len(variants)
    own = [jax.tree.map(lambda leaf, v=v: leaf[v * len(sweep.seeds)], state) for v in range(count)]
    spent = np.zeros((REPEATS + 1, count))
    for i in range(REPEATS + 1):
        for v in range(count):
            began = time.perf_counter()
            jax.block_until_ready(step(variants[v], own[v], batch))
            spent[i, v] = time.perf_counter() - began
    return 1e3 * np.median(spent[1:], 0)
