"""Gaussian likelihoods: a density of continuous data, and its mass in the bins of K levels (Ho et al. 2020)."""

import math

import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from vdm_jax.checks import check_array
from vdm_jax.diffusion import log1mexp
from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods.base import Likelihood
from vdm_jax.likelihoods.levels import level_codec


def gaussian() -> Likelihood:
    """Return the likelihood N(mean, variance) of continuous data."""

    def encode(x):
        check_array(x, "likelihood 'gaussian'")
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"likelihood 'gaussian': expected floats, found {x.dtype} of shape {x.shape}"
            )
        # data may be stored in half precision, but noise and times need float32 (docs/equations.md §7)
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


def discretized_gaussian(*, levels: int = 256, variance: float | None = None) -> Likelihood:
    """Return the likelihood that integrates N(mean, variance) over each level's bin.

    The outer bins extend to infinity.

    Args:
      levels: K ≥ 2.
      variance: of the decoder, on the scale of x_0. None is the variance of the observation: σ_0² in a
        diffusion model, the decoder's output in a VAE. DDPM decodes with the variance β̃_2 of its second
        step, β_2 (1 − ᾱ_1)/(1 − ᾱ_2), because β̃_1 = 0.

    Raises:
      ValueError: `levels` is below 2, or None (continuous data); `variance` is not positive and finite.

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

    def decoder_log_var(log_var):
        return log_var if variance is None else jnp.full_like(log_var, math.log(variance))

    def log_prob(x, mean, log_var):
        log_var = decoder_log_var(log_var)
        scale = jnp.exp(-0.5 * log_var)
        offset = encode(x) - mean
        upper, lower = (offset + 1 / levels) * scale, (offset - 1 / levels) * scale
        # log Φ is accurate in the left tail, to which the symmetry of Φ moves bins on the right
        is_right = offset > 0
        high, low = jnp.where(is_right, -lower, upper), jnp.where(is_right, -upper, lower)
        log_high, log_low = log_ndtr(high), log_ndtr(low)
        # for a narrow bin, the difference of the tails is lost in rounding: use a series in its width instead
        width, z = jnp.broadcast_to(2 / levels * scale, offset.shape), offset * scale
        is_narrow = width < jnp.finfo(width.dtype).eps ** 0.25
        by_density = jnp.log(width) - 0.5 * (z**2 + math.log(2 * math.pi))
        by_density += width**2 * (z**2 - 1) / 24
        by_tails = log_high + log1mexp(jnp.where(is_narrow, 1.0, log_high - log_low))
        inner = jnp.where(is_narrow, by_density, by_tails)
        x = jnp.asarray(x)
        outer = jnp.where(x == 0, log_ndtr(upper), log_ndtr(-lower))
        return jnp.sum(jnp.where((x == 0) | (x == levels - 1), outer, inner))

    def sample(key, mean, log_var):
        return decode(Gaussian(mean, decoder_log_var(log_var)).sample(key))

    def expected(mean, log_var):  # neglects the rounding to levels and the outer bins
        del log_var
        return jnp.clip(mean, -1, 1)

    return Likelihood(
        encode, decode, log_prob, sample, expected, uses_prediction=True, levels=levels
    )
