"""The importance-weighted bound of whole trajectories, eq. (25) (Burda et al. 2015)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.checks import whole_number
from vdm_jax.diffusion import Interval, alpha, log_sigma, marginal, sigma
from vdm_jax.elbo import NoisySample, Process, log_prob_of_data, same_for_all
from vdm_jax.estimators.base import Estimate, Estimator
from vdm_jax.estimators.bounds import chain_steps
from vdm_jax.estimators.variance import Excess, ReverseVariance, residual
from vdm_jax.keys import fold_each, split_each
from vdm_jax.samplers import noise_like
from vdm_jax.schedules import interval
from vdm_jax.typing import Array, ArrayLike, Int, Keys, Reals, Scalar


def importance(*, timesteps: int | None, samples: int = 10, variance: Any = None) -> Estimator:
    """Return the estimator of log (1/M) Σ_m w_m over M trajectories z_T … z_0 ~ q(· | x), eq. (25).

    Its mean is a lower bound on log p(x) that increases with M; for M = 1 it is the ELBO.

    Args:
      timesteps: T ≥ 1.
      samples: M ≥ 1, the number of trajectories.
      variance: of the reverse process, as in `tuned`; by default that of the ELBO.

    Raises:
      ValueError, TypeError: as in `tuned`; `samples` is below 1.
    """
    whole_number(samples, "samples", 1)
    steps = chain_steps(timesteps)
    reverse = ReverseVariance(variance, steps)

    def estimate(process, x, x0, keys, fitted=None):
        excess = reverse.excess(process, x0.shape[1:], fitted)

        def weigh(m):
            return log_weight(process, x, x0, fold_each(keys, m), steps, excess)

        return Estimate(log_mean_exp(weigh, samples))

    return Estimator(
        "importance",
        estimate,
        calls=lambda likelihood: samples * (steps + likelihood.uses_prediction),
        description=f"importance-weighted bound, T = {steps}, M = {samples}{reverse.words}",
        settings={"timesteps": steps, "samples": samples, "variance": reverse.name},
        check=lambda parameterization, likelihood, shape: reverse.check(shape),
        fit=reverse.fit,
    )


def log_weight(
    process: Process, x: ArrayLike, x0: Array, keys: Keys, timesteps: int, excess: Excess
) -> Reals:
    """Return log w = log p(x, z) − log q(z | x) of one trajectory of each example, nats [B].

    A latent is held as (x_0, ε): with noise n, the posterior (9) is ε_s = e^{−Δ/2} ε_t + √(1 − e^{−Δ}) n, and
    every term is a sum of residuals instead of a difference of large densities.
    """
    start_keys, step_keys = split_each(keys, 2)
    eps = noise_like(start_keys, x0)
    total = jax.vmap(log_ratio_of_ends, (0, 0, None))(x0, eps, process.gamma(1.0))

    def step(carry, i):
        eps, total = carry
        position = i.astype(x0.dtype)
        times = position / timesteps, (position + 1) / timesteps
        step_interval = interval(process.schedule, process.schedule_params, *times)
        _, gamma_t, delta = step_interval
        noise = noise_like(fold_each(step_keys, i), x0)
        xt = alpha(gamma_t) * x0 + sigma(gamma_t) * eps
        intervals = same_for_all(step_interval, x0)
        time_weight = timesteps * jnp.expm1(intervals.delta)
        error = process.error(NoisySample(x0, eps, xt, intervals, time_weight))
        ratio = jax.vmap(log_ratio_of_step, (None, 0, 0, None))
        total += ratio(step_interval, error, noise, excess(step_interval, i))
        eps = jnp.exp(-0.5 * delta) * eps + jnp.sqrt(-jnp.expm1(-delta)) * noise
        return (eps, total), None

    (eps, total), _ = jax.lax.scan(step, (eps, total), jnp.arange(timesteps - 1, -1, -1))
    latent = marginal(x0, process.gamma(0.0)).mean + sigma(process.gamma(0.0)) * eps
    return total + log_prob_of_data(process, x, latent)


def log_ratio_of_ends(x0: Array, eps: Array, gamma_1: Scalar) -> Scalar:
    """Return log p(z_T) − log q(z_T | x) of one example, without the terms that cancel."""
    a, s = alpha(gamma_1), sigma(gamma_1)
    # ‖α x_0 + σ ε‖² − ‖ε‖², with σ² − 1 = −α²
    difference = jnp.sum(a * (a * (jnp.square(x0) - jnp.square(eps)) + 2 * s * x0 * eps))
    return x0.size * log_sigma(gamma_1) - 0.5 * difference


def log_ratio_of_step(interval: Interval, error: Array, noise: Array, r: Reals) -> Scalar:
    """Return log p(z_s | z_t) − log q(z_s | z_t, x) of one example, for z_s = μ_q + σ_q · noise."""
    delta = residual(interval, error)
    # (δ + n)²/(1 + r) − n², without the difference of squares
    difference = (delta * (2 * noise + delta) - r * jnp.square(noise)) / (1 + r)
    return -0.5 * jnp.sum(difference + jnp.log1p(r))


def log_mean_exp(weigh: Callable[[Int[Array, ""]], Reals], samples: int) -> Reals:
    """Return log (1/M) Σ_m exp(weigh(m)) for m < M, one sample at a time, which saves memory."""

    def add(log_sum, m):
        return jnp.logaddexp(log_sum, weigh(m)), None

    indices = jnp.arange(samples)
    if samples == 1:
        return weigh(indices[0])
    log_zero = jnp.full_like(jax.eval_shape(weigh, indices[0]), -jnp.inf)
    log_sum, _ = jax.lax.scan(add, log_zero, indices)
    return log_sum - math.log(samples)
