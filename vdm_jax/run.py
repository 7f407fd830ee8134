"""Train what a config asks for in a folder, continue the run that is there, or load it."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vdm_jax.config import difference, to_dict, with_defaults
from vdm_jax.data import Dataset
from vdm_jax.jobs import Many, One
from vdm_jax.prepare import Data, Job, find, prepare
from vdm_jax.report import compare, report
from vdm_jax.specs import choose
from vdm_jax.trained import Trained, check_data, write_json
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.interrupt import listening
from vdm_jax.training.layout import Layout, shardings
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.loop import NonFinite, fit
from vdm_jax.training.parallel import dispatcher, make_layout
from vdm_jax.training.processes import by_first, is_first
from vdm_jax.training.profile import Profiler
from vdm_jax.training.state import TrainState, step_of


def train(
    config: Any,
    workdir: str | Path,
    *,
    say: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> Trained:
    """Train the model of a config in a folder, or continue the run that is there.

    Args:
      config: of `vdm_jax.config.default`, as a ConfigDict or nested mapping.
      workdir: the run's folder; made if missing.
      say: gets one line for each thing that is done and where it was put.
      profile: steps [first, last) to trace into the folder's `profile/`.

    Returns:
      The trained run, evaluated on the test split, with its pictures written.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config, the data or the folder, before compilation; a
        last checkpoint that could not be written.
      NonFinite: the loss or its gradient was not finite for too many steps in a row. The batch of the last of
        them is in the folder's `nonfinite/`.
      Interrupted: SIGTERM or SIGINT came; the step was finished and its state saved. It is a
        `KeyboardInterrupt`.
    """
    plain, workdir = to_dict(config), Path(workdir)
    say = say if is_first() else _nothing
    with listening():
        asked, data, layout = prepare(One, plain, workdir)
        state = _fit(asked, data, layout, workdir, say, profile)
        trained = asked.trained(state, workdir, layout, data.dataset)
        report(trained, say)
    return trained


def train_side_by_side(
    config: Any,
    workdir: str | Path,
    *,
    say: Callable[[str], None] = print,
    profile: tuple[int, int] | None = None,
) -> dict[str, Trained]:
    """Train the runs that `config.runs` asks for in one program, or continue them.

    Arguments and errors are those of `train`.

    Returns:
      The trained runs by name, such as "eps_seed0", evaluated on the test split, with one table and one
      figure written.
    """
    plain, workdir = to_dict(config), Path(workdir)
    say = say if is_first() else _nothing
    with listening():
        asked, data, layout = prepare(Many, plain, workdir)
        state = _fit(asked, data, layout, workdir, say, profile)
        trained = asked.trained(state, workdir, layout, data.dataset)
        compare(trained, workdir, say)
    return trained


def load(
    workdir: str | Path,
    step: int | Literal["newest", "best"] = "newest",
    *,
    parallel: str = "auto",
    fsdp: int = 1,
) -> Trained:
    """Load a checkpoint of a run, on the devices that are here; the run may be going on.

    Args:
      workdir: the run's folder.
      step: one that was kept; "newest": that is whole; "best": with the lowest bound of those that
        `train.evaluate_every` evaluated on the test split, which is then no longer a test.
      parallel, fsdp: of `make_layout`; not necessarily those that it was trained with.

    Raises:
      FileNotFoundError: there is no run, or none with that checkpoint.
      ValueError: a layout that the devices do not allow, a folder of runs side by side, a damaged checkpoint.
    """
    asked, state, layout = _restore(One, Path(workdir), step, parallel, fsdp)
    return asked.trained(state, Path(workdir), layout)


def load_side_by_side(
    workdir: str | Path,
    step: int | Literal["newest", "best"] = "newest",
    *,
    parallel: str = "auto",
    fsdp: int = 1,
) -> dict[str, Trained]:
    """Load runs that were trained side by side, by name; otherwise as `load`. "best" is so on average."""
    asked, state, layout = _restore(Many, Path(workdir), step, parallel, fsdp)
    return asked.trained(state, Path(workdir), layout)


def _fit(
    asked: One | Many,
    data: Data,
    layout: Layout,
    workdir: Path,
    say: Callable[[str], None],
    profile: tuple[int, int] | None,
) -> TrainState:
    """Train to the number of steps that is asked for, from where the folder is."""
    settings = dict(asked.config["train"])
    for used in ("parallel", "fsdp"):
        del settings[used]
    steps, batch_size = settings["steps"], settings.pop("batch_size")
    stack, keep = settings.pop("steps_per_dispatch"), settings.pop("keep_checkpoints")
    ema = {name: settings.pop(name) for name in ("ema_decay", "ema_warmup")}

    def about(step):
        seed = asked.config["seed"]
        position = {"step": step, "examples_seen": step * batch_size, "batch_size": batch_size}
        return {
            "config": asked.config,
            "data": data.about,
            "position": position | {"seed": seed},
        }

    with CheckpointStore(workdir / "checkpoints", keep) as store:
        state = _start(asked, store, layout, data.about)
        start = step_of(state)
        by_first(partial(write_json, workdir / "config.json", asked.config))
        due = start > 0 and store.about(start)["loop"].get("evaluation_due", False)
        if start >= steps and not due:
            say(f"already trained: {workdir} is at step {start}, {steps} asked for")
            return state
        if start > 0:
            say(f"continuing from step {start} in {workdir}")
        if profile is not None:
            if not (start < profile[1] and profile[0] < steps):
                raise ValueError(
                    f"--profile: steps {profile[0]}:{profile[1]} are none of this run, {start}:{steps}"
                )
            say(f"a trace of steps {profile[0]}:{profile[1]} goes to {workdir / 'profile'}")
        with (
            MetricsLog(workdir, start) if is_first() else nullcontext() as log,
            Profiler(profile, workdir / "profile") as profiler,
        ):
            try:
                return fit(
                    state,
                    dispatcher(layout, asked.step(layout, **ema), state, stack),
                    asked.batches(
                        data.dataset.train,
                        batch_size=batch_size,
                        start_step=start,
                        stop_step=steps,
                        stack=stack,
                        process_index=jax.process_index(),
                        process_count=jax.process_count(),
                    ),
                    store=store,
                    log=log,
                    about=about,
                    evaluate=_bounds(asked, workdir, layout, data.dataset),
                    profiler=profiler,
                    names=asked.names,
                    **settings,
                )
            except NonFinite as error:
                _keep(error, workdir)
                raise


def _start(
    asked: One | Many, store: CheckpointStore, layout: Layout, data: dict[str, Any]
) -> TrainState:
    """The state of the newest checkpoint, whatever its layout was, or a fresh one."""
    like = jax.eval_shape(asked.start)
    places = shardings(layout, like)
    step = store.latest()
    if step is None:
        # made where it is to lie: nothing else may hold memory that is donated
        return jax.jit(asked.start, out_shardings=places)()
    state, about = store.restore(like, shardings=places), store.about(step)
    lines = difference(with_defaults(about["config"]), asked.config)
    if lines:
        raise ValueError(f"checkpoint {step} in {store.folder}: {'; '.join(lines)}")
    check_data(about, data, store.folder)
    return state


def _bounds(
    asked: One | Many, workdir: Path, layout: Layout, dataset: Dataset
) -> Callable[[TrainState], dict[str, float]]:
    """The test bound of each run of a state, in bits/dim."""

    def bounds(state):
        found = asked.trained(state, workdir, layout, dataset)
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
        path.parent.mkdir(exist_ok=True)
        np.savez(path, step=error.step, **batch)
        error.args = (f"{error}; its batch: {path}",)
    except OSError as failure:
        error.args = (f"{error}; its batch could not be written: {failure.strerror}",)


def _restore(
    kind: type[Job],
    workdir: Path,
    step: int | Literal["newest", "best"],
    parallel: str,
    fsdp: int,
) -> tuple[Job, TrainState, Layout]:
    layout = make_layout(parallel, fsdp)
    asked = find(kind, workdir)
    like = jax.eval_shape(asked.start)
    with CheckpointStore(workdir / "checkpoints", read_only=True) as store:
        by_name = {"newest": store.latest, "best": store.best}
        number = choose(by_name, step, "step")() if isinstance(step, str) else step
        if step == "best" and number is None:
            raise FileNotFoundError(
                f"no best checkpoint in {store.folder}: config.train.evaluate_every evaluated none"
            )
        return asked, store.restore(like, number, shardings=shardings(layout, like)), layout


def _nothing(line: str) -> None:
    del line
