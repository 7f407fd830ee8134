"""The parts of the training loop: dispatch, save, evaluate, finish."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.runtime.interrupt import Interrupted, pending_signal, unsaved_work
from vdm_jax.runtime.processes import (
    AGREE_SECONDS,
    Watchdog,
    all_gather_json,
    max_over_processes,
)
from vdm_jax.runtime.profile import Profiler
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.meter import Meter
from vdm_jax.training.state import TrainState
from vdm_jax.typing import Array, Batch, PyTree


class NonFinite(FloatingPointError):
    """Error for a run that has diverged.

    Attributes:
      step: the step at which it ended.
      batch: this process's part of the batch of that step, if the loss or the gradient was not finite there.
    """

    def __init__(self, message: str, step: int, batch: Batch | None = None):
        super().__init__(message)
        self.step, self.batch = step, batch


class _Dispatches:
    """Dispatched steps whose metrics have not been fetched yet, oldest first."""

    def __init__(self, meter: Meter, store: CheckpointStore):
        self.meter, self.store = meter, store
        self.pending: list[tuple[dict[str, Any], Batch, Any]] = []  # metrics, batches, signal
        self.signum, self.summary = 0, ""

    def add(self, metrics: dict[str, Any], stack: Batch) -> None:
        """Add a dispatch with the pending signal, so that all processes receive it with the same dispatch."""
        self.pending.append((metrics, stack, max_over_processes(pending_signal())))

    def fetch(self, keep: int) -> None:
        """Fetch the metrics of all but the newest `keep` dispatches.

        Raises:
          NonFinite: the run has diverged.
        """
        while len(self.pending) > keep:
            metrics, stack, signum = self.pending.pop(0)
            first = self.meter.step
            self.summary = self.meter.add(metrics)
            self.signum = max(self.signum, int(signum))
            if self.meter.ended is not None:
                reason, step = self.meter.ended
                batch = jax.tree.map(itemgetter(step - first - 1), stack)
                raise NonFinite(f"{reason} at step {step}: {_stopped(self.store)}", step, batch)


@dataclass
class Session:
    """State of `fit` between two dispatches; the arguments not listed here are those of `fit`.

    Attributes:
      check_params: True to check before a save that all parameters are finite.
      evaluation_due: True if the state still has to be evaluated.
      step: the step of the state.
      start: the step at which the session started.
      saved_step: the step of the last save.
      dispatches: dispatched steps whose metrics have not been fetched yet.
    """

    state: TrainState
    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    batches: Iterator[Batch]
    _: KW_ONLY
    steps: int
    store: CheckpointStore
    metrics_log: MetricsLog | None
    about: Callable[[int], dict[str, Any]]
    meter: Meter
    checkpoint_every: int
    evaluate_every: int | None
    evaluate: Callable[[TrainState], dict[str, float]] | None
    profiler: Profiler | None
    check_params: bool
    evaluation_due: bool
    step: int

    def __post_init__(self) -> None:
        self.start = self.saved_step = self.step
        self.dispatches = _Dispatches(self.meter, self.store)

    def dispatch(self, watchdog: Watchdog, exit_stack: ExitStack) -> bool:
        """Train on the next stack of batches; return True if the state has to be saved afterwards."""
        with watchdog.wait(f"training, after step {self.step}"):
            stack = next(self.batches)
            before, self.step = self.step, self.step + len(stack.index)
            if self.profiler is not None:
                self.profiler.before(before, self.step)
            self.state, metrics = self.run(self.state, stack)
            self.dispatches.add(metrics, stack)
            if before == self.start:
                exit_stack.enter_context(unsaved_work())
            if watchdog.settling:
                # dispatch is asynchronous: without this the wait would measure nothing
                jax.block_until_ready(metrics)
            self.evaluation_due = self.evaluate is not None and _crosses(
                before, self.step, self.evaluate_every
            )
            saving = (
                self.evaluation_due
                or _crosses(before, self.step, self.checkpoint_every)
                or self.step >= self.steps
            )
            # one dispatch stays in flight, so that the device never waits for the host; none before a save
            self.dispatches.fetch(keep=0 if saving else 1)
        if self.profiler is not None:
            self.profiler.after(self.step, metrics)
        return saving

    def save(self, watchdog: Watchdog) -> None:
        """Save the state; wait until it is written if its evaluation is due.

        Raises:
          NonFinite: a parameter is not finite.
        """
        with watchdog.wait(f"saving step {self.step}", AGREE_SECONDS):
            trees = self.state.params, self.state.ema_params, self.state.model_state
            if self.check_params and not finite(trees):
                stopped = _stopped(self.store)
                raise NonFinite(
                    f"a parameter is not finite at step {self.step}: {stopped}", self.step
                )
            loop = self.meter.carried | {"evaluation_due": self.evaluation_due}
            self.store.save(self.state, self.about(self.step) | {"loop": loop})
            if self.evaluation_due:
                # a run that dies during the evaluation must find the step saved
                self.store.wait()
            # a slow save in another process must not count in the next wait, whose limit is shorter
            all_gather_json("saved")
        self.saved_step = self.step

    def evaluate_saved(self, watchdog: Watchdog) -> int:
        """Evaluate the saved state, log its bounds and annotate its checkpoint.

        Returns:
          The signal that interrupted the evaluation, or 0.
        """
        assert self.evaluate is not None
        try:
            bounds = self.evaluate(self.state)
        except Interrupted as interrupted:
            return interrupted.signum
        # a run that was killed between the two writes below has logged its bounds already
        if self.step > self.start or not _logged(self.metrics_log, self.step, bounds):
            self.meter.write(bounds)
        loop = self.meter.carried | {"evaluation_due": False}
        with watchdog.wait(f"saving step {self.step}", AGREE_SECONDS):
            self.store.annotate(self.step, {"bound": _mean(bounds), "loop": loop})
        return 0

    def finish(self, watchdog: Watchdog) -> None:
        """Fetch the last metrics, save the last state and wait until it is written.

        Raises:
          OSError: the last state could not be saved.
          Interrupted: a signal arrived.
        """
        with watchdog.wait(f"the end, at step {self.step}", AGREE_SECONDS):
            self.dispatches.fetch(keep=0)
        if self.saved_step < self.step:
            self.save(watchdog)
        with watchdog.wait(f"saving step {self.step}", AGREE_SECONDS):
            self.store.wait()
        if self.store.failure:
            raise OSError(self.store.failure)
        signum = self.dispatches.signum
        if signum:
            raise Interrupted(signum, f" at step {self.step}; saved in {self.store.folder}")


def _mean(bounds: dict[str, float]) -> float | None:
    """Return the mean of the finite bounds, without runs that diverged, or None if there is none."""
    finite_bounds = [bound for bound in bounds.values() if math.isfinite(bound)]
    return sum(finite_bounds) / len(finite_bounds) if finite_bounds else None


@jax.jit
def finite(tree: PyTree) -> Array:
    """Return True if every float of a tree is finite; integers and keys are not checked."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]))


def _logged(metrics_log: MetricsLog | None, step: int, metrics: dict[str, float]) -> bool:
    """Return True if the log has a line with these metrics at a step."""
    rows = [] if metrics_log is None else read_metrics(metrics_log.path)
    return any(row["step"] == step and metrics.keys() <= row.keys() for row in rows)


def _crosses(before: int, after: int, every: int | None) -> bool:
    """Return True if there is a multiple of `every` in (before, after]."""
    return every is not None and after // every > before // every


def _stopped(store: CheckpointStore) -> str:
    """Return the end of a message about a diverged run: the checkpoint from which to continue."""
    store.wait()
    safe = "none" if store.newest is None else f"step {store.newest}"
    return f"training stopped; last good checkpoint: {safe}, in {store.folder}"
