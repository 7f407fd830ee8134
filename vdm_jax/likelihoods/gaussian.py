"""Gaussian likelihoods: a density of continuous data, and its mass in the bins of K levels (Ho et al. 2020)."""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from vdm_jax.checks import check_array
from vdm_jax.diffusion import log1mexp
from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods.base import Likelihood
from vdm_jax.likelihoods.levels import level_codec


def gaussian() -> Likelihood:
    """N(mean, variance) for continuous data."""

    def encode(x):  # half precision holds data, but neither noise nor times
        check_array(x, "likelihood 'gaussian'")
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"likelihood 'gaussian': expected floats, found {x.dtype} of shape {x.shape}"
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def log_prob(x, mean, log_var):
        return Gaussian(mean, log_var).log_prob(encode(x))

    def sample(key, mean, log_var):
        return Gaussian(mean, log_var).sample(key)

    def expected(mean, log_var):
        del log_var
        return mean

    return Likelihood(
        encode, lambda x0: x0, log_prob, sample, expected, uses_prediction=False, levels=None
    )


def discretized_gaussian(*, levels: Any = 256, variance: Any = None) -> Likelihood:
    """Integrate N(mean, variance) over each level's bin; the outer bins reach to infinity.

    Args:
      levels: K ≥ 2.
      variance: of the decoder, on the scale of x_0. None is the variance of the observation: σ_0² of a
        diffusion model, the decoder's output of a VAE. DDPM decodes with the variance β̃_2 of its second
        step, as β̃_1 = 0: β_2 (1 − ᾱ_1)/(1 − ᾱ_2).

    Raises:
      ValueError: levels below 2, or None, of continuous data; a variance that is not positive and finite.

    Examples:
      >>> betas = np.linspace(1e-4, 0.02, 1000)
      >>> bars = np.cumprod(1 - betas)
      >>> ddpm = vdm.likelihoods.discretized_gaussian(variance=betas[1] * (1 - bars[0]) / (1 - bars[1]))
      >>> x = jnp.asarray([100, 200])
      >>> print(f"{ddpm.log_prob(x, ddpm.encode(x), jnp.asarray(0.0)):.3f}")  # nats
      -1.817
    """
    encode, decode = level_codec(levels, "discretized_gaussian")
    if variance is not None and not 0 < variance < math.inf:
        raise ValueError(f"variance: expected a finite number above 0, found {variance}")

    def observed(log_var):
        return log_var if variance is None else jnp.full_like(log_var, math.log(variance))

    def log_prob(x, mean, log_var):
        log_var = observed(log_var)
        scale = jnp.exp(-0.5 * log_var)
        offset = encode(x) - mean
        upper, lower = (offset + 1 / levels) * scale, (offset - 1 / levels) * scale
        # in the left tail, where log Φ is accurate
        right = offset > 0
        high, low = jnp.where(right, -lower, upper), jnp.where(right, -upper, lower)
        log_high, log_low = log_ndtr(high), log_ndtr(low)
        # of a narrow bin the difference of the tails is lost in rounding; the series in its width is not
        width, place = jnp.broadcast_to(2 / levels * scale, offset.shape), offset * scale
        narrow = width < jnp.finfo(width.dtype).eps ** 0.25
        by_density = jnp.log(width) - 0.5 * (place**2 + math.log(2 * math.pi))
        by_density += width**2 * (place**2 - 1) / 24
        by_tails = log_high + log1mexp(jnp.where(narrow, 1.0, log_high - log_low))
        inner = jnp.where(narrow, by_density, by_tails)
        x = jnp.asarray(x)
        outer = jnp.where(x == 0, log_ndtr(upper), log_ndtr(-lower))
        return jnp.sum(jnp.where((x == 0) | (x == levels - 1), outer, inner))

    def sample(key, mean, log_var):
        return decode(Gaussian(mean, observed(log_var)).sample(key))

    def expected(mean, log_var):  # up to the rounding to levels and the outer bins
        del log_var
        return jnp.clip(mean, -1, 1)

    return Likelihood(
        encode, decode, log_prob, sample, expected, uses_prediction=True, levels=levels
    )
