"""The parameterizations of the network's output, docs/equations.md §4."""

import jax.numpy as jnp

from vdm_jax.diffusion import Interval, alpha, log_alpha, log_sigma, sigma
from vdm_jax.parameterizations.base import Parameterization, Preconditioning, TargetCoefficients

FLAT = 2.0**-30  # the smallest Δ at which `mean` is converted to x̂_0


def x0() -> Parameterization:
    """Return the parameterization in which F predicts the data."""

    def preconditioning(interval: Interval) -> Preconditioning:
        ones = jnp.ones_like(interval.gamma_t)
        return Preconditioning(0 * ones, ones)

    def target(interval: Interval) -> TargetCoefficients:
        ones = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(ones, 0 * ones)

    return Parameterization(preconditioning, target)


def eps() -> Parameterization:
    """Return the parameterization in which F predicts the noise."""

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_t = interval.gamma_t
        return Preconditioning(jnp.exp(-log_alpha(gamma_t)), -jnp.exp(0.5 * gamma_t))

    def target(interval: Interval) -> TargetCoefficients:
        ones = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(0 * ones, ones)

    return Parameterization(preconditioning, target, needs_signal=True)


def mean() -> Parameterization:
    """Return the parameterization in which F predicts the mean of the posterior (9); it needs s < t.

    Where the schedule is flat (Δ = 0), the mean is x_t for every x_0; the coefficients are those of Δ = `FLAT`.
    """

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)
        skip = -jnp.exp(-log_alpha(gamma_t)) / jnp.expm1(delta)
        return Preconditioning(skip, -jnp.exp(-log_alpha(gamma_s)) / jnp.expm1(-delta))

    def target(interval: Interval) -> TargetCoefficients:
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)  # as in `preconditioning`, so that the two stay consistent
        log_eps = log_alpha(gamma_s) + 0.5 * gamma_t - delta
        return TargetCoefficients(alpha(gamma_s), jnp.exp(log_eps))

    return Parameterization(preconditioning, target, continuous=False)


def v() -> Parameterization:
    """Return the parameterization in which F predicts the velocity α ε − σ x_0."""

    def preconditioning(interval: Interval) -> Preconditioning:
        return Preconditioning(alpha(interval.gamma_t), -sigma(interval.gamma_t))

    def target(interval: Interval) -> TargetCoefficients:
        return TargetCoefficients(-sigma(interval.gamma_t), alpha(interval.gamma_t))

    return Parameterization(preconditioning, target)


def score() -> Parameterization:
    """Return the parameterization in which F predicts the score −ε/σ."""

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_t = interval.gamma_t
        inverse_alpha = jnp.exp(-log_alpha(gamma_t))
        return Preconditioning(inverse_alpha, jnp.exp(0.5 * gamma_t + log_sigma(gamma_t)))

    def target(interval: Interval) -> TargetCoefficients:
        inverse_sigma = jnp.exp(-log_sigma(interval.gamma_t))
        return TargetCoefficients(0 * inverse_sigma, -inverse_sigma)

    return Parameterization(preconditioning, target, needs_signal=True)


def flow() -> Parameterization:
    """Return the parameterization in which F predicts the velocity ε − x_0 of flow matching, eq. (33).

    On the straight path z = (1 − τ) x_0 + τ ε of flow matching, F is dz/dτ. The latent x_t is z scaled to
    α² + σ² = 1: z = x_t/(α + σ), τ = σ/(α + σ) (Lipman et al. 2023, Liu et al. 2023).
    """

    def preconditioning(interval: Interval) -> Preconditioning:
        alpha_t, sigma_t = alpha(interval.gamma_t), sigma(interval.gamma_t)
        return Preconditioning(1 / (alpha_t + sigma_t), -sigma_t / (alpha_t + sigma_t))

    def target(interval: Interval) -> TargetCoefficients:
        ones = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(-ones, ones)

    return Parameterization(preconditioning, target)
