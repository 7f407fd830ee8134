"""Build and trace everything before a folder is written, so that a mistake leaves no files behind."""

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
from vdm_jax.models.likelihood import build_estimator
from vdm_jax.models.model import sample_options
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.reductions import warn_of_wrong_reductions
from vdm_jax.runs.axes import expand
from vdm_jax.runs.folder import about_data, agree
from vdm_jax.runs.start import layout_of, load_data, stream
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.settings import Settings
from vdm_jax.specs import located, nearest
from vdm_jax.training.layout import Layout

Job = TypeVar("Job", Run, Sweep)


class Setup(NamedTuple):
    """The data and devices of a run, loaded and checked.

    Attributes:
      dataset: the loaded data.
      data: description of the data that checkpoints store.
      layout: layout of the state and the batches on the devices.
      fit: computes the statistics of the training split.
    """

    dataset: Dataset
    data: dict[str, Any]
    layout: Layout
    fit: Callable[[], Statistics]


def setup_run(kind: type[Job], settings: Settings) -> Setup:
    """Load the data of a run or a sweep, build its models and trace them on shapes; write nothing.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config or the data, in one line; processes whose configs
        or data differ.
    """
    agree("configs", settings.plain)
    warn_of_wrong_reductions()
    layout, dataset = layout_of(settings.train), load_data(settings.data)
    if dataset.levels is None:
        raise ValueError(
            f"config.data.name: a config needs data of K levels, {dataset.name!r} has floats; "
            "`vdm_jax.compare` and models from Python take them"
        )
    batch_size = settings.train.batch_size
    if batch_size > len(dataset.train.images):
        raise ValueError(
            f"config.train.batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than one batch of {batch_size}"
        )
    counts = counts_of(settings.model, dataset)
    # without the error of the base, which takes time and changes no shape; `Setup.fit` measures it
    statistics = fit_statistics(counts, shape=dataset.shape)
    job, traced = kind(settings, statistics), []
    for single in expand(settings).values():
        if single.model not in traced:  # seeds and learning rates share a model
            traced.append(single.model)
            model = build_model(single.model, statistics)
            if kind is Sweep and model.unsupported is not None:
                raise ValueError(
                    f"config.sweep: runs are compared by their bounds, but {model.unsupported}"
                )
            dry_run(single, model, dataset)
    # the whole job as well: a sweep builds its models inside traced functions, where more may fail
    jax.eval_shape(job.start)
    data = about_data(dataset)
    agree("data", {"data": data})
    return Setup(dataset, data, layout, partial(statistics_of, settings.model, dataset, counts))


def dry_run(settings: Settings, model: Model, dataset: Dataset) -> None:
    """Trace initialization, loss, sampling and evaluation on shapes, without computing them.

    Raises:
      ValueError: components that do not fit together or to the data, unknown options of the sampler, an
        evaluation that the model does not have.
    """
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
    options = sample_options(model)
    for name in arguments:
        if name not in options:
            raise ValueError(
                f"config.sample: {settings.model['name']!r} has no setting {name!r}"
                f"{nearest(name, ['count', *options])}"
            )

    def fitted_shape(measure):
        if measure is None:
            return None
        rows = jax.eval_shape(measure, params, key, batch)
        return jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)

    with located("config.sample", options):
        measure = model.fit_sampler(**arguments)
        measured = {} if measure is None else {"fitted": fitted_shape(measure)}
        jax.eval_shape(partial(model.sample, n=1, **arguments), params, key, **measured)
    with located("config.evaluate", vars(settings.evaluate)):
        for spec in settings.evaluate.estimators:
            estimator = build_estimator(model, spec, settings.evaluate.draws)
            fitted = fitted_shape(estimator.fit)
            jax.eval_shape(estimator.estimate, params, key, batch, fitted)


def counts_of(spec: dict[str, Any], dataset: Dataset) -> np.ndarray:
    """Count the levels of a training split: [*d, K] for a model that takes histograms, else [K]."""
    # only if they are needed: histograms of 256×256×3 positions and 256 levels take gigabytes
    per_position = "log_counts" in statistics_needed(spec)
    return level_counts(dataset.train.images, dataset.levels, per_position=per_position)


def statistics_of(
    spec: dict[str, Any], dataset: Dataset, counts: np.ndarray | None = None
) -> Statistics:
    """Fit the statistics of the training split, with the error of the base of a model.

    They do not depend on the order in which the split is stored.

    Args:
      spec: of the model.
      dataset: the data, see `load_dataset`.
      counts: result of `counts_of`; counted if None.
    """
    counts = counts_of(spec, dataset) if counts is None else counts
    return fit_statistics(counts, shape=dataset.shape, base=base_of(spec))
