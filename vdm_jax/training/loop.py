"""The loop around the step: several steps a dispatch, metrics fetched one dispatch late, checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
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
      state: where to start.
      step: of `make_step`.
      batches: stacks from the state's own step on.
      steps: number of the last step.
      store: gets a state about every `checkpoint_every` steps and the last one.
      log: gets the mean of the metrics about every `log_every` steps.
      about: what a checkpoint says of itself.

    Raises:
      FloatingPointError: a loss or gradient is not finite; nothing is saved from there on.
    """
    run = dispatch(step)
    start = now = int(state.step)
    meter = Meter(log, log_every, start)
    pending: list[dict[str, Any]] = []
    with tqdm(total=steps, initial=start, desc="train", unit="step", smoothing=0.05) as bar:
        for stack in batches:
            state, metrics = run(state, stack)
            pending.append(metrics)
            before, now = now, now + len(stack.index)
            saving = now // checkpoint_every > before // checkpoint_every or now >= steps
            while len(pending) > (0 if saving else 1):  # the device is kept one dispatch ahead
                bar.set_postfix_str(meter.add(pending.pop(0), store.latest()))
            bar.update(now - before)
            if saving:
                store.save(state, about)
    return state


class Meter:
    """Collects fetched metrics, watches them and writes their means."""

    def __init__(self, log: MetricsLog, every: int, step: int):
        self.log, self.every, self.step = log, every, step
        self.rows: list[dict[str, np.ndarray]] = []

    def add(self, metrics: dict[str, Any], safe_step: int | None) -> str:
        """Take the metrics of a dispatch, arrays [n]; return a word on them for the progress bar."""
        row = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            bad = ~np.isfinite(row[name])
            if bad.any():
                first = int(np.argmax(bad))
                safe = "none" if safe_step is None else f"step {safe_step}"
                raise FloatingPointError(
                    f"{name} is {row[name][first]} at step {self.step + first + 1}: training stopped; "
                    f"last good checkpoint: {safe}, in {self.log.path.parent}"
                )
        before, self.step = self.step, self.step + len(row["loss"])
        self.rows.append(row)
        if self.step // self.every > before // self.every:
            names = self.rows[0]
            means = {n: float(np.mean(np.concatenate([r[n] for r in self.rows]))) for n in names}
            self.log.write(self.step, means)
            self.rows = []
        return f"bits/dim {np.mean(row['bits_per_dim']):.3f}"
