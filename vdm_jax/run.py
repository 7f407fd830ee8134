"""Train the model of a config in a folder, or continue the run that is there."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.config import difference, to_dict
from vdm_jax.data import Dataset, level_counts, load_dataset, train_batches
from vdm_jax.models import Model, base_of, build_model
from vdm_jax.models.statistics import fit_statistics, load_statistics, save_statistics
from vdm_jax.report import report
from vdm_jax.specs import nearest
from vdm_jax.trained import Trained, fresh, read_json, stream, write_json
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.evaluate import make_evaluator
from vdm_jax.training.logs import MetricsLog
from vdm_jax.training.loop import fit
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import make_step


def train(config: Any, workdir: str | Path, *, say: Callable[[str], None] = print) -> Trained:
    """Train the model of a config in a folder, or continue the run that is there.

    Args:
      config: of `vdm_jax.config.default`, as a ConfigDict or nested mapping.
      workdir: the run's folder; made if missing.
      say: gets one line for each thing that is done and where it was put.

    Returns:
      The trained run, evaluated on the test split, with its pictures written.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config, the data or the folder; before compilation.
      FloatingPointError: the loss is not finite.
    """
    plain, workdir = to_dict(config), Path(workdir)
    dataset = load_dataset(**plain["data"])
    batch_size, steps = plain["train"]["batch_size"], plain["train"]["steps"]
    if batch_size > len(dataset.train.images):
        raise ValueError(
            f"config.train.batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than one batch of {batch_size}"
        )
    # everything is built and tried before the folder is touched, so that a mistake leaves nothing behind
    counts = level_counts(dataset.train.images, dataset.levels)
    optimizer, _ = make_optimizer(**plain["optimizer"])
    _rehearse(plain, build_model(plain["model"], fit_statistics(counts)), dataset)
    _claim(workdir, plain)

    path = workdir / "statistics.npz"
    if not path.exists():
        sample = dataset.train.images[np.arange(min(1024, len(dataset.train.images)))]
        save_statistics(path, fit_statistics(counts, sample, base=base_of(plain["model"])))
    statistics = load_statistics(path)
    model = build_model(plain["model"], statistics)

    settings = dict(plain["train"])
    for used in ("batch_size", "steps"):
        del settings[used]
    stack = settings.pop("steps_per_dispatch")
    ema = {name: settings.pop(name) for name in ("ema_decay", "ema_warmup")}
    with CheckpointStore(workdir / "checkpoints") as store:
        state = _start(plain, model, optimizer, store)
        start = int(state.step)
        if start >= steps:
            say(f"already trained: {workdir} is at step {start}, {steps} asked for")
        else:
            if start > 0:
                say(f"continuing from step {start} in {workdir}")
            with MetricsLog(workdir, start) as log:
                state = fit(
                    state,
                    make_step(model.loss, optimizer, **ema),
                    train_batches(
                        dataset.train,
                        batch_size=batch_size,
                        seed=plain["seed"],
                        start_step=start,
                        stop_step=steps,
                        stack=stack,
                    ),
                    steps=steps,
                    store=store,
                    log=log,
                    about={"config": plain, "seed": plain["seed"], "data": dataset.name},
                    **settings,
                )
    trained = Trained(plain, model, statistics, state, workdir)
    trained.__dict__["dataset"] = dataset
    report(trained, say)
    return trained


def _start(config, model, optimizer, store: CheckpointStore) -> TrainState:
    start = partial(fresh, config, model, optimizer)
    return jax.jit(start)() if store.latest() is None else store.restore(jax.eval_shape(start))


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


def _claim(workdir: Path, config: dict[str, Any]) -> None:
    """Make the folder this config's own, or find that it is."""
    path = workdir / "config.json"
    if path.exists():
        lines = difference(read_json(path), config)
        if lines:
            raise ValueError(
                f"{workdir} holds a run of another config; give another --workdir, or undo: "
                + "; ".join(lines)
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror}") from error
