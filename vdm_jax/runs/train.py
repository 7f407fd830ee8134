"""Train the runs of a config in a folder, or continue them from their last checkpoint."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vdm_jax.config import resolve
from vdm_jax.models.statistics import digest_of
from vdm_jax.runs.folder import claim_workdir
from vdm_jax.runs.report import report, report_sweep
from vdm_jax.runs.setup import Job, Setup, setup_run
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.files import make_folder, write_file
from vdm_jax.runtime.interrupt import listening
from vdm_jax.runtime.paths import check_workdir
from vdm_jax.runtime.processes import is_first
from vdm_jax.runtime.profile import Profiler
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.dispatch import dispatcher
from vdm_jax.training.layout import Layout, shardings
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.loop import NonFinite, fit
from vdm_jax.training.state import TrainState, step_of


def train(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    log: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> TrainedModel:
    """Train the model of a config in a folder, or continue the run that the folder holds.

    Args:
      config: with the fields of `vdm_jax.config.default`.
      workdir: folder of the run; made if missing.
      log: called with each result and with the path of each file, a line each.
      profile: steps [first, last) to trace into the folder's `profile/`.

    Returns:
      The trained run, evaluated on the test split, with its plots written.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config, the data or the folder, before compilation; a
        last checkpoint that could not be written.
      NonFinite: the loss or its gradient was not finite for too many steps in a row. The batch of the last of
        them is in the folder's `nonfinite/`.
      Interrupted: a signal such as SIGTERM arrived; the step was finished and its state saved. `Interrupted` is
        a `KeyboardInterrupt`.
    """
    return _train(Run, config, workdir, log, profile, lambda run, _, log: report(run, log))


def train_sweep(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    log: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> dict[str, TrainedModel]:
    """Train the runs of `config.sweep` in one program, or continue them.

    Arguments and errors are those of `train`.

    Returns:
      The trained runs by name, such as "eps_seed0", evaluated on the test split, with one table and one
      figure written.
    """
    return _train(Sweep, config, workdir, log, profile, report_sweep)


def _train(
    kind: type[Job],
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    log: Callable[[str], None],
    profile: tuple[int, int] | None,
    finish: Callable[[Any, Path, Callable[[str], None]], None],
) -> Any:
    """Train a run or a sweep, and report it while the folder is still locked."""
    settings, workdir = resolve(config), check_workdir(workdir)
    log = log if is_first() else _nothing  # all processes compute, one logs
    with listening():
        setup = setup_run(kind, settings)
        with claim_workdir(workdir, settings, setup.data, setup.fit) as (store, statistics):
            job = kind(settings, statistics)
            state = _fit(job, setup, store, workdir, log, profile)
            trained = job.trained(
                state,
                workdir,
                setup.layout,
                lambda settings: setup.dataset,  # loaded already
                check_folder=store.check_owner,
            )
            finish(trained, workdir, log)
    return trained


def _fit(
    job: Run | Sweep,
    setup: Setup,
    store: CheckpointStore,
    workdir: Path,
    log: Callable[[str], None],
    profile: tuple[int, int] | None,
) -> TrainState:
    """Train up to `config.train.steps`, from the newest checkpoint or from the start."""
    settings = job.settings.train
    steps, batch_size, stack = settings.steps, settings.batch_size, settings.steps_per_dispatch
    state = _start(job, store, setup.layout)
    start = step_of(state)
    loop = store.about(start).get("loop", {}) if start > 0 else {}
    # a run killed between its last save and the evaluation of that step has to evaluate it first
    due = loop.get("evaluation_due", False)
    if start >= steps and not due:
        log(f"already trained: {workdir} is at step {start}, {steps} asked for")
        return state
    if start > 0:
        log(f"continuing from step {start} in {workdir}")
    if profile is not None:
        _check_profile(profile, start, steps)
        log(f"a trace of steps {profile[0]}:{profile[1]} goes to {workdir / 'profile'}")
    with (
        MetricsLog(workdir, start, loop.get("lines", 0))
        if is_first()
        else nullcontext() as metrics_log,
        Profiler(profile, workdir / "profile") as profiler,
    ):
        try:
            return fit(
                state,
                dispatcher(setup.layout, job.step(setup.layout), state, stack),
                job.batches(
                    setup.dataset.train,
                    batch_size=batch_size,
                    start_step=start,
                    stop_step=steps,
                    stack=stack,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                ),
                steps=steps,
                store=store,
                metrics_log=metrics_log,
                about=_about(job, setup),
                log_every=settings.log_every,
                checkpoint_every=settings.checkpoint_every,
                evaluate_every=settings.evaluate_every,
                evaluate=_bounds(job, workdir, setup),
                max_nonfinite_steps=settings.max_nonfinite_steps,
                stall_seconds=settings.stall_seconds,
                profiler=profiler,
                names=job.names,
            )
        except NonFinite as error:
            _keep(error, workdir)
            raise


def _about(job: Run | Sweep, setup: Setup) -> Callable[[int], dict[str, Any]]:
    """Return a function that describes the checkpoint of a step."""
    digest, size = digest_of(job.statistics), job.settings.train.batch_size

    def about(step):
        position = {"step": step, "examples_seen": step * size, "batch_size": size}
        return {
            "config": job.settings.plain,
            "data": setup.data,
            "statistics": digest,
            "position": position | {"seed": job.settings.seed},
        }

    return about


def _check_profile(profile: tuple[int, int], start: int, steps: int) -> None:
    if not (start < profile[1] and profile[0] < steps):
        raise ValueError(
            f"profile: expected steps of this run, {start}:{steps}, found {profile[0]}:{profile[1]}"
        )


def _start(job: Run | Sweep, store: CheckpointStore, layout: Layout) -> TrainState:
    """Return the state of the newest checkpoint, in this layout, or a fresh state."""
    abstract_state = jax.eval_shape(job.start)
    state_shardings = shardings(layout, abstract_state)
    if store.newest is None:
        # jitted, so that the state is made in its layout, in memory of its own: the train step donates it
        return jax.jit(job.start, out_shardings=state_shardings)()
    return store.restore(abstract_state, shardings=state_shardings)


def _bounds(
    job: Run | Sweep, workdir: Path, setup: Setup
) -> Callable[[TrainState], dict[str, float]]:
    """Return a function that computes the test bound of each run of a state, in bits/dim."""

    def bounds(state):
        trained = job.trained(state, workdir, setup.layout, lambda settings: setup.dataset)
        if isinstance(trained, TrainedModel):
            return {"test_bits_per_dim": trained.bits_per_dim("test")}
        return {
            f"{name}/test_bits_per_dim": run.bits_per_dim("test") for name, run in trained.items()
        }

    return bounds


def _keep(error: NonFinite, workdir: Path) -> None:
    """Write the batch that ended a run, each process its part, and add the path to the message."""
    if error.batch is None:
        return
    process = f".process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / "nonfinite" / f"step_{error.step}{process}.npz"
    batch: Any = error.batch._asdict()
    try:
        make_folder(path.parent)
        write_file(path, lambda file: np.savez(file, step=error.step, **batch))
        error.args = (f"{error}; its batch: {path}",)
    except OSError as failure:
        # a full disk, say, may not hide why the run ended
        error.args = (f"{error}; its batch could not be written: {failure.strerror}",)


def _nothing(line: str) -> None:
    del line
