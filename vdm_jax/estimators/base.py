"""The types of likelihood estimators."""

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NamedTuple

from vdm_jax.elbo import Elbo, Process
from vdm_jax.likelihoods import Likelihood
from vdm_jax.parameterizations import Parameterization
from vdm_jax.typing import Array, ArrayLike, Keys, Reals


class Estimate(NamedTuple):
    """Estimates of the log-likelihood of a batch.

    Attributes:
      log_prob: [B], nats: an estimate of log p(x), or of a lower bound on it.
      terms: the three terms of −`log_prob`, arrays [B], or None for an estimator without these terms.
      discretization: [B], nats: −`log_prob` minus its value on a grid of half as many steps, or None.
    """

    log_prob: Reals
    terms: Elbo | None = None
    discretization: Reals | None = None


class Estimator(NamedTuple):
    """An estimator of the log-likelihood of a diffusion process.

    Attributes:
      name: that of the estimator in `ESTIMATORS`.
      estimate: (process, x, x0, keys, fitted=None) -> `Estimate` of a batch: `x` [B, *d] as stored, `x0` the
        encoded data, and `keys` [B], on which alone the randomness of each example depends. `fitted` is the
        mean of `fit` over training examples.
      calls: likelihood -> number of calls of the network for one example.
      description: the estimator and its settings in words, for reports.
      settings: name -> value, for reports: timesteps, samples, dequantization, draws and others.
      fit: (process, x0, keys) -> an array [B, n], whose mean over training examples is passed to `estimate`;
        None for an estimator that needs no training examples.
      check: (parameterization, likelihood, shape) -> None, with the shape [*d] of an example; raises ValueError
        if a process of these components does not have the estimator.
    """

    name: str
    estimate: Callable[Concatenate[Process, ArrayLike, Array, Keys, ...], Estimate]
    calls: Callable[[Likelihood], int]
    description: str
    settings: Mapping[str, Any]
    check: Callable[[Parameterization, Likelihood, tuple[int, ...]], None]
    fit: Callable[[Process, Array, Keys], Array] | None = None
