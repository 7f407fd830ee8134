"""Lower bounds from one noisy sample: the ELBO, and the ELBO with a tuned reverse variance, eq. (10), (24)."""

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Draw, Elbo, check_timesteps, mean_over_draws
from vdm_jax.estimators.base import Estimate, Estimator
from vdm_jax.estimators.variance import FITTED, ReverseVariance, squared_residual
from vdm_jax.typing import Array, Scalar


def elbo(*, timesteps: int | None = None, draws: int = 1) -> Estimator:
    """Return the estimator of the ELBO, a lower bound on log p(x), eq. (10).

    Args:
      timesteps: T ≥ 1, or None for continuous time.
      draws: number of draws of the time and the noise, of which the mean is returned.

    Raises:
      ValueError: a number below 1.
    """
    whole_number(draws, "draws", 1)
    if timesteps is not None:
        whole_number(timesteps, "timesteps", 1, MAX_STEPS)

    def estimate(process, x, x0, keys, fitted=None):
        del fitted
        bound = mean_over_draws(process, x, x0, keys, timesteps, draws, lambda draw: draw.bound)
        return Estimate(-bound.total, bound)

    return Estimator(
        "elbo",
        estimate,
        calls=lambda likelihood: draws * (1 + likelihood.uses_prediction),
        description=f"diffusion ELBO, {time_of(timesteps)}, {plural(draws, 'draw')} per example",
        settings={"timesteps": timesteps, "draws": draws},
        check=lambda parameterization, likelihood, shape: check_timesteps(
            timesteps, parameterization
        ),
    )


def tuned(*, timesteps: int | None, variance: Any = FITTED, draws: int = 1) -> Estimator:
    """Return the estimator of the ELBO of a reverse process with the variance σ_q² (1 + r), eq. (24).

    A step's term is ½ Σ [(ρ − r)/(1 + r) + log(1 + r)]. If r is the mean of ρ, its mean is ½ Σ log(1 + r),
    where that of the ELBO is ½ Σ r.

    Args:
      timesteps: T ≥ 1.
      variance: r, as in `ReverseVariance`: numbers, a function of γ_t, or "fitted" to measure it on training
        examples.
      draws: as in `elbo`.

    Raises:
      ValueError: no `timesteps`, a number below 1, or an r that is not above −1.
      TypeError: a `variance` of another type.
    """
    whole_number(draws, "draws", 1)
    steps = chain_steps(timesteps)
    reverse = ReverseVariance(variance, steps)

    def estimate(process, x, x0, keys, fitted=None):
        excess = reverse.excess(process, x0.shape[1:], fitted)

        def matching(interval: Interval, error: Array, i: Array) -> Scalar:
            rho, r = squared_residual(interval, error), excess(interval, i)
            return steps * 0.5 * jnp.sum((rho - r) / (1 + r) + jnp.log1p(r))

        def with_tuned_matching(draw: Draw) -> Elbo:
            nats = jax.vmap(matching)(draw.noisy.interval, draw.error, draw.times)
            return draw.bound._replace(matching=nats)

        bound = mean_over_draws(process, x, x0, keys, steps, draws, with_tuned_matching)
        return Estimate(-bound.total, bound)

    return Estimator(
        "tuned",
        estimate,
        calls=lambda likelihood: draws * (1 + likelihood.uses_prediction),
        description=f"diffusion ELBO{reverse.words}, T = {steps}, {plural(draws, 'draw')} per example",
        settings={"timesteps": steps, "draws": draws, "variance": reverse.name},
        check=lambda parameterization, likelihood, shape: reverse.check(shape),
        fit=reverse.fit,
    )


def time_of(timesteps: int | None) -> str:
    """Return the time of a bound in words, for reports."""
    return "continuous time" if timesteps is None else f"T = {timesteps}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, for reports."""
    return f"{count} {noun}{'s' if count > 1 else ''}"


def chain_steps(timesteps: int | None) -> int:
    """Return the number of steps of an estimator that is defined on a chain.

    Raises:
      ValueError: it is None, or out of range.
    """
    if timesteps is None:
        raise ValueError("timesteps: needed, because the estimator has no continuous-time limit")
    return whole_number(timesteps, "timesteps", 1, MAX_STEPS)
