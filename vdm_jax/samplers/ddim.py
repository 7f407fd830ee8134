"""The solver of DDIM, deterministic or with noise, eq. (20), and the step that other solvers share."""

import jax.numpy as jnp

from vdm_jax.checks import is_traced, real_number
from vdm_jax.diffusion import Interval, alpha, log_sigma, sigma
from vdm_jax.samplers.base import Sampler, noise_like, without_memory
from vdm_jax.typing import Data, Real


def ddim(*, eta: float = 0.0) -> Sampler:
    """Return the sampler x_s = α_s x̂_0 + σ_s (c ε̂ + √(1 − c²) z), c² = 1 − η² (1 − e^{−Δ}), eq. (20).

    Args:
      eta: η in [0, 1] (Song et al. 2021): 0 for the deterministic solver, 1 for `ancestral`.

    Raises:
      ValueError: `eta` is outside [0, 1].
    """
    real_number(eta, "eta", "a number in [0, 1]", lambda value: 0 <= value <= 1)
    if not is_traced(eta) and eta == 0:
        return without_memory(lambda key, xt, x0_hat, interval: solve(xt, x0_hat, interval))

    def move(key, xt, x0_hat, interval):
        drawn_anew = -jnp.square(eta) * jnp.expm1(-interval.delta)  # 1 − c²
        mean = solve(xt, x0_hat, interval, 0.5 * jnp.log1p(-drawn_anew))
        return mean + sigma(interval.gamma_s) * jnp.sqrt(drawn_anew) * noise_like(key, mean)

    return without_memory(move)


def solve(xt: Data, x0_hat: Data, interval: Interval, log_c: Real = 0.0) -> Data:
    """Return α_s x̂_0 + c σ_s ε̂, eq. (20); with c = 1, the probability flow for a constant x̂_0."""
    gamma_s, gamma_t, delta = interval
    # the second form of (20), which is free of cancellation
    xt_coefficient = jnp.exp(log_c + log_sigma(gamma_s) - log_sigma(gamma_t))
    return xt_coefficient * xt - alpha(gamma_s) * jnp.expm1(log_c - 0.5 * delta) * x0_hat
