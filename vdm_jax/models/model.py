"""What a model is to everything above it: pure functions of (params, key, batch)."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Elbo
from vdm_jax.gaussian import check_shape
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.specs import build
from vdm_jax.typing import Array, Batch, Key, Params, as_batch

Metrics = dict[str, Array]


class Draw(NamedTuple):
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


class ByNoise(NamedTuple):
    """The bound and the loss of a diffusion model, split by the noise at which they were drawn.

    Bins [K] of γ lie between K + 1 rising edges; what is drawn outside counts to the outer ones.

    Attributes:
      elbo: (params, key, batch, edges, draws=1) -> (`Elbo` of arrays [B], its matching term by bin [B, K]),
        nats; the bound is that of `Model.elbo` for the same key.
      draw: (params, key, batch, dropout=True) -> `Draw`, as in training.
      loss: (params, key, batch, edges) -> [K], the training loss without reconstruction and prior, bits/dim.
      gain: (params, t) -> |∂x̂_0/∂net| at times t [n] of the schedule: |out|, times c of a unit head.
      gamma: (params, t) -> γ, elementwise.
    """

    elbo: Callable[..., tuple[Elbo, Array]]
    draw: Callable[..., Draw]
    loss: Callable[..., Array]
    gain: Callable[..., Array]
    gamma: Callable[..., Array]


class Model(NamedTuple):
    """A generative model with an evidence lower bound.

    Attributes:
      init: key -> params.
      loss: (params, key, batch) -> (scalar, metrics); a batch is a `Batch` or an array [B, *d]. The metrics
        are scalars, "loss" among them and, if there is a bound, "bits_per_dim" (whatever the loss is).
      elbo: (params, key, batch, draws=1) -> `Elbo` of arrays [B], nats per example.
      sample: (params, key, n, **settings) -> [n, *d], data as stored.
      bound: what its `elbo` estimates, in words for a report.
      components: the names that a number is to be read with, such as "vdm: unet, linear, eps, base levels…".
      importance: (params, key, batch, samples) -> −log of the mean of that many importance weights, nats
        [B]; None if the model has no such bound.
      pictures: what else there is to look at, by name: (params, data [n, *d]) -> [rows, columns, *d].
      refusal: why `elbo` and `sample` raise ValueError, for a model that is not a generative one.
      by_noise: the same by noise level; None for a model that has none.
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Key, Batch | Any], tuple[Array, Metrics]]
    elbo: Callable[..., Elbo]
    sample: Callable[..., Array]
    bound: str
    components: str
    importance: Callable[..., Array] | None = None
    pictures: Mapping[str, Callable[[Params, Any], Array]] = MappingProxyType({})
    refusal: str | None = None
    by_noise: ByNoise | None = None

    @property
    def name(self) -> str:
        """Of the family: what `components` start with."""
        return self.components.partition(":")[0]


class Statistics(NamedTuple):
    """What a model may know of its training split before training.

    Attributes:
      shape: of one example.
      levels: K, or None for continuous data.
      second_moment: E[x_0²] of the encoded data.
      log_counts: float32 [*d, K], smoothed log-histogram of each position over (the first 50,000 examples
        of) the split, or None.
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


def likelihood_for(statistics: Statistics, spec: Any, where: str) -> Likelihood:
    """Build the likelihood of a model.

    Raises:
      ValueError: what `build` refuses, or a likelihood of another kind than the data.
    """
    likelihood = build(LIKELIHOODS, spec, f"{where}.likelihood", **statistics._asdict())
    if likelihood.levels != statistics.levels:
        raise ValueError(
            f"{where}.likelihood: the data have {_kind(statistics.levels)}, "
            f"the likelihood is of {_kind(likelihood.levels)}"
        )
    return likelihood


def encoded(batch: Any, statistics: Statistics, likelihood: Likelihood) -> tuple[Batch, Array]:
    """A batch, and its data [B, *d] in the model's scale.

    Raises:
      ValueError: its examples have another shape than the data of the statistics.
    """
    batch = as_batch(batch)
    check_shape(batch.x.shape[1:], statistics.shape, "batch: of each example")
    return batch, likelihood.encode(batch.x)


def _kind(levels: int | None) -> str:
    return "continuous values" if levels is None else f"{levels} levels"
