"""The types of likelihood estimators."""

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NamedTuple

from vdm_jax.elbo import Elbo, Process
from vdm_jax.typing import Array, ArrayLike, Keys, Reals


class Estimate(NamedTuple):
    """Estimates of the log-likelihood of a batch.

    Attributes:
      log_prob: [B], nats: an estimate of log p(x), or of a lower bound on it.
      terms: the three terms of −`log_prob`, arrays [B], or None for an estimator without these terms.
      discretization: [B], nats: the change of `log_prob` by a grid of half as many steps, or None.
    """

    log_prob: Reals
    terms: Elbo | None = None
    discretization: Reals | None = None


class Estimator(NamedTuple):
    """An estimator of the log-likelihood of a diffusion process.

    Attributes:
      estimate: (process, x, x0, keys, fitted=None) -> `Estimate` of a batch: `x` [B, *d] as stored, `x0` the
        encoded data, and `keys` [B], on which alone the randomness of each example depends. `fitted` is the
        mean of `fit` over training examples.
      calls: number of calls of the network for one example.
      settings: name -> value, for reports: timesteps, samples, dequantization, draws and others.
      fit: (process, x0, keys) -> an array, which is averaged over batches of training examples and passed to
        `estimate`; None for an estimator that needs no training examples.
      check: process -> None; raises ValueError if the process does not have this estimator.
    """

    estimate: Callable[Concatenate[Process, ArrayLike, Array, Keys, ...], Estimate]
    calls: Callable[[Process], int]
    settings: Mapping[str, Any]
    fit: Callable[[Process, Array, Keys], Array] | None = None
    check: Callable[[Process], None] = lambda process: None
