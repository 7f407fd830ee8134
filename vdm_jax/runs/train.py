"""Train what a config asks for in a folder, or continue the run that is there."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.config import to_dict
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
    config: Any,
    workdir: str | Path,
    *,
    log: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> TrainedModel:
    """Train the model of a config in a folder, or continue the run that is there.

    Args:
      config: of `vdm_jax.config.default`, as a ConfigDict or nested mapping.
      workdir: the run's folder; made if missing.
      log: gets one line for each thing that is done and where it was put.
      profile: steps [first, last) to trace into the folder's `profile/`.

    Returns:
      The trained run, evaluated on the test split, with its plots written.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config, the data or the folder, before compilation; a
        last checkpoint that could not be written.
      NonFinite: the loss or its gradient was not finite for too many steps in a row. The batch of the last of
        them is in the folder's `nonfinite/`.
      Interrupted: a signal such as SIGTERM came; the step was finished and its state saved. `Interrupted` is a
        `KeyboardInterrupt`.
    """
    return _train(Run, config, workdir, log, profile, lambda run, _, log: report(run, log))


def train_sweep(
    config: Any,
    workdir: str | Path,
    *,
    log: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> dict[str, TrainedModel]:
    """Train the runs that `config.sweep` asks for in one program, or continue them.

    Arguments and errors are those of `train`.

    Returns:
      The trained runs by name, such as "eps_seed0", evaluated on the test split, with one table and one
      figure written.
    """
    return _train(Sweep, config, workdir, log, profile, report_sweep)


def _train(
    kind: type[Job],
    config: Any,
    workdir: str | Path,
    log: Callable[[str], None],
    profile: tuple[int, int] | None,
    finish: Callable[[Any, Path, Callable[[str], None]], None],
) -> Any:
    """Train one run or several, and report them while the folder is still locked."""
    plain, workdir = to_dict(config), check_workdir(workdir)
    log = log if is_first() else _nothing
    with listening():
        setup = setup_run(kind, plain)
        with claim_workdir(workdir, plain, setup.data, setup.fit) as (store, statistics):
            job = kind(plain, statistics)
            state = _fit(job, setup, store, workdir, log, profile)
            parts = state, workdir, setup.layout, lambda settings: setup.dataset
            trained = job.trained(*parts, check_folder=store.check_owner)
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
    """Train to the number of steps that the config asks for, from the newest checkpoint or anew."""
    settings = job.settings.train
    steps, batch_size, stack = settings.steps, settings.batch_size, settings.steps_per_dispatch
    state = _start(job, store, setup.layout)
    start = step_of(state)
    loop = store.about(start).get("loop", {}) if start > 0 else {}
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
                log=metrics_log,
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
    """Return the function of the step that describes its checkpoint."""
    digest, size = digest_of(job.statistics), job.settings.train.batch_size

    def about(step):
        position = {"step": step, "examples_seen": step * size, "batch_size": size}
        return {
            "config": job.config,
            "data": setup.data,
            "statistics": digest,
            "position": position | {"seed": job.settings.seed},
        }

    return about


def _check_profile(profile: tuple[int, int], start: int, steps: int) -> None:
    if not (start < profile[1] and profile[0] < steps):
        raise ValueError(
            f"--profile: steps {profile[0]}:{profile[1]} are none of this run, {start}:{steps}"
        )


def _start(job: Run | Sweep, store: CheckpointStore, layout: Layout) -> TrainState:
    """Return the state of the newest checkpoint, whatever its layout was, or a fresh one."""
    like = jax.eval_shape(job.start)
    places = shardings(layout, like)
    if store.latest() is None:
        # made where it is to lie: nothing else may hold memory that is donated
        return jax.jit(job.start, out_shardings=places)()
    return store.restore(like, shardings=places)


def _bounds(
    job: Run | Sweep, workdir: Path, setup: Setup
) -> Callable[[TrainState], dict[str, float]]:
    """Return a function that computes the test bound of each run of a state, in bits/dim."""

    def bounds(state):
        found = job.trained(state, workdir, setup.layout, lambda settings: setup.dataset)
        results = {}
        for name, run in (found if isinstance(found, dict) else {"": found}).items():
            results[f"{name}/test_bits_per_dim".lstrip("/")] = run.bits_per_dim("test")
        return results

    return bounds


def _keep(error: NonFinite, workdir: Path) -> None:
    """Write the batch that ended a run, for `replay`; each process its part."""
    if error.batch is None:
        return
    of = f".process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / "nonfinite" / f"step_{error.step}{of}.npz"
    batch: Any = error.batch._asdict()
    try:
        make_folder(path.parent)
        write_file(path, lambda file: np.savez(file, step=error.step, **batch))
        error.args = (f"{error}; its batch: {path}",)
    except OSError as failure:
        error.args = (f"{error}; its batch could not be written: {failure.strerror}",)


def _nothing(line: str) -> None:
    del line
