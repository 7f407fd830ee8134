"""The loop around the train step: dispatches, logs, checkpoints, evaluations, and its end."""

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
      run: of `dispatch.dispatcher`.
      batches: stacks from the state's own step on, this process's part of them.
      steps: number of the last step.
      store: gets a state about every `checkpoint_every` steps, before every evaluation, and the last one.
      log: gets the mean of the metrics at every multiple of `log_every`; None in all processes but one.
      about: what a checkpoint of a step says of itself.
      evaluate_every: steps between evaluations, whose bound is logged and stored with the checkpoint; None for
        no evaluations.
      evaluate: the test bound of a state, of each run if there are several, in bits/dim.
      max_nonfinite_steps: number of consecutive steps without a finite loss and gradient that end the run.
      stall_seconds: see `Watchdog`.
      profiler: traces some of the steps.
      names: of the runs, if the state is of several side by side.

    Raises:
      NonFinite: too many steps in a row, or a parameter, are not finite; nothing is saved from there on.
      Interrupted: a signal came; the step was finished and its state saved.
      OSError: the last state could not be saved.
    """
    start = step_of(state)
    begun = store.about(start).get("loop", {}) if store.latest() == start else {}
    watched = {"every": log_every, "patience": max_nonfinite_steps, "names": names}
    meter = Meter(log, step=start, begun=begun, **watched)
    session = Session(
        state,
        run,
        batches,
        steps=steps,
        store=store,
        log=log,
        about=about,
        meter=meter,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        evaluate=evaluate,
        profiler=profiler,
        check_params=not names,
        # the run ended before or in it; not made up for where it is no longer wanted, as after it failed
        due=begun.get("evaluation_due", False) and evaluate_every is not None,
        now=start,
    )
    shown = {"total": steps, "initial": start, "desc": "train", "unit": "step", "smoothing": 0.05}
    with ExitStack() as inside:
        inside.enter_context(defer_signals())
        patience = inside.enter_context(Watchdog(stall_seconds, command=is_command()))
        bar = inside.enter_context(tqdm(**shown, disable=not is_first(), file=STDERR))
        if session.due and evaluate is not None:
            session.sent.signum = session.evaluate_saved(patience)
        while session.now < steps and not session.sent.signum:
            saving = session.dispatch(patience, inside)
            bar.set_postfix_str(session.sent.word, refresh=False)
            bar.update(session.now - bar.n)
            store.poll()
            if jax.process_count() == 1:  # at once
                session.sent.signum = pending_signal()
            if saving:
                session.save(patience)
                if session.due and not session.sent.signum:
                    session.sent.signum = session.evaluate_saved(patience)
        session.finish(patience)
    return session.state
