"""A training session between two dispatches: dispatch, save, evaluate, finish."""

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
from vdm_jax.typing import Batch


class NonFinite(FloatingPointError):
    """The run has diverged.

    Attributes:
      step: at which it was given up.
      batch: this process's part of the batch of that step, if the loss or the gradient was not finite there.
    """

    def __init__(self, message: str, step: int, batch: Batch | None = None):
        super().__init__(message)
        self.step, self.batch = step, batch


class _Dispatches:
    """Dispatched steps whose metrics have not been fetched yet, oldest first."""

    def __init__(self, meter: Meter, store: CheckpointStore):
        self.meter, self.store = meter, store
        self.sent: list[tuple[dict[str, Any], Batch, Any]] = []
        self.signum, self.word = 0, ""

    def add(self, metrics: dict[str, Any], stack: Batch) -> None:
        """Send the signal, if there was one, along: all processes see it with the same dispatch."""
        self.sent.append((metrics, stack, max_over_processes(pending_signal())))

    def look(self, left: int) -> None:
        """Fetch the metrics of all but the newest `left` dispatches."""
        while len(self.sent) > left:
            metrics, stack, signum = self.sent.pop(0)
            first = self.meter.step
            self.word = self.meter.add(metrics)
            self.signum = max(self.signum, int(signum))
            if self.meter.ended is not None:
                what, step = self.meter.ended
                batch = jax.tree.map(itemgetter(step - first - 1), stack)
                raise NonFinite(f"{what} at step {step}: {_stopped(self.store)}", step, batch)


@dataclass
class Session:
    """The state of `fit` between two dispatches; other arguments as in `fit`.

    Attributes:
      now: the step of the state.
      due: True if the state is to be evaluated.
      check_params: True to check before a save that all parameters are finite.
      saved: the step of the last save.
    """

    state: TrainState
    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    batches: Iterator[Batch]
    _: KW_ONLY
    steps: int
    store: CheckpointStore
    log: MetricsLog | None
    about: Callable[[int], dict[str, Any]]
    meter: Meter
    checkpoint_every: int
    evaluate_every: int | None
    evaluate: Callable[[TrainState], dict[str, float]] | None
    profiler: Profiler | None
    check_params: bool
    due: bool
    now: int

    def __post_init__(self):
        self.start = self.saved = self.now
        self.sent = _Dispatches(self.meter, self.store)

    def dispatch(self, patience: Watchdog, inside: ExitStack) -> bool:
        """Train on the next stack of batches; return True if the state is to be saved then."""
        with patience.wait(f"training, after step {self.now}"):
            stack = next(self.batches)
            before, self.now = self.now, self.now + len(stack.index)
            if self.profiler is not None:
                self.profiler.before(before, self.now)
            self.state, metrics = self.run(self.state, stack)
            self.sent.add(metrics, stack)
            if before == self.start:
                inside.enter_context(unsaved_work())
            if patience.settling:
                jax.block_until_ready(metrics)
            evaluated = self.evaluate is not None
            self.due = evaluated and _crosses(before, self.now, self.evaluate_every)
            saving = self.due or _crosses(before, self.now, self.checkpoint_every)
            saving = saving or self.now >= self.steps
            self.sent.look(0 if saving else 1)  # the device is kept one dispatch ahead
        if self.profiler is not None:
            self.profiler.after(self.now, metrics)
        return saving

    def save(self, patience: Watchdog) -> None:
        """Save the state and, if its evaluation is due, wait for the save."""
        with patience.wait(f"saving step {self.now}", AGREE_SECONDS):
            state = self.state
            if self.check_params and not finite(
                (state.params, state.ema_params, state.model_state)
            ):
                stopped = _stopped(self.store)
                raise NonFinite(
                    f"a parameter is not finite at step {self.now}: {stopped}", self.now
                )
            carried = self.meter.carried | {"evaluation_due": self.due}
            self.store.save(state, self.about(self.now) | {"loop": carried})
            if self.due:  # whatever happens in the evaluation finds the step saved
                self.store.wait()
            all_gather_json("saved")  # before the next wait is measured
        self.saved = self.now

    def evaluate_saved(self, patience: Watchdog) -> int:
        """Evaluate the saved state, log its bounds and annotate its checkpoint.

        Returns:
          The signal, if one came instead, or 0.
        """
        bounds, signum = _evaluate(self.evaluate, self.state)
        if bounds is None:
            return signum
        if self.now > self.start or not _logged(self.log, self.now, bounds):
            self.meter.note(bounds)  # logged already by a run that was killed right after it
        known = {"bound": _mean(bounds), "loop": self.meter.carried | {"evaluation_due": False}}
        with patience.wait(f"saving step {self.now}", AGREE_SECONDS):
            self.store.annotate(self.now, known)
        return 0

    def finish(self, patience: Watchdog) -> None:
        """Fetch the last metrics, save the last state and wait for it.

        Raises:
          OSError: the last state could not be saved.
          Interrupted: a signal came.
        """
        with patience.wait(f"the end, at step {self.now}", AGREE_SECONDS):
            self.sent.look(0)
        if self.saved < self.now:
            self.save(patience)
        with patience.wait(f"saving step {self.now}", AGREE_SECONDS):
            self.store.wait()
        if self.store.failure:
            raise OSError(self.store.failure)
        if self.sent.signum:
            raise Interrupted(
                self.sent.signum, f" at step {self.now}; saved in {self.store.folder}"
            )


def _evaluate(evaluate: Any, state: TrainState) -> tuple[dict[str, float] | None, int]:
    """Return the bounds of a state, or the signal that came instead."""
    try:
        return evaluate(state), 0
    except Interrupted as interrupted:
        return None, interrupted.signum


def _mean(bounds: dict[str, float]) -> float | None:
    """Return the mean bound of the runs that have one; a run may be lost."""
    known = [bound for bound in bounds.values() if math.isfinite(bound)]
    return sum(known) / len(known) if known else None


@jax.jit
def finite(tree: Any) -> jax.Array:
    """Return True if every float of a tree is finite; counters and keys always are."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]))


def _logged(log: MetricsLog | None, step: int, metrics: dict[str, float]) -> bool:
    """Return True if the log has a line of a step with these metrics."""
    rows = [] if log is None else read_metrics(log.path)
    return any(row["step"] == step and metrics.keys() <= row.keys() for row in rows)


def _crosses(before: int, now: int, every: int | None) -> bool:
    """Return True if there is a multiple of `every` in (before, now]."""
    return every is not None and now // every > before // every


def _stopped(store: CheckpointStore) -> str:
    """Return the end of a message about a diverged run, with the checkpoint to continue from."""
    store.wait()
    latest = store.latest()
    safe = "none" if latest is None else f"step {latest}"
    return f"training stopped; last good checkpoint: {safe}, in {store.folder}"
