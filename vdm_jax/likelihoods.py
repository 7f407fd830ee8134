"""From the least noisy latent back to the data: p(x | x_{t=0}), eq. (12).

    softmax               K levels, softmax of −(x_{t=0}/α_0 − level)² SNR_0 / 2        (Kingma et al. 2021)
    discretized_gaussian  K levels, N(x̂_0, σ_0²) integrated over each level's bin      (Ho et al. 2020)
    gaussian              continuous data, N(x_{t=0}/α_0, σ_0²/α_0²)

A likelihood also says how data are stored: K-level data are integers 0…K−1, which `encode` puts at the
centres of K bins of [−1, 1].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from vdm_jax.diffusion import alpha, log1mexp, sigma
from vdm_jax.gaussian import Gaussian
from vdm_jax.typing import Array, Data, Scalar, as_float


class Likelihood(NamedTuple):
    """p(x | x_{t=0}).

    Attributes:
      encode: stored data -> x0, floats of the data shape; TypeError for data of another kind.
      decode: x0 -> stored data (nearest level).
      log_prob: (x, latent, x0_hat, gamma_0) -> nats, summed; `x` as stored, `latent` = x_{t=0}.
      denoised: whether it reads the network's x̂_0 at t = 0 (otherwise `x0_hat` may be None).
      levels: K, or None for continuous data.
    """

    encode: Callable[[Any], Data]
    decode: Callable[[Data], Array]
    log_prob: Callable[[Any, Data, Data | None, Scalar], Scalar]
    denoised: bool
    levels: int | None


def level_values(levels: int) -> np.ndarray:
    """The K centres (2k+1)/K − 1 of equal bins of [−1, 1], float64 [K]."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, found {levels}")
    return (2 * np.arange(levels) + 1) / levels - 1


def softmax(*, levels: int = 256) -> Likelihood:
    """Normalised Gaussian scores over the K levels; no parameters."""

    def log_prob(x, latent, x0_hat, gamma_0):
        del x0_hat
        mean = latent / alpha(gamma_0)
        own = _as_levels(x, levels, "softmax").astype(mean.dtype)[..., None]
        level = jnp.arange(levels, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
        # score minus own score as a product: a difference of two squares, each far larger, would not
        # sum to one over the levels in float32
        middle = (level + own + 1) / levels - 1
        scores = jnp.exp(-gamma_0) * (mean[..., None] - middle) * (level - own) * (2 / levels)
        return -jnp.sum(jax.nn.logsumexp(scores, -1))

    encode, decode = _level_codec(levels, "softmax")
    return Likelihood(encode, decode, log_prob, denoised=False, levels=levels)


def discretized_gaussian(*, levels: int = 256) -> Likelihood:
    """N(x̂_0, σ_0²) integrated over each level's bin; the outer bins reach to infinity."""

    def log_prob(x, latent, x0_hat, gamma_0):
        del latent
        scale = 1 / sigma(gamma_0)
        offset = encode(x) - x0_hat
        upper, lower = (offset + 1 / levels) * scale, (offset - 1 / levels) * scale
        # in the left tail, where log Φ is accurate
        right = offset > 0
        high, low = jnp.where(right, -lower, upper), jnp.where(right, -upper, lower)
        log_high, log_low = log_ndtr(high), log_ndtr(low)
        inner = log_high + log1mexp(log_high - log_low)
        x = jnp.asarray(x)
        outer = jnp.where(x == 0, log_ndtr(upper), log_ndtr(-lower))
        return jnp.sum(jnp.where((x == 0) | (x == levels - 1), outer, inner))

    encode, decode = _level_codec(levels, "discretized_gaussian")
    return Likelihood(encode, decode, log_prob, denoised=True, levels=levels)


def gaussian() -> Likelihood:
    """N(x_{t=0}/α_0, σ_0²/α_0²) for continuous data."""

    def log_prob(x, latent, x0_hat, gamma_0):
        del x0_hat
        return Gaussian(latent / alpha(gamma_0), jnp.asarray(gamma_0)).log_prob(as_float(x))

    return Likelihood(as_float, lambda x0: x0, log_prob, denoised=False, levels=None)


def _as_levels(x: Any, levels: int, name: str) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"likelihood {name!r}: expected integers 0..{levels - 1}, found {x.dtype} of shape {x.shape}"
        )
    return x


def _level_codec(levels: int, name: str):
    values = level_values(levels)

    def encode(x):
        # from the table that the bases read: another rounding of a level would be an error of theirs
        return jnp.asarray(values, jnp.result_type(float))[_as_levels(x, levels, name)]

    def decode(x0):
        level = jnp.floor((x0 + 1) * (levels / 2))
        return jnp.clip(level, 0, levels - 1).astype(jnp.uint8 if levels <= 256 else jnp.int32)

    return encode, decode


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "softmax": softmax,
    "discretized_gaussian": discretized_gaussian,
    "gaussian": gaussian,
}
