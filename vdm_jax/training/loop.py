"""The loop around the step: several steps a dispatch, metrics fetched one dispatch late, checkpoints."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Step
from vdm_jax.typing import Batch


def dispatch(step: Step) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """Jit a step over a stack of batches [n, B, ...]; the state is donated.

    A stack of one is not scanned: on CPUs XLA runs the gradients of convolutions inside a loop, even of
    length one, tens of times slower.
    """

    def run(state, batches):
        if len(batches.index) > 1:
            return jax.lax.scan(step, state, batches)
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], batches))
        return state, jax.tree.map(lambda leaf: leaf[None], metrics)

    return jax.jit(run, donate_argnums=0)


def fit(
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    *,
    steps: int,
    store: CheckpointStore,
    log: MetricsLog,
    about: dict[str, Any],
    log_every: int,
    checkpoint_every: int,
) -> TrainState:
    """Train to `steps` and save the last state.

    Args:
      state: where to start; its arrays are donated.
      step: of `make_step`.
      batches: stacks from the state's own step on.
      steps: number of the last step.
      store: gets a state about every `checkpoint_every` steps and the last one.
      log: gets the mean of the metrics at every multiple of `log_every`.
      about: what a checkpoint says of itself.

    Raises:
      FloatingPointError: a loss, gradient or parameter is not finite; nothing is saved from there on.
    """
    run = dispatch(step)
    start = now = int(state.step)
    began = store.about(start)["window"] if store.latest() == start else {}
    meter = Meter(log, store, every=log_every, step=start, window=began)
    pending: list[dict[str, Any]] = []
    with tqdm(total=steps, initial=start, desc="train", unit="step", smoothing=0.05) as bar:
        for stack in batches:
            state, metrics = run(state, stack)
            pending.append(metrics)
            before, now = now, now + len(stack.index)
            saving = now // checkpoint_every > before // checkpoint_every or now >= steps
            while len(pending) > (0 if saving else 1):  # the device is kept one dispatch ahead
                bar.set_postfix_str(meter.add(pending.pop(0)))
            bar.update(now - before)
            if saving:
                if not finite((state.params, state.ema_params)):
                    raise diverged("a parameter is not finite", now, store)
                store.save(state, about | {"window": meter.window})
    return state


class Meter:
    """Takes the metrics of each step, watches them and writes their means.

    Attributes:
      window: sums since the last line and their "steps"; a checkpoint keeps them, so that the lines of a run
        do not depend on where it was interrupted.
    """

    def __init__(
        self,
        log: MetricsLog,
        store: CheckpointStore,
        *,
        every: int,
        step: int,
        window: dict[str, float],
    ):
        self.log, self.store, self.every, self.step = log, store, every, step
        self.window = dict(window)

    def add(self, metrics: dict[str, Any]) -> str:
        """Take the metrics of a dispatch, arrays [n]; return a word on them for the progress bar."""
        columns = {name: np.asarray(value, np.float64).tolist() for name, value in metrics.items()}
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            self.step += 1
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    raise diverged(f"{name} is {row[name]}", self.step, self.store)
            for name, value in (row | {"steps": 1}).items():
                self.window[name] = self.window.get(name, 0) + value
            if self.step % self.every == 0:
                steps = self.window.pop("steps")
                self.log.write(self.step, {name: s / steps for name, s in self.window.items()})
                self.window = {}
        shown = "bits_per_dim" if "bits_per_dim" in columns else "loss"
        return f"{shown.replace('_per_', '/')} {np.mean(columns[shown]):.3f}"


@jax.jit
def finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def diverged(what: str, step: int, store: CheckpointStore) -> FloatingPointError:
    """The error that ends a run, naming where it can be continued from."""
    latest = store.latest()
    safe = "none" if latest is None else f"step {latest}"
    return FloatingPointError(
        f"{what} at step {step}: training stopped; last good checkpoint: {safe}, in {store.folder}"
    )
