"""The training of a comparison: all runs in one program, in memory, without a folder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vdm_jax.comparison.measure import grid
from vdm_jax.comparison.setup import Setup
from vdm_jax.training.dispatch import check_batch, dispatcher, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.state import TrainState

STACK = 20  # steps a dispatch, which allocates its memory once
CURVE = 50  # points


class Fitted(NamedTuple):
    """The result of training: states, metrics and times.

    Attributes:
      start: the initial parameters, a tree of arrays [V, S, ...].
      state: [R, ...].
      curve: [C, V, S], the training bound in bits/dim, each the mean of the steps up to one of `steps` [C].
      skipped: [V, S], steps whose gradient was not finite.
    """

    start: Any
    state: TrainState
    curve: np.ndarray
    steps: np.ndarray
    skipped: np.ndarray


def fit(setup: Setup, progress: bool) -> Fitted:
    """Train all runs for the steps that were asked for; what has no parameters is left as it is."""
    sweep, steps = setup.sweep, setup.steps
    layout = make_layout()
    check_batch(layout, setup.batch_size)
    state = jax.jit(sweep.start, out_shardings=shardings(layout, jax.eval_shape(sweep.start)))()
    start = grid(sweep, jax.tree.map(np.asarray, state.params))  # the state is donated
    rows = []
    if steps and jax.tree.leaves(start):
        stack = 1 if jax.default_backend() == "cpu" and _convolves(setup) else STACK
        run = dispatcher(layout, sweep.step(layout), state, stack)
        batches = sweep.batches(
            setup.dataset.train,
            batch_size=setup.batch_size,
            start_step=0,
            stop_step=steps,
            stack=stack,
        )
        with tqdm(total=steps, disable=not progress, desc="compare", leave=False) as bar:
            for batch in batches:
                state, metrics = run(state, batch)
                rows.append(jnp.stack([metrics["bits_per_dim"], metrics["skipped"]], 1))
                bar.update(len(batch.index))
        jax.block_until_ready(state)
    found = np.concatenate([np.zeros((0, 2, len(sweep.names))), *jax.device_get(rows)])
    found = found.astype(np.float64).reshape(-1, 2, len(sweep.each_variant), len(sweep.seeds))
    parts = [part for part in np.array_split(np.arange(len(found)), CURVE) if len(part)]
    return Fitted(
        start,
        state,
        curve=np.reshape([found[part, 0].mean(0) for part in parts], (-1, *found.shape[2:])),
        steps=np.asarray([part[-1] + 1 for part in parts], int),
        skipped=found[:, 1].sum(0),
    )


def _convolves(setup: Setup) -> bool:
    """Return True if the network has convolutions, whose gradients are slow inside the loops of XLA:CPU."""
    model = setup.sweep.model_of(setup.sweep.each_variant[0])
    params, key = jax.eval_shape(model.init, jax.random.key(0)), jax.random.key(0)
    x = setup.dataset.train.images[np.arange(1)]
    return "conv_general_dilated" in str(jax.make_jaxpr(model.loss)(params, key, x))
