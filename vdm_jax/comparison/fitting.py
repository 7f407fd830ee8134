"""Training of a comparison: all runs in one program, in memory, without a folder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vdm_jax.comparison.measure import grid
from vdm_jax.comparison.setup import Setup
from vdm_jax.runtime.console import STDERR
from vdm_jax.training.dispatch import check_batch, dispatcher, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.state import TrainState
from vdm_jax.typing import PyTree

STACK = 20  # steps per dispatch, which allocates memory once
CURVE = 50  # points of the training curve


class Fitted(NamedTuple):
    """The result of training.

    Attributes:
      start: initial parameters, a tree of arrays [V, S, ...].
      state: train state of all runs, arrays [R, ...].
      curve: [C, V, S], training bound in bits/dim, averaged over the steps up to each of `steps`.
      steps: [C], the last step of each average.
      skipped: [V, S], number of steps whose loss or gradient was not finite.
    """

    start: PyTree
    state: TrainState
    curve: np.ndarray
    steps: np.ndarray
    skipped: np.ndarray


def fit(setup: Setup, progress: bool) -> Fitted:
    """Train all runs; networks without parameters are not trained."""
    sweep, steps = setup.sweep, setup.steps
    layout = make_layout()
    check_batch(layout, setup.batch_size)
    state = jax.jit(sweep.start, out_shardings=shardings(layout, jax.eval_shape(sweep.start)))()
    # copied to the host, because the train step donates the memory of the state
    start = grid(sweep, jax.tree.map(np.asarray, state.params))
    columns = []
    if steps and jax.tree.leaves(start):
        stack = 1 if jax.default_backend() == "cpu" and _convolves(setup) else STACK
        train_stack = dispatcher(layout, sweep.step(layout), state, stack)
        stacks = sweep.batches(
            setup.dataset.train,
            batch_size=setup.batch_size,
            start_step=0,
            stop_step=steps,
            stack=stack,
        )
        with tqdm(
            total=steps, disable=not progress, desc="compare", leave=False, file=STDERR
        ) as bar:
            for batches in stacks:
                state, metrics = train_stack(state, batches)
                # kept on the device: fetching them would wait for the step
                columns.append(jnp.stack([metrics["bits_per_dim"], metrics["skipped"]], 1))
                bar.update(len(batches.index))
        jax.block_until_ready(state)
    # the empty array gives the shape if nothing was trained
    metrics = np.concatenate([np.zeros((0, 2, len(sweep.names))), *jax.device_get(columns)])
    metrics = metrics.astype(np.float64).reshape(-1, 2, len(sweep.each_variant), len(sweep.seeds))
    bits, skipped = metrics[:, 0], metrics[:, 1]
    intervals = [part for part in np.array_split(np.arange(len(bits)), CURVE) if len(part)]
    return Fitted(
        start,
        state,
        curve=np.reshape([bits[part].mean(0) for part in intervals], (-1, *bits.shape[1:])),
        steps=np.asarray([part[-1] + 1 for part in intervals], int),
        skipped=skipped.sum(0),
    )


def _convolves(setup: Setup) -> bool:
    """Return True if the network has convolutions, whose gradients XLA:CPU computes slowly in loops."""
    model = setup.sweep.model_of(setup.sweep.each_variant[0])
    params, key = jax.eval_shape(model.init, jax.random.key(0)), jax.random.key(0)
    x = setup.dataset.train.images[np.arange(1)]
    return "conv_general_dilated" in str(jax.make_jaxpr(model.loss)(params, key, x))
