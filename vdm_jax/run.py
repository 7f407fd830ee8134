"""Train what a config asks for in a folder, continue the run that is there, or load it."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from vdm_jax.config import difference, to_dict, with_defaults
from vdm_jax.data import Dataset, level_counts, load_dataset
from vdm_jax.jobs import Many, One, expand
from vdm_jax.models import Model, base_of, build_model
from vdm_jax.models.statistics import fit_statistics, load_statistics, save_statistics
from vdm_jax.report import compare, report
from vdm_jax.specs import nearest
from vdm_jax.trained import Trained, about_data, check_data, read_json, stream, write_json
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.evaluate import make_evaluator
from vdm_jax.training.interrupt import listening
from vdm_jax.training.layout import Layout, shardings
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.loop import NonFinite, fit
from vdm_jax.training.parallel import check_batch, dispatcher, make_layout
from vdm_jax.training.processes import by_first, everyone, is_first
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
        asked, data, layout = _prepare(One, plain, workdir)
        state = _fit(asked, data, layout, workdir, say, profile)
        trained = asked.trained(state, workdir, layout)
        trained.__dict__["dataset"] = data.dataset  # loaded already
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
        asked, data, layout = _prepare(Many, plain, workdir)
        state = _fit(asked, data, layout, workdir, say, profile)
        trained = asked.trained(state, workdir, layout)
        for run in trained.values():
            run.__dict__["dataset"] = data.dataset  # loaded already
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


Job = TypeVar("Job", One, Many)


class Data(NamedTuple):
    """A data set, and what a checkpoint says of it."""

    dataset: Dataset
    about: dict[str, Any]


def _prepare(kind: type[Job], config: dict[str, Any], workdir: Path) -> tuple[Job, Data, Layout]:
    """Build and try everything before the folder is touched, so that a mistake leaves nothing behind."""
    _agree(config)
    batch_size = config["train"]["batch_size"]
    layout = make_layout(config["train"]["parallel"], config["train"]["fsdp"])
    check_batch(layout, batch_size)
    dataset = load_dataset(**config["data"])
    if batch_size > len(dataset.train.images):
        raise ValueError(
            f"config.train.batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than one batch of {batch_size}"
        )
    counts = level_counts(dataset.train.images, dataset.levels)
    statistics = fit_statistics(counts)
    kind(config, statistics)
    tried = []
    for single in expand(config).values():
        if single["model"] not in tried:
            tried.append(single["model"])
            _rehearse(single, build_model(single["model"], statistics), dataset)
    by_first(partial(_claim, workdir, config, dataset, counts))
    about = about_data(dataset, counts)
    asked = kind(config, load_statistics(workdir / "statistics.npz"))
    return asked, Data(dataset, about), layout


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
    best = settings["evaluate_every"] is not None

    def about(step):
        seed = asked.config["seed"]
        position = {"step": step, "examples_seen": step * batch_size, "batch_size": batch_size}
        return {
            "config": asked.config,
            "data": data.about,
            "position": position | {"seed": seed},
        }

    with CheckpointStore(workdir / "checkpoints", keep, best=best) as store:
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
    """The test bound of each run of a state, in bits/dim; compiled once."""
    compiled: dict[str, Any] = {}

    def bounds(state):
        found = asked.trained(state, workdir, layout)
        results = {}
        for name, run in (found if isinstance(found, dict) else {"": found}).items():
            run = replace(run, _compiled=compiled.setdefault(name, {}))
            run.__dict__["dataset"] = dataset
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
    for name in ("config.json", "statistics.npz", "checkpoints"):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"no run to load in {workdir}: {name} is missing")
    config = to_dict(with_defaults(read_json(workdir / "config.json")))
    asked = kind(config, load_statistics(workdir / "statistics.npz"))
    like = jax.eval_shape(asked.start)
    with CheckpointStore(workdir / "checkpoints", read_only=True) as store:
        number = (
            {"newest": store.latest, "best": store.best}[step]() if isinstance(step, str) else step
        )
        if step == "best" and number is None:
            raise FileNotFoundError(
                f"no best checkpoint in {store.folder}: config.train.evaluate_every evaluated none"
            )
        return asked, store.restore(like, number, shardings=shardings(layout, like)), layout


def _nothing(line: str) -> None:
    del line


def _agree(config: dict[str, Any]) -> None:
    """Refuse processes of different configs."""
    first, *others = everyone(config)
    for i, other in enumerate(others, start=1):
        lines = difference(first, other, free=())
        if lines:
            raise ValueError(
                f"process 0 (there) and process {i} (here) have different configs: {'; '.join(lines)}"
            )


def _rehearse(config: dict[str, Any], model: Model, dataset: Dataset) -> None:
    """Trace what will be run, on shapes alone: what does not fit together shows here, not after hours."""
    key = stream(config["seed"], "params")
    batch = jax.ShapeDtypeStruct((2, *dataset.shape), np.uint8)
    try:
        params = jax.eval_shape(model.init, key)
        jax.eval_shape(model.loss, params, key, batch)
    except Exception as error:  # of any network library
        data = f"{dataset.name!r} of shape {dataset.shape}"
        line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"config.model: cannot be computed on {data}: {type(error).__name__}: {line}"
        ) from error
    if model.refusal is not None:
        if config["train"]["evaluate_every"] is not None:
            raise ValueError(f"config.train.evaluate_every: {model.refusal}")
        return
    settings = {name: value for name, value in config["sample"].items() if name != "count"}
    known = list(inspect.signature(model.sample).parameters)[3:]  # after params, key and n
    for name in settings:
        if name not in known:
            raise ValueError(
                f"config.sample: {config['model']['name']!r} has no setting {name!r}"
                f"{nearest(name, ['count', *known])}"
            )
    jax.eval_shape(partial(model.sample, n=1, **settings), params, key)
    make_evaluator(model, config["evaluate"]["draws"], config["evaluate"]["importance_samples"])


def _claim(workdir: Path, config: dict[str, Any], dataset: Dataset, counts: np.ndarray) -> None:
    """Make the folder this config's own, or find that it is; it has the statistics afterwards."""
    path = workdir / "config.json"
    saved = config
    if path.exists():
        saved = read_json(path)
        lines = difference(with_defaults(saved), config)
        if lines:
            raise ValueError(
                f"{workdir} holds a run of another config; give another --workdir, or undo: "
                + "; ".join(lines)
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(
            path, saved
        )  # what may differ is changed when the checkpoints turn out to be whole
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    path = workdir / "statistics.npz"
    if not path.exists():
        sample = dataset.train.images[np.arange(min(1024, len(dataset.train.images)))]
        save_statistics(path, fit_statistics(counts, sample, base=base_of(config["model"])))
