"""The loop around the step: metrics fetched one dispatch late, logs, checkpoints, and when it has to end."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.console import STDERR
from vdm_jax.training.interrupt import Interrupted, asked, deferred, is_command, unsaved
from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.meter import Meter
from vdm_jax.training.processes import (
    AGREE_SECONDS,
    STALL_SECONDS,
    Patience,
    everyone,
    is_first,
    vote,
)
from vdm_jax.training.profile import Profiler
from vdm_jax.training.state import TrainState, step_of
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
    """What was sent to the device and not yet looked at, oldest first."""

    def __init__(self, meter: Meter, store: CheckpointStore):
        self.meter, self.store = meter, store
        self.sent: list[tuple[dict[str, Any], Batch, Any]] = []
        self.signum, self.word = 0, ""

    def add(self, metrics: dict[str, Any], stack: Batch) -> None:
        """Send the signal, if there was one, along: all processes see it with the same dispatch."""
        self.sent.append((metrics, stack, vote(asked())))

    def look(self, left: int) -> None:
        """Look at all but the newest so many."""
        while len(self.sent) > left:
            metrics, stack, signum = self.sent.pop(0)
            first = self.meter.step
            self.word = self.meter.add(metrics)
            self.signum = max(self.signum, int(signum))
            if self.meter.ended is not None:
                what, step = self.meter.ended
                batch = jax.tree.map(itemgetter(step - first - 1), stack)
                raise NonFinite(f"{what} at step {step}: {_stopped(self.store)}", step, batch)


def fit(
    state: TrainState,
    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    batches: Iterator[Batch],
    *,
    steps: int,
    store: CheckpointStore,
    log: MetricsLog | None,
    about: Callable[[int], dict[str, Any]],
    log_every: int,
    checkpoint_every: int,
    evaluate_every: int | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    max_nonfinite_steps: int = 3,
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
      store: gets a state about every `checkpoint_every` steps, before every evaluation, and the last one.
      log: gets the mean of the metrics at every multiple of `log_every`; None in all processes but one.
      about: what a checkpoint of a step says of itself.
      evaluate_every: steps between evaluations, whose bound is logged and noted with the state; None for none.
      evaluate: the test bound of a state, of each run if there are several, in bits/dim.
      max_nonfinite_steps: so many steps in a row whose loss or gradient is not finite end the run.
      stall_seconds: see `Patience`.
      profiler: traces some of the steps.
      names: of the runs, if the state is of several side by side.

    Raises:
      NonFinite: too many steps in a row, or a parameter, are not finite; nothing is saved from there on.
      Interrupted: a signal came; the step was finished and its state saved.
      OSError: the last state could not be saved.
    """
    start = now = saved = step_of(state)
    begun = store.about(start)["loop"] if store.latest() == start else {}
    # the run ended before or in it; not made up for where it is no longer asked for, as after it failed
    due = begun.get("evaluation_due", False) and evaluate_every is not None
    watched = {"every": log_every, "patience": max_nonfinite_steps, "names": names}
    meter = Meter(log, step=start, begun=begun, **watched)
    sent = _Dispatches(meter, store)
    shown = {"total": steps, "initial": start, "desc": "train", "unit": "step", "smoothing": 0.05}

    def save() -> None:
        with patience.wait(f"saving step {now}", AGREE_SECONDS):
            if not names and not finite((state.params, state.ema_params)):
                raise NonFinite(f"a parameter is not finite at step {now}: {_stopped(store)}", now)
            carried = meter.carried | {"evaluation_due": due}
            store.save(state, about(now) | {"loop": carried})
            if due:  # whatever happens in the evaluation finds the step saved
                store.wait()
            everyone("saved")  # before the next wait is measured

    def evaluated() -> int:
        """Evaluate the state that is saved: log its bounds, note that they are no longer due.

        Returns the signal, if one came instead.
        """
        bounds, signum = _evaluate(evaluate, state)
        if bounds is None:
            return signum
        if now > start or not _logged(log, now, bounds):  # by a run that was killed right after it
            meter.note(bounds)
        known = {"bound": _mean(bounds), "loop": meter.carried | {"evaluation_due": False}}
        with patience.wait(f"saving step {now}", AGREE_SECONDS):
            store.note(now, known)
        return 0

    with ExitStack() as inside:
        inside.enter_context(deferred())
        patience = inside.enter_context(Patience(stall_seconds, command=is_command()))
        bar = inside.enter_context(tqdm(**shown, disable=not is_first(), file=STDERR))
        if due and evaluate is not None:
            sent.signum = evaluated()
        while now < steps and not sent.signum:
            with patience.wait(f"training, after step {now}"):
                stack = next(batches)
                before, now = now, now + len(stack.index)
                if profiler is not None:
                    profiler.before(before, now)
                state, metrics = run(state, stack)
                sent.add(metrics, stack)
                if before == start:
                    inside.enter_context(unsaved())
                if patience.settling:
                    jax.block_until_ready(metrics)
                due = evaluate is not None and _crosses(before, now, evaluate_every)
                saving = due or _crosses(before, now, checkpoint_every) or now >= steps
                sent.look(0 if saving else 1)  # the device is kept one dispatch ahead
            if profiler is not None:
                profiler.after(now, metrics)
            bar.set_postfix_str(sent.word, refresh=False)
            bar.update(now - before)
            store.poll()
            if jax.process_count() == 1:  # at once
                sent.signum = asked()
            if saving:
                save()
                saved = now
                if due and not sent.signum:
                    sent.signum = evaluated()
        with patience.wait(f"the end, at step {now}", AGREE_SECONDS):
            sent.look(0)
        if saved < now:
            save()
        with patience.wait(f"saving step {now}", AGREE_SECONDS):
            store.wait()
        if store.failure:
            raise OSError(store.failure)
        if sent.signum:
            raise Interrupted(sent.signum, f" at step {now}; saved in {store.folder}")
    return state


def _evaluate(evaluate: Any, state: TrainState) -> tuple[dict[str, float] | None, int]:
    """The bounds, or the signal that came."""
    try:
        return evaluate(state), 0
    except Interrupted as interrupted:
        return None, interrupted.signum


def _mean(bounds: dict[str, float]) -> float | None:
    """The mean bound of the runs that have one; a run may be lost."""
    known = [bound for bound in bounds.values() if math.isfinite(bound)]
    return sum(known) / len(known) if known else None


@jax.jit
def finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _logged(log: MetricsLog | None, step: int, metrics: dict[str, float]) -> bool:
    """Whether the log has a line of a step with these metrics."""
    rows = [] if log is None else read_metrics(log.path)
    return any(row["step"] == step and metrics.keys() <= row.keys() for row in rows)


def _crosses(before: int, now: int, every: int | None) -> bool:
    """Whether there is a multiple of `every` in (before, now]."""
    return every is not None and now // every > before // every


def _stopped(store: CheckpointStore) -> str:
    """How a run that diverged ends, and where it can be continued from."""
    store.wait()
    latest = store.latest()
    safe = "none" if latest is None else f"step {latest}"
    return f"training stopped; last good checkpoint: {safe}, in {store.folder}"
