"""Densities of training times.

    E_t L(t) = E_u[w L(t(u))],   t = Φ⁻¹(u),   w = 1/p(t)                                   (37)
    its variance is minimal for    p(t) ∝ √E[L² | t]                                       (38)

The density p is constant on K bins of the unit interval, or on K groups of consecutive steps of a chain, and
mixed with a uniform density, which bounds the weights. It determines the distribution of the draws but not the
estimate: every density gives the same expectation. u is that of eq. (15), stratified over the global batch.

    uniform          p = 1: no weights
    analytic         (38) for a network whose output is zero; its error is that of the base
    learned          (38) from running averages of L² in each bin, initially those of `analytic`
    logit_normal     log(t/(1 − t)) normal
    lognormal_sigma  log(σ/α) = γ/2 normal

In high dimensions L is nearly equal for all examples at one time, so that √E[L² | t] is close to E[L | t].
Sources: Kingma et al. 2021 (15); Nichol & Dhariwal 2021 (p ∝ √E[L²], from the last losses of each step); Esser
et al. 2024 (logit_normal); Karras et al. 2022, EDM (lognormal_sigma).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit
from jax.scipy.stats import norm

from vdm_jax.checks import real_number
from vdm_jax.elbo import draw_times
from vdm_jax.time_samplers.base import TimeSample, TimeSampler, TrainingPath, stateless
from vdm_jax.time_samplers.bins import (
    best_mass,
    bin_edges,
    bin_probabilities,
    check_bins,
    draw_weighted,
    expected_moments,
    updated_moments,
)
from vdm_jax.typing import Array


def uniform() -> TimeSampler:
    """Return the uniform density, with stratified times, eq. (15)."""
    return stateless(lambda path, key, phase: TimeSample(draw_times(key, phase, path.timesteps)))


def analytic(*, bins: int = 64, mix: float = 0.1) -> TimeSampler:
    """Return the optimal density for a network whose output is zero, as before training.

    Args:
      bins: K, the number of bins.
      mix: the uniform part of the density; no weight exceeds about 1/mix.

    Raises:
      ValueError: `bins` is below 1; `mix` is outside (0, 1], or so small that float32 never draws some bin.
    """
    return _histogram(lambda path, edges: best_mass(expected_moments(path, bins), edges), bins, mix)


def learned(*, bins: int = 64, mix: float = 0.1, rate: float = 0.02) -> TimeSampler:
    """Return the optimal density for the observed losses, averaged in each bin over about 1/rate steps.

    The state is an estimate of E[L² | bin], [K]. With batches of far fewer than rate · bins examples, one draw
    moves the average of its bin beyond the observed value.

    Args:
      bins, mix: as in `analytic`.
      rate: of the running averages, in (0, 1].

    Raises:
      ValueError: as in `analytic`; `rate` is outside (0, 1].
    """
    check_bins(bins, mix)
    real_number(rate, "rate", "a number in (0, 1]", lambda value: 0 < value <= 1)

    def sample(moments, path, key, phase):
        mass = best_mass(moments, bin_edges(bins, path.timesteps))
        probability = bin_probabilities(mass, mix, path.timesteps)
        return draw_weighted(key, phase, probability, path.timesteps)

    return TimeSampler(
        init=lambda path: expected_moments(path, bins),
        sample=sample,
        update=lambda moments, sample, loss: updated_moments(moments, sample, loss, rate),
    )


def logit_normal(
    *, mean: float = 0.0, deviation: float = 1.0, bins: int = 64, mix: float = 0.1
) -> TimeSampler:
    """Return a logit-normal density of t (Esser et al. 2024).

    The draws are weighted, so that the density does not change the loss. The paper omits the weights, so that
    the density acts as a weighting of the loss.

    Args:
      mean, deviation: of log(t/(1 − t)).
      bins, mix: as in `analytic`.

    Raises:
      ValueError: as in `analytic`; `mean` is not finite, or `deviation` is not positive and finite.
    """
    _check_normal(mean, deviation)

    def mass(path, edges):
        del path
        return _normal_mass(logit(jnp.asarray(edges / edges[-1], float)), mean, deviation)

    return _histogram(mass, bins, mix)


def lognormal_sigma(
    *, mean: float = -1.2, deviation: float = 1.2, bins: int = 64, mix: float = 0.1
) -> TimeSampler:
    """Return EDM's lognormal density of the noise level σ/α = e^{γ/2} (Karras et al. 2022).

    The density is truncated at the schedule's ends. The draws are weighted, as in `logit_normal`.

    Args:
      mean, deviation: of log(σ/α), EDM's P_mean and P_std.
      bins, mix: as in `analytic`.

    Raises:
      ValueError: as in `logit_normal`.
    """
    _check_normal(mean, deviation)

    def mass(path, edges):
        gamma = path.gamma(jnp.asarray(edges / edges[-1], float))
        return _normal_mass(0.5 * gamma, mean, deviation)

    return _histogram(mass, bins, mix)


def _histogram(
    mass: Callable[[TrainingPath, np.ndarray], Array], bins: int, mix: float
) -> TimeSampler:
    """Return the density that is constant on bins with the mass (path, edges) -> [K]."""
    check_bins(bins, mix)

    def sample(path, key, phase):
        # at every call, because the path depends on the current params of a learned schedule
        edges = bin_edges(bins, path.timesteps)
        probability = bin_probabilities(mass(path, edges), mix, path.timesteps)
        return draw_weighted(key, phase, probability, path.timesteps)

    return stateless(sample)


def _normal_mass(edges: Array, mean: float, deviation: float) -> Array:
    """Return the mass of a normal density between increasing edges [K + 1], [K]."""
    return jnp.diff(norm.cdf(edges, mean, deviation))


def _check_normal(mean: float, deviation: float) -> None:
    """Raise ValueError unless the mean is finite and the deviation is finite and positive."""
    real_number(mean, "mean")
    real_number(deviation, "deviation", "a number above 0", lambda value: 0 < value < math.inf)
