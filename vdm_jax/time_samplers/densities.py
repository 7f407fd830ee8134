"""The rows of `TIME_SAMPLERS`.

    E_t L(t) = E_u[w L(t(u))],   t = F⁻¹(u),   w = 1/p(t)                                   (24)
    its variance is least for    p(t) ∝ √E[L² | t]                                         (25)

The density p is constant on K bins of the unit interval, or on K runs of consecutive steps of a chain, and
mixed with a uniform one, which bounds the weights. It decides where draws are spent and never what is
estimated: every density gives the same expectation. u is that of eq. (15), stratified over the global batch.

    uniform          p = 1: no weights
    analytic         (25) of a network whose output is zero, known before training: its error is the base's
    learned          (25) of running averages of L² in each bin, which start there
    logit_normal     log(t/(1 − t)) normal
    lognormal_sigma  log(σ/α) = γ/2 normal

In high dimension L is nearly the same for all examples of a time, so that √E[L² | t] is close to E[L | t].
Sources: Kingma et al. 2021 (15); Nichol & Dhariwal 2021 (p ∝ √E[L²], from the last losses of each step); Esser
et al. 2024 (logit_normal); Karras et al. 2022, EDM (lognormal_sigma).
"""

import math
from collections.abc import Callable
from typing import Any

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
    """Stratified and uniform, eq. (15)."""
    return stateless(lambda path, key, phase: TimeSample(draw_times(key, phase, path.timesteps)))


def analytic(*, bins: int = 64, mix: float = 0.1) -> TimeSampler:
    """The best density of a network whose output is zero, as it is before training.

    Args:
      bins: K on which the density is constant.
      mix: the part of the draws that is spread uniformly, so that no weight exceeds about 1/mix.

    Raises:
      ValueError: fewer bins than one; mix outside (0, 1], or so small that float32 never draws some bin.
    """
    return _histogram(lambda path, edges: best_mass(expected_moments(path, bins), edges), bins, mix)


def learned(*, bins: int = 64, mix: float = 0.1, rate: float = 0.02) -> TimeSampler:
    """The best density of the observed losses, averaged in each bin over about 1/rate steps.

    The state is an estimate of E[L² | bin] of each bin, [K]. With batches of much less than rate · bins
    examples, one draw moves the average of its bin past what it saw.

    Args:
      bins, mix: as of `analytic`.
      rate: of the averages.

    Raises:
      ValueError: as `analytic`; rate outside (0, 1].
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
    """A logit-normal density of t (Esser et al. 2024).

    The draws are weighted, so that the density does not change the loss: the original work does without the
    weights, which is this density as a weighting of the loss.

    Args:
      mean, deviation: of log(t/(1 − t)).
      bins, mix: as of `analytic`.

    Raises:
      ValueError: as `analytic`; a mean that is not finite, a deviation that is not positive.
    """
    _check_normal(mean, deviation)

    def mass(path, edges):
        del path
        return _normal_mass(logit(jnp.asarray(edges / edges[-1], float)), mean, deviation)

    return _histogram(mass, bins, mix)


def lognormal_sigma(
    *, mean: float = -1.2, deviation: float = 1.2, bins: int = 64, mix: float = 0.1
) -> TimeSampler:
    """A lognormal density of the noise level σ/α = e^{γ/2}, that of EDM (Karras et al. 2022).

    Noise levels outside of the schedule's ends are cut off. The draws are weighted, as those of `logit_normal`.

    Args:
      mean, deviation: of log(σ/α), EDM's P_mean and P_std.
      bins, mix: as of `analytic`.

    Raises:
      ValueError: as `logit_normal`.
    """
    _check_normal(mean, deviation)

    def mass(path, edges):
        gamma = path.gamma(jnp.asarray(edges / edges[-1], float))
        return _normal_mass(0.5 * gamma, mean, deviation)

    return _histogram(mass, bins, mix)


def _histogram(
    mass: Callable[[TrainingPath, np.ndarray], Array], bins: int, mix: float
) -> TimeSampler:
    """Return a density that is constant on bins, from their mass (path, edges) -> [K]."""
    check_bins(bins, mix)

    def sample(path, key, phase):
        edges = bin_edges(bins, path.timesteps)
        probability = bin_probabilities(mass(path, edges), mix, path.timesteps)
        return draw_weighted(key, phase, probability, path.timesteps)

    return stateless(sample)


def _normal_mass(edges: Array, mean: float, deviation: float) -> Array:
    """Return the mass of a normal density between rising edges [K + 1]."""
    return jnp.diff(norm.cdf(edges, mean, deviation))


def _check_normal(mean: Any, deviation: Any) -> None:
    real_number(mean, "mean")
    real_number(deviation, "deviation", "a number above 0", lambda value: 0 < value < math.inf)
