"""Measurements of the runs of a sweep, all at once, on the same examples, times and noise.

Arrays have the axes [V, S, ...]: variants and seeds.
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
from vdm_jax.runs.start import stream
from vdm_jax.runs.sweep import Sweep
from vdm_jax.samplers import Grid, Sampler
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import make_step
from vdm_jax.typing import Array, PyTree, Spec

REPEATS = 7  # timed steps of a variant


class Sampling(NamedTuple):
    """The samples of each variant and seed.

    Attributes:
      steps: numbers of sampling steps.
      count: number of samples, for each number of steps.
      sampler: the solver.
      grid: the noise levels between the steps.
    """

    steps: list[int]
    count: int
    sampler: Spec | Sampler
    grid: Spec | Grid


class Bounds(NamedTuple):
    """−ELBO of n examples in bits/dim.

    Attributes:
      parts: `Elbo` of arrays [V, S, n].
      matching: [V, S, K], the matching term by bin, averaged over the examples.
    """

    parts: Elbo
    matching: np.ndarray


def grid(sweep: Sweep, params: PyTree) -> PyTree:
    """Reshape a tree of arrays [R, ...] to [V, S, ...]."""
    seeds = len(sweep.seeds)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, seeds, *leaf.shape[1:]), params)


def everywhere(sweep: Sweep, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Map a function of one run over all runs, and jit it.

    Args:
      sweep: the runs.
      function: (model, params, key, *others) -> result of one run.
      shared: number of the other arguments, which all runs share.

    Returns:
      A function of params [V, S, ...], keys [S] and the other arguments, whose results are [V, S, ...].
    """

    def run_function(variant, params, key, *others):
        return function(sweep.model_of(variant), params, key, *others)

    unmapped = (None,) * shared
    over_seeds = jax.vmap(run_function, (None, 0, 0, *unmapped))
    return jax.jit(partial(jax.vmap(over_seeds, (0, 0, None, *unmapped)), sweep.variants))


def keys(sweep: Sweep, name: str) -> Array:
    """Return the keys [S] of one of the `STREAMS`, for each seed."""
    return jnp.stack([stream(seed, name) for seed in sweep.seeds])


def per_noise_level(model: Model) -> PerNoiseLevel:
    """Return the functions by noise level, which every diffusion model has."""
    assert model.per_noise_level is not None
    return model.per_noise_level


def bins(sweep: Sweep, params: PyTree, count: int) -> np.ndarray:
    """Return the edges [count + 1] of bins of equal width in γ between the ends of all schedules."""
    ends_of_runs = everywhere(
        sweep, lambda model, params, key: per_noise_level(model).gamma(params, jnp.arange(2.0))
    )
    ends = np.asarray(ends_of_runs(params, keys(sweep, "evaluate")), np.float64)
    return np.linspace(ends[..., 0].min(), ends[..., 1].max(), count + 1)


def bounds(
    sweep: Sweep, params: PyTree, split: Split, edges: np.ndarray, *, draws: int, batch_size: int
) -> Bounds:
    """Evaluate the bound of each run on a split, with the draws that the run would have alone."""

    def bound_on_batch(model, params, key, batch, mask):
        elbo, matching = per_noise_level(model).elbo(params, key, batch, edges, draws)
        return elbo, jnp.sum(jnp.where(mask[:, None], matching, 0), 0)  # without the padding

    run, seed_keys = everywhere(sweep, bound_on_batch, shared=2), keys(sweep, "evaluate")
    parts, total = [], np.zeros(())
    for batch, mask in eval_batches(split, batch_size=min(batch_size, len(split.images))):
        elbo, matching = run(params, seed_keys, batch, mask)
        parts.append([np.asarray(part, np.float64)[..., mask] for part in elbo])
        total = total + np.asarray(matching, np.float64)
    bits = sweep.statistics.bits
    terms: list[Any] = [bits * np.concatenate(part, -1) for part in zip(*parts, strict=True)]
    return Bounds(Elbo(*terms), bits * total / len(split.images))


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the values that are not NaN along an axis; NaN where all are."""
    count = np.isfinite(values).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def output_gains(sweep: Sweep, params: PyTree, edges: np.ndarray) -> np.ndarray:
    """Return |∂x̂_0/∂net| of the first seed of each variant in the middle of each bin: [V, K]."""
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2)

    def gain_of_variant(variant, params):
        model = per_noise_level(sweep.model_of(variant))
        times = jnp.linspace(0.0, 1.0, 2001)[:-1]
        # the schedule inverted by interpolation, as learned schedules have no inverse
        middle_times = jnp.interp(middles, model.gamma(params, times), times)
        return model.output_gain(params, middle_times)

    first = jax.tree.map(lambda leaf: leaf[:, 0], params)
    return np.asarray(jax.jit(jax.vmap(gain_of_variant))(sweep.variants, first))


def samples(sweep: Sweep, params: PyTree, steps: int, sampling: Sampling) -> np.ndarray:
    """Draw samples [V, S, n, *d], as stored; the variants of a seed start from the same noise."""

    def sample_run(model, params, key):
        solver = {"sampler": sampling.sampler, "grid": sampling.grid}
        return model.sample(params, key, sampling.count, steps=steps, **solver)

    return np.asarray(everywhere(sweep, sample_run)(params, keys(sweep, "sample")))


def milliseconds(sweep: Sweep, state: TrainState, split: Split, batch_size: int) -> np.ndarray:
    """Return the wall time [V] of a training step of each variant, run alone; the median of `REPEATS`."""

    @jax.jit
    def step(variant, state, batch):
        loss = sweep.model_of(variant).loss
        return make_step(loss, sweep.optimizer_of(variant))(state, batch)

    data = train_batches(split, batch_size=batch_size, seed=0, start_step=0, stop_step=1)
    batch = jax.tree.map(itemgetter(0), next(data))
    data.close()  # type: ignore[attr-defined]
    variants = sweep.each_variant
    first_runs = range(0, len(sweep.names), len(sweep.seeds))  # the first seed of each variant
    states = [jax.tree.map(itemgetter(run), state) for run in first_runs]
    seconds = np.zeros((REPEATS + 1, len(variants)))
    # variants take turns, so that a slow phase of the machine affects all of them
    for i in range(REPEATS + 1):
        for v, variant in enumerate(variants):
            began = time.perf_counter()
            jax.block_until_ready(step(variant, states[v], batch))
            seconds[i, v] = time.perf_counter() - began
    return 1e3 * np.median(seconds[1:], 0)  # the first round compiles
