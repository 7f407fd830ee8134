"""Build and try everything before a folder is touched, so that a mistake leaves nothing behind."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from vdm_jax.config import difference, to_dict, with_defaults
from vdm_jax.data import Dataset, level_counts, load_dataset
from vdm_jax.jobs import Many, One, expand
from vdm_jax.models import Model, Statistics, base_of, build_model
from vdm_jax.models.statistics import fit_statistics, load_statistics, save_statistics
from vdm_jax.reductions import warn_of_wrong_reductions
from vdm_jax.specs import nearest
from vdm_jax.trained import about_data, read_json, stream, write_json
from vdm_jax.training.evaluate import make_evaluator
from vdm_jax.training.layout import Layout
from vdm_jax.training.parallel import check_batch, make_layout
from vdm_jax.training.processes import by_first, everyone

Job = TypeVar("Job", One, Many)


class Data(NamedTuple):
    """A data set, and what a checkpoint says of it."""

    dataset: Dataset
    about: dict[str, Any]


def prepare(kind: type[Job], config: dict[str, Any], workdir: Path) -> tuple[Job, Data, Layout]:
    """Build and try what a config asks for; claim its folder.

    Args:
      kind: `One` or `Many`.
      config: validated.
      workdir: made if all is well.

    Raises:
      ValueError, TypeError, OSError: a mistake, in one line.
    """
    _agree(config)
    warn_of_wrong_reductions()
    batch_size = config["train"]["batch_size"]
    layout = make_layout(config["train"]["parallel"], config["train"]["fsdp"])
    check_batch(layout, batch_size)
    dataset = load_dataset(**config["data"])
    if dataset.levels is None:
        raise ValueError(
            f"config.data.name: a config needs data of K levels, {dataset.name!r} has floats; "
            "`vdm_jax.compare` and models from Python take them"
        )
    if batch_size > len(dataset.train.images):
        raise ValueError(
            f"config.train.batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than one batch of {batch_size}"
        )
    counts = level_counts(dataset.train.images, dataset.levels)
    statistics = fit_statistics(counts)
    job, tried = kind(config, statistics), []
    for single in expand(config).values():
        if single["model"] not in tried:
            tried.append(single["model"])
            model = build_model(single["model"], statistics)
            if kind is Many and model.refusal is not None:
                raise ValueError(
                    f"config.runs: runs are compared by their bounds, but {model.refusal}"
                )
            _rehearse(single, model, dataset)
    jax.eval_shape(job.start)  # side by side, models are built inside traced functions
    by_first(partial(_claim, workdir, config, dataset, counts))
    about = about_data(dataset, counts)
    asked = kind(config, load_statistics(workdir / "statistics.npz"))
    return asked, Data(dataset, about), layout


def find(kind: type[Job], workdir: Path) -> Job:
    """What was asked for in a folder that holds a run.

    Raises:
      FileNotFoundError: it holds none.
      ValueError: a file of it is damaged, or it is not of this kind.
    """
    for name in ("config.json", "statistics.npz", "checkpoints"):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"no run to load in {workdir}: {name} is missing")
    config = to_dict(with_defaults(read_json(workdir / "config.json")))
    return kind(config, load_statistics(workdir / "statistics.npz"))


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


def statistics_of(
    config: dict[str, Any], dataset: Dataset, counts: np.ndarray | None = None
) -> Statistics:
    """What a config's model has to know of its training split, the error of its base among it.

    Args:
      config: validated.
      dataset: of `load_dataset`.
      counts: of `level_counts`, if they are there already.
    """
    train = dataset.train.images
    counts = level_counts(train, dataset.levels) if counts is None else counts
    sample = train[np.arange(min(1024, len(train)))]
    return fit_statistics(counts, sample, base=base_of(config["model"]))


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
        save_statistics(path, statistics_of(config, dataset, counts))
