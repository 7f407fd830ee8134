"""The type of a likelihood, and the Gaussian observation that it decodes, eq. (12).

A VAE's decoder outputs mean and variance. A diffusion model has learned nothing of them: `observation` reads
them off its last latent, or takes its prediction x̂_0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from vdm_jax.diffusion import alpha, log_sigma
from vdm_jax.gaussian import Gaussian
from vdm_jax.typing import Array, Data, Key, Reals, Scalar


class Likelihood(NamedTuple):
    """p(x | mean, variance) of one example; `log_var` has the mean's shape or is a scalar.

    Attributes:
      encode: stored data -> x0, floats of the data shape; TypeError for data of another kind, ValueError for
        integers that are no level, or NaN where they are traced.
      decode: x0 -> stored data (nearest level).
      log_prob: (x, mean, log_var) -> nats, summed; `x` as stored.
      sample: (key, mean, log_var) -> x, as stored.
      expected: (mean, log_var) -> E[x0].
      uses_prediction: whether a diffusion model's mean is its prediction x̂_0 (or else its least noisy latent).
      levels: K, or None for continuous data.

    Examples:
      >>> likelihood = vdm.likelihoods.softmax(levels=4)
      >>> x = jnp.asarray([0, 3])
      >>> print(likelihood.encode(x), likelihood.decode(likelihood.encode(x)))
      [-0.75  0.75] [0 3]
      >>> print(f"{likelihood.log_prob(x, likelihood.encode(x), jnp.asarray(-8.0)):.3f}")  # almost certain
      -0.000
    """

    encode: Callable[[Any], Data]
    decode: Callable[[Data], Array]
    log_prob: Callable[[Any, Data, Reals], Scalar]
    sample: Callable[[Key, Data, Reals], Array]
    expected: Callable[[Data, Reals], Data]
    uses_prediction: bool
    levels: int | None


def observation(likelihood: Likelihood, latent: Data, x0_hat: Any, gamma_0: Scalar) -> Gaussian:
    """The observation that a diffusion model decodes from, eq. (12).

    Returns:
      N(x̂_0, σ_0²) if the likelihood reads the prediction, else N(x_{t=0}/α_0, σ_0²/α_0²).
    """
    if likelihood.uses_prediction:
        return Gaussian(x0_hat, 2 * log_sigma(gamma_0))
    return Gaussian(latent / alpha(gamma_0), jnp.asarray(gamma_0))
