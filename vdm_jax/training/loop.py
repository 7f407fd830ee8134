"""The training loop: dispatch steps, log, save checkpoints, evaluate, and handle signals."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import jax
from tqdm import tqdm

from vdm_jax.runtime.console import STDERR
from vdm_jax.runtime.interrupt import defer_signals, is_command, pending_signal
from vdm_jax.runtime.processes import STALL_SECONDS, Watchdog, is_first
from vdm_jax.runtime.profile import Profiler
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.meter import Meter
from vdm_jax.training.session import NonFinite, Session
from vdm_jax.training.state import TrainState, step_of
from vdm_jax.typing import Batch

__all__ = ["NonFinite", "fit"]


def fit(
    state: TrainState,
    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    batches: Iterator[Batch],
    *,
    steps: int,
    store: CheckpointStore,
    metrics_log: MetricsLog | None,
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
      state: the state to start from; its arrays are donated.
      run: the compiled steps, made by `dispatch.dispatcher`.
      batches: stacks of batches from the state's step on, this process's part of them.
      steps: number of the last step.
      store: saves a state about every `checkpoint_every` steps, before every evaluation, and the last one.
      metrics_log: receives the mean metrics at every multiple of `log_every`; None in all processes but one.
      about: step -> JSON fields to store in its checkpoint.
      log_every: steps between lines of the log.
      checkpoint_every: steps between checkpoints; one is saved after the dispatch that reaches a multiple.
      evaluate_every: steps between evaluations, whose bound is logged and stored with the checkpoint; None for
        no evaluations.
      evaluate: state -> test bound of each of its runs by metric name, in bits/dim.
      max_nonfinite_steps: number of consecutive steps without a finite loss and gradient that end the run.
      stall_seconds: see `Watchdog`.
      profiler: traces some of the steps.
      names: names of the runs of a sweep; empty for a single run.

    Raises:
      NonFinite: too many consecutive steps, or a parameter, are not finite; the state is not saved.
      Interrupted: a signal arrived; the step was finished and its state saved.
      OSError: the last state could not be saved.
    """
    start = step_of(state)
    resumed = store.about(start).get("loop", {}) if store.newest == start else {}
    meter = Meter(
        metrics_log,
        step=start,
        begun=resumed,
        every=log_every,
        patience=max_nonfinite_steps,
        names=names,
    )
    session = Session(
        state,
        run,
        batches,
        steps=steps,
        store=store,
        metrics_log=metrics_log,
        about=about,
        meter=meter,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        evaluate=evaluate,
        profiler=profiler,
        check_params=not names,  # one diverged run must not end the others of a sweep
        # the run ended before or during the evaluation; skipped if evaluations were turned off since
        evaluation_due=resumed.get("evaluation_due", False) and evaluate_every is not None,
        step=start,
    )
    with ExitStack() as exit_stack:
        exit_stack.enter_context(defer_signals())
        watchdog = exit_stack.enter_context(Watchdog(stall_seconds, command=is_command()))
        bar = exit_stack.enter_context(_progress_bar(start, steps))
        _train(session, watchdog, exit_stack, bar)
        session.finish(watchdog)
    return session.state


def _train(session: Session, watchdog: Watchdog, exit_stack: ExitStack, bar: tqdm) -> None:
    """Dispatch, save and evaluate until the last step or a signal."""
    dispatches = session.dispatches
    if session.evaluation_due and session.evaluate is not None:
        dispatches.signum = session.evaluate_saved(watchdog)
    while session.step < session.steps and not dispatches.signum:
        saving = session.dispatch(watchdog, exit_stack)
        bar.set_postfix_str(dispatches.summary, refresh=False)
        bar.update(session.step - bar.n)
        session.store.poll()
        if jax.process_count() == 1:  # several processes agree on a signal one dispatch later
            dispatches.signum = pending_signal()
        if saving:
            session.save(watchdog)
            if session.evaluation_due and not dispatches.signum:
                dispatches.signum = session.evaluate_saved(watchdog)


def _progress_bar(start: int, steps: int) -> tqdm:
    """Return the progress bar of process 0; the other processes show none."""
    return tqdm(
        total=steps,
        initial=start,
        desc="train",
        unit="step",
        smoothing=0.05,
        disable=not is_first(),
        file=STDERR,
    )
