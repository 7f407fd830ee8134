"""Densities q(y | x) that turn K-level data into continuous data for a density model, eq. (27).

log P(x) ≥ E_q [log p(y) + log P(x | y) − log q(y | x)], where y lies in the space of the least noisy latents:

    decoder            y = z_0 ~ q(z_0 | x)                       P(x | z_0) of the likelihood
    truncated_normal   y = α_0 x_0 + σ_0 u, |u| ≤ τ                P(x | y) = 1: y lies in the bin of its level
    uniform            y = α_0 (x_0 + U(−1/K, 1/K))               P(x | y) = 1

τ is α_0/(σ_0 K), the end of the bin, and at most 5.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import alpha, log_alpha, log_sigma, marginal, sigma
from vdm_jax.elbo import Process, log_prob_of_data
from vdm_jax.samplers import noise_like
from vdm_jax.typing import Array, ArrayLike, Keys, Reals

Dequantization = Callable[[Process, ArrayLike, Array, Keys], tuple[Array, Reals]]
"""(process, x, x0, keys) -> (y [B, *d], log P(x | y) − log q(y | x) in nats [B]) for one draw of y."""


def decoder(process: Process, x: ArrayLike, x0: Array, keys: Keys) -> tuple[Array, Reals]:
    """Draw the least noisy latent, and decode it by the likelihood."""
    gamma_0 = process.gamma(0.0)
    noise = noise_like(keys, x0)
    latent = marginal(x0, gamma_0).mean + sigma(gamma_0) * noise
    entropy_term = 0.5 * jnp.square(noise) + log_sigma(gamma_0) + 0.5 * math.log(2 * math.pi)
    return latent, log_prob_of_data(process, x, latent) + sum_over_data(entropy_term)


def truncated_normal(process: Process, x: ArrayLike, x0: Array, keys: Keys) -> tuple[Array, Reals]:
    """Draw Gaussian noise with the variance of the least noisy latent, truncated to the level's bin."""
    del x
    gamma_0 = process.gamma(0.0)
    # any density within the bin gives a bound; beyond 5, the inverse of erf in float32 may return τ itself
    bound = jnp.minimum(jnp.exp(-0.5 * gamma_0) / levels_of(process), 5.0)  # τ
    noise = jax.vmap(
        lambda key: jax.random.truncated_normal(key, -bound, bound, x0.shape[1:], x0.dtype)
    )(keys)
    log_mass = jnp.log(jax.scipy.special.erf(bound / math.sqrt(2)))
    log_scale = log_sigma(gamma_0) + 0.5 * math.log(2 * math.pi) + log_mass
    y = alpha(gamma_0) * x0 + sigma(gamma_0) * noise
    return y, sum_over_data(0.5 * jnp.square(noise) + log_scale)


def uniform(process: Process, x: ArrayLike, x0: Array, keys: Keys) -> tuple[Array, Reals]:
    """Draw a uniform point of the level's bin."""
    del x
    gamma_0, levels = process.gamma(0.0), levels_of(process)
    shift = jax.vmap(
        lambda key: jax.random.uniform(key, x0.shape[1:], x0.dtype, -1 / levels, 1 / levels)
    )(keys)
    log_width = math.log(2 / levels) + log_alpha(gamma_0)
    return alpha(gamma_0) * (x0 + shift), jnp.full(x0.shape[:1], x0[0].size * log_width)


DEQUANTIZATIONS: dict[str, Dequantization] = {
    "decoder": decoder,
    "truncated_normal": truncated_normal,
    "uniform": uniform,
}
"""name -> `Dequantization`."""


def levels_of(process: Process) -> int:
    """Return K of the process's likelihood, which `ode` has checked not to be None."""
    assert process.likelihood.levels is not None
    return process.likelihood.levels


def sum_over_data(values: Array) -> Reals:
    """Return the sums over the data's axes, [B]."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
