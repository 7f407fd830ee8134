"""The loop around the step: metrics fetched one dispatch late, logs, checkpoints."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.processes import STALL_SECONDS, Patience, everyone, is_first
from vdm_jax.training.profile import Profiler
from vdm_jax.training.state import TrainState, step_of
from vdm_jax.typing import Batch


def fit(
    state: TrainState,
    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    batches: Iterator[Batch],
    *,
    steps: int,
    store: CheckpointStore,
    log: MetricsLog | None,
    about: dict[str, Any],
    log_every: int,
    checkpoint_every: int,
    stall_seconds: float = STALL_SECONDS,
    profiler: Profiler | None = None,
    names: Sequence[str] = (),
) -> TrainState:
    """Train to `steps` and save the last state.

    Args:
      state: where to start; its arrays are donated.
      run: of `parallel.dispatcher`.
      batches: stacks from the state's own step on, this process's part of them.
      steps: number of the last step.
      store: gets a state about every `checkpoint_every` steps and the last one.
      log: gets the mean of the metrics at every multiple of `log_every`; None in all processes but one.
      about: what a checkpoint says of itself.
      stall_seconds: see `Patience`; for several processes.
      profiler: traces some of the steps.
      names: of the runs, if the state is of several side by side.

    Raises:
      FloatingPointError: a loss, gradient or parameter is not finite; nothing is saved from there on.
    """
    start = now = step_of(state)
    began = store.about(start)["window"] if store.latest() == start else {}
    meter = Meter(log, store, every=log_every, step=start, window=began, names=names)
    pending: list[dict[str, Any]] = []
    patience = Patience(stall_seconds)
    shown = {"total": steps, "initial": start, "desc": "train", "unit": "step", "smoothing": 0.05}
    with tqdm(**shown, disable=not is_first()) as bar:
        for stack in batches:
            before, now = now, now + len(stack.index)
            saving = now // checkpoint_every > before // checkpoint_every or now >= steps
            if profiler is not None:
                profiler.before(before, now)
            with patience.wait(f"training, after step {before}"):
                state, metrics = run(state, stack)
                pending.append(metrics)
                if patience.settling:
                    jax.block_until_ready(metrics)
                while len(pending) > (0 if saving else 1):  # the device is kept one dispatch ahead
                    bar.set_postfix_str(meter.add(pending.pop(0)))
            if profiler is not None:
                profiler.after(now, metrics)
            bar.update(now - before)
            if saving:
                if not names and not finite((state.params, state.ema_params)):
                    raise diverged("a parameter is not finite", now, store)
                store.save(state, about | {"window": meter.window})
                everyone("saved")  # before the next wait is measured
    return state


class Meter:
    """Takes the metrics of each step, watches them and writes their means.

    Attributes:
      window: sums since the last line and their "steps"; a checkpoint keeps them, so that the lines of a run
        do not depend on where it was interrupted.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        store: CheckpointStore,
        *,
        every: int,
        step: int,
        window: dict[str, float],
        names: Sequence[str] = (),
    ):
        self.log, self.store, self.every, self.step = log, store, every, step
        self.window, self.names = dict(window), names
        self.lost: set[str] = set()

    def add(self, metrics: dict[str, Any]) -> str:
        """Take the metrics of a dispatch, arrays [n] or of several runs [n, R], named "run/metric" then.

        Returns a word on them for the progress bar.
        """
        arrays = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        shown = "bits_per_dim" if "bits_per_dim" in arrays else "loss"
        word = f"{shown.replace('_per_', '/')} {np.mean(arrays[shown]):.3f}"
        if self.names:
            arrays = {
                f"{run}/{name}": value[:, i]
                for i, run in enumerate(self.names)
                for name, value in arrays.items()
            }
        columns = {name: value.tolist() for name, value in arrays.items()}
        watched = [n for m in ("loss", "grad_norm") for n in columns if n.split("/")[-1] == m]
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            self.step += 1
            for name in watched:
                if not math.isfinite(row[name]):
                    self._lose(name, row[name])
            for name, value in (row | {"steps": 1}).items():
                self.window[name] = self.window.get(name, 0) + value
            if self.step % self.every == 0:
                steps = self.window.pop("steps")
                if self.log is not None:
                    means = {name: s / steps for name, s in self.window.items()}
                    self.log.write(self.step, means)
                self.window = {}
        return word

    def _lose(self, name: str, value: float) -> None:
        """A run is over; of several side by side the others go on, for they share nothing with it."""
        what, run = f"{name} is {value}", name.rpartition("/")[0]
        if len(self.lost | {run}) >= len(self.names):
            raise diverged(what, self.step, self.store)
        if run not in self.lost:
            tqdm.write(f"{what} at step {self.step}: {run} is lost, the others go on", sys.stderr)
        self.lost.add(run)


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
