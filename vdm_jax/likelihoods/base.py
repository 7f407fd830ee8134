"""The type of a likelihood, and the Gaussian observation that it decodes, eq. (12).

A VAE's decoder outputs the mean and the variance. A diffusion model does not learn them: `observation` computes
them from the least noisy latent or from the prediction x̂_0.
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
      encode: stored data -> x0, floats [*d]. Raises TypeError for data of another kind, and ValueError for
        integers that are not levels, which become NaN if they are traced.
      decode: x0 -> stored data (nearest level).
      log_prob: (x, mean, log_var) -> nats, summed; `x` as stored.
      sample: (key, mean, log_var) -> x, as stored.
      expected: (mean, log_var) -> E[x0].
      uses_prediction: True if the mean in a diffusion model is the prediction x̂_0, False if it is computed from
        the least noisy latent.
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


def observation(
    likelihood: Likelihood, latent: Data, x0_hat: Data | None, gamma_0: Scalar
) -> Gaussian:
    """Return the observation that a diffusion model decodes, eq. (12).

    Args:
      likelihood: the likelihood that decodes it.
      latent: the least noisy latent x_{t=0}.
      x0_hat: the prediction x̂_0, or None if the likelihood does not use it.
      gamma_0: γ of the latent.

    Returns:
      N(x̂_0, σ_0²) if the likelihood uses the prediction, else N(x_{t=0}/α_0, σ_0²/α_0²).
    """
    if likelihood.uses_prediction:
        assert x0_hat is not None
        return Gaussian(x0_hat, 2 * log_sigma(gamma_0))
    return Gaussian(latent / alpha(gamma_0), jnp.asarray(gamma_0))  # log(σ_0²/α_0²) = γ_0
