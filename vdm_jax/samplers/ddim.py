"""The deterministic solver of DDIM, eq. (20)."""

import jax.numpy as jnp

from vdm_jax.diffusion import alpha, log_sigma
from vdm_jax.samplers.base import Sampler, without_memory


def ddim() -> Sampler:
    """Return the deterministic sampler x_s = α_s x̂_0 + σ_s ε̂, eq. (20) (Song et al. 2021)."""

    def move(key, xt, x0_hat, interval):
        del key
        gamma_s, gamma_t, delta = interval
        # the second form of (20), which is free of cancellation
        xt_coefficient = jnp.exp(log_sigma(gamma_s) - log_sigma(gamma_t))
        return xt_coefficient * xt - alpha(gamma_s) * jnp.expm1(-0.5 * delta) * x0_hat

    return without_memory(move)
