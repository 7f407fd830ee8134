"""Build and try everything before a folder is touched, so that a mistake leaves nothing behind."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from vdm_jax.data import Dataset, level_counts
from vdm_jax.models import (
    Model,
    Statistics,
    base_of,
    build_model,
    statistics_needed,
    with_model_state,
)
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.reductions import warn_of_wrong_reductions
from vdm_jax.runs.axes import expand
from vdm_jax.runs.folder import about_data, agree
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.runs.trained import load_data, stream
from vdm_jax.settings import settings_of
from vdm_jax.specs import located, nearest
from vdm_jax.training.dispatch import check_batch, make_layout
from vdm_jax.training.evaluate import make_evaluator
from vdm_jax.training.layout import Layout

Job = TypeVar("Job", Run, Sweep)


class Setup(NamedTuple):
    """The parts that a config names, built and tried.

    Attributes:
      dataset: the loaded data.
      data: what a checkpoint stores of the data.
      layout: of the devices.
      fit: computes the statistics of the training split.
    """

    dataset: Dataset
    data: dict[str, Any]
    layout: Layout
    fit: Callable[[], Statistics]


def setup_run(kind: type[Job], config: dict[str, Any]) -> Setup:
    """Build and try what a config asks for; write nothing.

    Args:
      kind: `Run` or `Sweep`.
      config: validated.

    Raises:
      ValueError, TypeError, OSError: a mistake, in one line; processes with other configs or other data.
    """
    agree("configs", config)
    warn_of_wrong_reductions()
    train = settings_of(config).train
    batch_size, layout = train.batch_size, make_layout(train.parallel, train.fsdp)
    check_batch(layout, batch_size)
    dataset = load_data(config["data"])
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
    counts = counts_of(config, dataset)
    statistics = fit_statistics(counts, shape=dataset.shape)
    job, tried = kind(config, statistics), []
    for single in expand(config).values():
        if single["model"] not in tried:
            tried.append(single["model"])
            model = build_model(single["model"], statistics)
            if kind is Sweep and model.unsupported is not None:
                raise ValueError(
                    f"config.sweep: runs are compared by their bounds, but {model.unsupported}"
                )
            dry_run(single, model, dataset)
    jax.eval_shape(job.start)  # side by side, models are built inside traced functions
    data = about_data(dataset)
    agree("data", {"data": data})
    return Setup(dataset, data, layout, partial(statistics_of, config, dataset, counts))


def dry_run(config: dict[str, Any], model: Model, dataset: Dataset) -> None:
    """Trace what will be run, on shapes alone: what does not fit together shows here, not after hours."""
    settings = settings_of(config)
    key = stream(settings.seed, "params")
    batch = jax.ShapeDtypeStruct((2, *dataset.shape), np.uint8)
    try:
        params = jax.eval_shape(model.init, key)
        state = jax.eval_shape(model.init_model_state, params)
        jax.eval_shape(
            lambda state, *arguments: with_model_state(model, state).loss(*arguments),
            state,
            params,
            key,
            batch,
        )
    except Exception as error:  # of any network library
        data = f"{dataset.name!r} of shape {dataset.shape}"
        line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"config.model: cannot be computed on {data}: {type(error).__name__}: {line}"
        ) from error
    if model.unsupported is not None:
        if settings.train.evaluate_every is not None:
            raise ValueError(f"config.train.evaluate_every: {model.unsupported}")
        return
    arguments = {name: value for name, value in settings.sample.items() if name != "count"}
    # after params, key and n; `first` is for drawing in chunks
    known = [s for s in [*inspect.signature(model.sample).parameters][3:] if s != "first"]
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"config.sample: {settings.model['name']!r} has no setting {name!r}"
                f"{nearest(name, ['count', *known])}"
            )
    with located("config.sample", known):
        jax.eval_shape(partial(model.sample, n=1, **arguments), params, key)
    make_evaluator(model, settings.evaluate.draws, settings.evaluate.importance_samples)


def counts_of(config: dict[str, Any], dataset: Dataset) -> np.ndarray:
    """Count the levels of a training split: [*d, K] for a model that takes histograms, else [K].

    Histograms of 256×256×3 positions and 256 levels take gigabytes.
    """
    per_position = "log_counts" in statistics_needed(config["model"])
    return level_counts(dataset.train.images, dataset.levels, per_position=per_position)


def statistics_of(
    config: dict[str, Any], dataset: Dataset, counts: np.ndarray | None = None
) -> Statistics:
    """Fit what a config's model may know of its training split, the error of its base included.

    Nothing depends on the order in which the split is stored.

    Args:
      config: validated.
      dataset: of `load_dataset`.
      counts: of `counts_of`, if they are there already.
    """
    counts = counts_of(config, dataset) if counts is None else counts
    return fit_statistics(counts, shape=dataset.shape, base=base_of(config["model"]))
