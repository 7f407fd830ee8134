"""Base denoisers that are linear in x_t, whose error needs no cancelling difference."""

import jax.numpy as jnp

from vdm_jax.bases.base import Base
from vdm_jax.diffusion import alpha, log_alpha, log_sigma, sigma
from vdm_jax.parameterizations import regression_target


def zero(*, second_moment: float = 1 / 3) -> Base:
    """Return the base without a denoiser: the network outputs F itself.

    Args:
      second_moment: E[x_0²] of the data, per position.
    """

    def estimate(xt, gamma_t, preconditioning):
        del gamma_t
        return preconditioning.skip * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, gamma_t
        return preconditioning.out * regression_target(x0, eps, target)

    def deviation(gamma_t, preconditioning, target):
        del gamma_t
        # x_0 − b = out · target, and x_0 and ε are uncorrelated
        mean_square = second_moment * jnp.square(target.x0) + jnp.square(target.eps)
        return jnp.abs(preconditioning.out) * jnp.sqrt(mean_square)

    return Base(estimate, error, deviation, informative=False)


def input(*, second_moment: float = 1 / 3) -> Base:
    """Return the base ε̂ = x_t, which is exact where the latent is only noise.

    Args:
      second_moment: E[x_0²] of the data, per position.
    """

    def gain(gamma_t):  # (1 − σ)/α; expm1, because σ → 1 at high noise
        return -jnp.expm1(log_sigma(gamma_t)) * jnp.exp(-log_alpha(gamma_t))

    def estimate(xt, gamma_t, preconditioning):
        del preconditioning
        return gain(gamma_t) * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, preconditioning, target
        return sigma(gamma_t) * (x0 - gain(gamma_t) * eps)

    def deviation(gamma_t, preconditioning, target):
        del preconditioning, target
        return sigma(gamma_t) * jnp.sqrt(second_moment + jnp.square(gain(gamma_t)))

    return Base(estimate, error, deviation, informative=False)


def gaussian(*, second_moment: float = 1 / 3) -> Base:
    """Return the posterior mean of Gaussian data, b = α_t σ_d²/(α_t² σ_d² + σ_t²) · x_t, eq. (34).

    Args:
      second_moment: σ_d² = E[x_0²] of the data, per position.
    """

    def variance(gamma_t):  # of x_t
        return second_moment * jnp.square(alpha(gamma_t)) + jnp.square(sigma(gamma_t))

    def estimate(xt, gamma_t, preconditioning):
        del preconditioning
        return second_moment * alpha(gamma_t) / variance(gamma_t) * xt

    def error(x0, eps, xt, gamma_t, preconditioning, target):
        del xt, preconditioning, target
        noise = sigma(gamma_t)
        return noise / variance(gamma_t) * (noise * x0 - second_moment * alpha(gamma_t) * eps)

    def deviation(gamma_t, preconditioning, target):
        del preconditioning, target
        return sigma(gamma_t) * jnp.sqrt(second_moment / variance(gamma_t))

    return Base(estimate, error, deviation, informative=False)
