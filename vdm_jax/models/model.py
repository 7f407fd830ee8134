"""The interface of a model: pure functions of (params, key, batch)."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.checks import check_instance, check_sizes, describe, real_number, whole_number
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Elbo
from vdm_jax.gaussian import check_shape
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.specs import build
from vdm_jax.typing import Array, Batch, Key, Params, PyTree, as_batch

Metrics = dict[str, Array]


class TrainingDraw(NamedTuple):
    """One draw of each example of a batch.

    What depends on the time counts the draw's importance weight: means over draws are those over uniform
    times, whatever density the times are drawn from.

    Attributes:
      interval: arrays [B].
      bound: arrays [B], nats.
      loss: the same with the training weight on the matching term.
      squared_error: [B], ‖F − target‖² of the network's own output.
    """

    interval: Interval
    bound: Elbo
    loss: Elbo
    squared_error: Array


class PerNoiseLevel(NamedTuple):
    """The bound and the loss of a diffusion model, split by the noise at which they were drawn.

    Bins [K] of γ lie between K + 1 rising edges; what is drawn outside counts to the outer ones.

    Attributes:
      elbo: (params, key, batch, edges, draws=1) -> (`Elbo` of arrays [B], its matching term by bin [B, K]),
        nats; the bound is that of `Model.elbo` for the same key.
      draw: (params, key, batch, model_state=None, *, dropout=True) -> `TrainingDraw`, as in training.
      loss: (params, key, batch, edges, model_state=None) -> [K], the training loss without reconstruction and
        prior, bits/dim.
      output_gain: (params, t) -> |∂x̂_0/∂net| = |out|·c at times t [n] of the schedule.
      gamma: (params, t) -> γ, elementwise.
    """

    elbo: Callable[..., tuple[Elbo, Array]]
    draw: Callable[..., TrainingDraw]
    loss: Callable[..., Array]
    output_gain: Callable[..., Array]
    gamma: Callable[..., Array]


def no_model_state(params: Params) -> None:
    """Return the model state of a model that has none."""
    del params


class Model(NamedTuple):
    """A generative model with an evidence lower bound.

    Attributes:
      init: key -> params.
      loss: (params, key, batch) -> (scalar, metrics); a batch is a `Batch` or an array [B, *d]. The metrics
        are scalars, "loss" among them and, if there is a bound, "bits_per_dim" (whatever the loss is). Given
        a model state as a fourth argument, (scalar, (metrics, next model state)).
      elbo: (params, key, batch, draws=1) -> `Elbo` of arrays [B], nats per example.
      sample: (params, key, n, *, first=0, **settings) -> [n, *d], data as stored: the examples of a key
        from number `first`, each of which depends on the key and its number alone; `first` may be traced.
      bound: what its `elbo` estimates, in words for a report.
      components: the names that a number is to be read with, such as "vdm: unet, linear, eps, base levels…".
      init_model_state: params -> what else the loss changes from step to step, such as the running averages of
        learned training times; None for a model without state.
      importance: (params, key, batch, samples) -> −log of the mean of that many importance weights, nats
        [B]; None if the model has no such bound.
      plots: other images, by name: (params, data [n, *d]) -> [rows, columns, *d].
      unsupported: why `elbo` and `sample` raise ValueError, for a model that is not a generative one.
      per_noise_level: the same by noise level; None for a model that has none.
    """

    init: Callable[[Key], Params]
    loss: Callable[..., tuple[Array, Any]]
    elbo: Callable[..., Elbo]
    sample: Callable[..., Array]
    bound: str
    components: str
    init_model_state: Callable[[Params], PyTree] = no_model_state
    importance: Callable[..., Array] | None = None
    plots: Mapping[str, Callable[[Params, Any], Array]] = MappingProxyType({})
    unsupported: str | None = None
    per_noise_level: PerNoiseLevel | None = None

    @property
    def name(self) -> str:
        """Name of the family, with which `components` start."""
        return self.components.partition(":")[0]


def with_model_state(model: Model, model_state: PyTree) -> Model:
    """Return a model with a fixed model state, whose loss is (params, key, batch) -> (scalar, metrics)."""
    if model_state is None:
        return model

    def loss(params, key, batch):
        value, (metrics, _) = model.loss(params, key, batch, model_state)
        return value, metrics

    parts = model.per_noise_level
    if parts is not None:
        parts = parts._replace(
            draw=partial(parts.draw, model_state=model_state),
            loss=partial(parts.loss, model_state=model_state),
        )
    return model._replace(loss=loss, init_model_state=no_model_state, per_noise_level=parts)


class Statistics(NamedTuple):
    """Statistics of the training split that a model may use.

    Attributes:
      shape: of one example.
      levels: K, or None for continuous data.
      second_moment: E[x_0²] of the encoded data.
      log_counts: float32 [*d, K], smoothed log-histogram of each position over the split (of more than 50,000
        examples, over a random sample of 50,000), or None where no component takes them.
      residual: (gammas, log deviations) of the base's error, `bases.measure_residual`, or None.
    """

    shape: tuple[int, ...]
    levels: int | None
    second_moment: float = 1 / 3
    log_counts: np.ndarray | None = None
    residual: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def dim(self) -> int:
        """Number of elements of one example."""
        return math.prod(self.shape)


def check_statistics(statistics: Any) -> None:
    """Raise TypeError or ValueError unless these are the statistics of some data."""
    check_instance(
        statistics,
        Statistics,
        "statistics",
        "vdm.Statistics(shape=(28, 28, 1), levels=256)",
    )
    check_sizes(statistics.shape, "statistics.shape")
    if statistics.levels is not None:
        whole_number(statistics.levels, "statistics.levels", 2)
    real_number(
        statistics.second_moment,
        "statistics.second_moment",
        "a positive number",
        lambda value: 0 < value < math.inf,
    )


def check_params(params: Any, names: tuple[str, ...] = ("network", "schedule")) -> None:
    """Raise TypeError unless `params` have the parts of those that a model's `init` makes."""
    if not isinstance(params, Mapping) or not {*names} <= {*params}:
        raise TypeError(f"params: expected those of model.init(key), found {describe(params)}")


def likelihood_for(statistics: Statistics, spec: Any) -> Likelihood:
    """Build the likelihood of a model.

    Raises:
      ValueError: what `build` refuses, or a likelihood of another kind than the data.
    """
    likelihood = build(LIKELIHOODS, spec, "likelihood", **statistics._asdict())
    if likelihood.levels != statistics.levels:
        raise ValueError(
            f"likelihood: the data have {_kind(statistics.levels)}, the likelihood is of "
            f"{_kind(likelihood.levels)}"
        )
    return likelihood


def encoded(batch: Any, statistics: Statistics, likelihood: Likelihood) -> tuple[Batch, Array]:
    """Return a batch and its data [B, *d] in the model's scale.

    Raises:
      ValueError: its examples have another shape than the data of the statistics, it has none, or other
        numbers of indices and phases.
    """
    batch = as_batch(batch)
    if len(batch.x.shape) > 0 and batch.x.shape[0] == 0:
        raise ValueError("batch: expected at least 1 example, found none")
    check_shape(batch.x.shape[1:], statistics.shape, "batch: of each example")
    for name in ("index", "phase"):
        check_shape(np.shape(getattr(batch, name)), batch.x.shape[:1], f"batch: {name}")
    return batch, likelihood.encode(batch.x)


def _kind(levels: int | None) -> str:
    return "continuous values" if levels is None else f"{levels} levels"
