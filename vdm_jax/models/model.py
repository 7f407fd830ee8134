"""The interface of a model: pure functions of (params, key, batch)."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Concatenate, NamedTuple

import numpy as np

from vdm_jax.checks import describe
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Elbo
from vdm_jax.gaussian import check_shape
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.models.statistics import Statistics
from vdm_jax.specs import build
from vdm_jax.typing import (
    Array,
    ArrayLike,
    Batch,
    Key,
    Params,
    PyTree,
    Real,
    Reals,
    Spec,
    as_batch,
)

BatchLike = Batch | ArrayLike
"""A `Batch`, or an array [B, *d] of data as stored, which `as_batch` wraps."""

Measure = Callable[[Params, Key, BatchLike], Array]
"""(params, key, batch) -> values [B, n] of the examples, whose mean over training examples a function needs."""

Metrics = dict[str, Array]
"""Scalars that are logged, by name."""


class TrainingDraw(NamedTuple):
    """One noisy sample of each example of a batch, and its scores.

    Terms that depend on the time are multiplied by the importance weight of the time, eq. (37). Their means
    therefore estimate the means over uniform times, for any density of the times.

    Attributes:
      interval: arrays [B].
      bound: arrays [B], nats.
      loss: `bound` with the training weight on the matching term.
      squared_error: [B], ‖F − target‖² of the network's output F.
    """

    interval: Interval
    bound: Elbo
    loss: Elbo
    squared_error: Array


class PerNoiseLevel(NamedTuple):
    """The bound and the loss of a diffusion model by noise level.

    `edges` are K + 1 increasing values of γ between which the K bins lie. Values beyond the first or the last
    edge are counted in the first or the last bin.

    Attributes:
      elbo: (params, key, batch, edges, draws=1) -> (`Elbo` of arrays [B], its matching term by bin [B, K]),
        nats. The bound equals that of `Model.elbo` for the same key.
      draw: (params, key, batch, model_state=None, *, dropout=True) -> `TrainingDraw`, as in training.
      loss: (params, key, batch, edges, model_state=None) -> [K], the training loss without reconstruction and
        prior, bits/dim.
      output_gain: (params, t) -> |∂x̂_0/∂net| = |out|·c at times t [n] of the schedule.
      gamma: (params, t) -> γ, elementwise.
    """

    elbo: Callable[Concatenate[Params, Key, BatchLike, Array | np.ndarray, ...], tuple[Elbo, Array]]
    draw: Callable[Concatenate[Params, Key, BatchLike, ...], TrainingDraw]
    loss: Callable[Concatenate[Params, Key, BatchLike, Array | np.ndarray, ...], Array]
    output_gain: Callable[[Params, Array], Array]
    gamma: Callable[[Params, Real], Reals]


def no_model_state(params: Params) -> None:
    """Return None, the model state of a model without one."""
    del params


def no_fit(**settings: Any) -> None:
    """Return None, the measurement of a model whose samples need no training examples."""
    del settings


class Model(NamedTuple):
    """A generative model with an evidence lower bound.

    Attributes:
      init: key -> params.
      loss: (params, key, batch) -> (scalar, metrics), where `batch` is a `BatchLike`. The metrics are scalars:
        "loss" and, if the model has a bound, "bits_per_dim", which is the bound whatever the loss is. With a
        model state as fourth argument, (scalar, (metrics, next model state)).
      elbo: (params, key, batch, draws=1) -> `Elbo` of arrays [B], nats per example.
      sample: (params, key, n, *, first=0, **settings) -> [n, *d], data as stored: examples `first` to
        `first + n − 1` of a key. An example depends only on the key and its number; `first` may be traced.
      fit_sampler: (**settings of `sample`) -> the `Measure` whose mean is the argument `fitted` of
        `sample`; None for settings that need none. It may raise the errors of `sample` for its settings.
      bound: name of the bound that `elbo` estimates, for reports.
      components: name of the family and its components, for reports, such as "vdm: unet, linear, eps, base
        levels…".
      init_model_state: params -> model state, which the loss updates at every training step, such as the
        running averages of learned training times; None for a model without one.
      importance: (params, key, batch, samples) -> −log of the mean of `samples` importance weights, nats [B];
        None if the model has no such bound of its own.
      estimator: (spec, draws) -> `models.likelihood.ModelEstimator`, for a model with more estimators of its
        likelihood than `elbo` and `importance`; None for others.
      plots: name -> function (params, data [n, *d]) -> images [rows, columns, *d].
      unsupported: the reason why `elbo` and `sample` raise ValueError, for a model that is not generative.
      per_noise_level: the bound and the loss by noise level; None for a model without noise levels.
    """

    init: Callable[[Key], Params]
    # Any: the metrics, or with a model state the pair of metrics and next state
    loss: Callable[Concatenate[Params, Key, BatchLike, ...], tuple[Array, Any]]
    elbo: Callable[Concatenate[Params, Key, BatchLike, ...], Elbo]
    sample: Callable[Concatenate[Params, Key, int, ...], Array]
    bound: str
    components: str
    init_model_state: Callable[[Params], PyTree] = no_model_state
    fit_sampler: Callable[..., Measure | None] = no_fit
    importance: Callable[[Params, Key, BatchLike, int], Array] | None = None
    # Any: the type is defined above this module
    estimator: Callable[[Any, int], Any] | None = None
    plots: Mapping[str, Callable[[Params, Array | np.ndarray], Array]] = MappingProxyType({})
    unsupported: str | None = None
    per_noise_level: PerNoiseLevel | None = None

    @property
    def name(self) -> str:
        """Name of the family, the first word of `components`."""
        return self.components.partition(":")[0]


def sample_options(model: Model) -> list[str]:
    """Return the names of the options of a model's `sample`."""
    names = [*inspect.signature(model.sample).parameters][3:]  # after params, key and n
    return [name for name in names if name not in ("first", "fitted")]


def with_model_state(model: Model, model_state: PyTree) -> Model:
    """Return a model with a fixed model state, whose loss is (params, key, batch) -> (scalar, metrics)."""
    if model_state is None:
        return model

    def loss(params: Params, key: Key, batch: BatchLike) -> tuple[Array, Metrics]:
        value, (metrics, _) = model.loss(params, key, batch, model_state)
        return value, metrics

    per_noise_level = model.per_noise_level
    if per_noise_level is not None:
        per_noise_level = per_noise_level._replace(
            draw=partial(per_noise_level.draw, model_state=model_state),
            loss=partial(per_noise_level.loss, model_state=model_state),
        )
    return model._replace(
        loss=loss, init_model_state=no_model_state, per_noise_level=per_noise_level
    )


def check_params(params: Params, names: tuple[str, ...] = ("network", "schedule")) -> None:
    """Raise TypeError unless `params` is a mapping with the keys `names`, as a model's `init` returns."""
    if not isinstance(params, Mapping) or not {*names} <= {*params}:
        raise TypeError(f"params: expected those of model.init(key), found {describe(params)}")


def likelihood_for(statistics: Statistics, spec: Spec | Likelihood) -> Likelihood:
    """Build the likelihood of a model.

    Raises:
      ValueError: `build` raises it, or the likelihood does not fit the levels of the data.
    """
    likelihood = build(LIKELIHOODS, spec, "likelihood", **statistics._asdict())
    if likelihood.levels != statistics.levels:
        raise ValueError(
            f"likelihood: the data have {_kind(statistics.levels)}, the likelihood is of "
            f"{_kind(likelihood.levels)}"
        )
    return likelihood


def encoded(
    batch: BatchLike, statistics: Statistics, likelihood: Likelihood
) -> tuple[Batch, Array]:
    """Return the `Batch` and its data [B, *d] on the model's scale.

    Raises:
      TypeError: it is not a batch.
      ValueError: the batch has no examples, their shape is not that of the statistics, or `index` or `phase`
        is not of shape [B].
    """
    batch = as_batch(batch)
    if batch.x.shape[0] == 0:
        raise ValueError("batch: expected at least 1 example, found none")
    check_shape(batch.x.shape[1:], statistics.shape, "batch: of each example")
    for name in ("index", "phase"):
        check_shape(np.shape(getattr(batch, name)), batch.x.shape[:1], f"batch: {name}")
    return batch, likelihood.encode(batch.x)


def _kind(levels: int | None) -> str:
    """Describe the kind of data in an error message."""
    return "continuous values" if levels is None else f"{levels} levels"
