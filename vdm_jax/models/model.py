"""What a model is to everything above it: pure functions of (params, key, batch)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.elbo import Elbo
from vdm_jax.typing import Array, Batch, Key, Params

Metrics = dict[str, Array]


class Model(NamedTuple):
    """A generative model with an evidence lower bound.

    Attributes:
      init: key -> params.
      loss: (params, key, batch) -> (scalar, metrics); a batch is a `Batch` or an array [B, *d]. The metrics
        are scalars, "loss" and "bits_per_dim" (of the bound, whatever the loss is) among them.
      elbo: (params, key, batch, draws=1) -> `Elbo` of arrays [B], nats per example.
      sample: (params, key, n) -> [n, *d], data as stored.
      bound: what its `elbo` estimates, in words for a report.
      components: the names that a number is to be read with, such as "vdm: unet, linear, eps, base levels…".
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Key, Batch | Any], tuple[Array, Metrics]]
    elbo: Callable[..., Elbo]
    sample: Callable[..., Array]
    bound: str
    components: str


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
