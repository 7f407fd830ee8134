"""Data for which every answer is known: Gaussians and mixtures of two, in float64 NumPy.

The best denoiser is E[x_0 | x_t]; since every parameterization's target is linear in (x_0, ε), the best
network is the same combination of E[x_0 | x_t] and E[ε | x_t], with no cancellation in any row. A Gaussian's
denoiser is affine, which makes the bound, the chain's own likelihood and every sampler's law a recursion of
two numbers per position. The denoiser of a *wrong* Gaussian is as closed, and not the best.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from vdm_jax.diffusion import Interval
from vdm_jax.parameterizations import regression_target
from vdm_jax.schedules import interval

SHAPES = [(), (3,), (8, 8, 1), (2, 3, 4)]
LOG_2PI = np.log(2 * np.pi)

# most tests run a compiled program once; this level takes a third of the time
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Law(NamedTuple):
    """Σ_k weights[k] N(means[k], variances[k]), over the whole example; one component is a Gaussian."""

    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, *d]
    variances: np.ndarray  # [K, *d]

    def sample(self, seed: int, n: int) -> np.ndarray:
        """Draw n examples, float64 [n, *d]."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = rng.standard_normal((n, *self.means.shape[1:]))
        return self.means[k] + np.sqrt(self.variances[k]) * noise

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Return the log-density in nats of examples [n, *d]."""
        axes = tuple(range(1, x.ndim))
        each = [
            np.log(w) - 0.5 * np.sum((x - m) ** 2 / v + np.log(v) + LOG_2PI, axis=axes)
            for w, m, v in zip(*self, strict=True)
        ]
        return np.logaddexp.reduce(each, axis=0)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [d] and covariance [d, d] of the flattened data."""
        means = self.means.reshape(len(self.weights), -1)
        spread = self.variances.reshape(len(self.weights), -1)
        mean = self.weights @ means
        off = means - mean
        return mean, np.diag(self.weights @ spread) + (off.T * self.weights) @ off

    def posterior_means(self, xt, gamma_t):
        """Return E[x_0 | x_t] and E[ε | x_t] of one example, in the float type of x_t."""
        variance, signal = jax.nn.sigmoid(gamma_t), jnp.exp(0.5 * jax.nn.log_sigmoid(-gamma_t))
        logs, x0s, epss = [], [], []
        for w, m, v in zip(*jax.tree.map(lambda a: jnp.asarray(a, xt.dtype), self), strict=True):
            spread = signal**2 * v + variance
            off = (xt - signal * m) / spread
            logs.append(jnp.log(w) - 0.5 * jnp.sum(off**2 * spread + jnp.log(spread)))
            x0s.append(m + signal * v * off)
            epss.append(jnp.sqrt(variance) * off)
        share = jax.nn.softmax(jnp.stack(logs))
        return sum(p * x for p, x in zip(share, x0s, strict=True)), sum(
            p * e for p, e in zip(share, epss, strict=True)
        )

    def network(self, row, interval_of):
        """Return the best network (xt, gamma_t) -> F of a parameterization; see `interval_of_step`."""

        def denoise(xt, gamma_t):
            x0_hat, eps_hat = self.posterior_means(xt, gamma_t)
            return regression_target(x0_hat, eps_hat, row.target(interval_of(gamma_t)))

        return denoise


def interval_of_step(schedule, params=None, timesteps: int | None = None):
    """Return gamma_t -> the interval that ends there, which `mean` needs; γ_0 ends the interval to the data."""
    if timesteps is None:
        return lambda gamma_t: Interval(gamma_t, gamma_t, jnp.zeros_like(gamma_t))

    def find(gamma_t):
        i = jnp.arange(timesteps + 1, dtype=gamma_t.dtype)
        steps = jax.vmap(lambda i: interval(schedule, params, (i - 1) / timesteps, i / timesteps))
        grid = steps(jnp.maximum(i, 1))
        first = jnp.asarray(schedule.gamma(params, 0.0), gamma_t.dtype)
        ends = jnp.where(i == 0, first, grid.gamma_t)
        here = jnp.argmin(jnp.abs(ends - gamma_t))
        at = jax.tree.map(lambda values: values[here], grid)
        data = Interval(-jnp.inf, gamma_t, jnp.inf)
        return jax.tree.map(lambda a, b: jnp.where(here == 0, a, b), data, at)

    return find


def gaussian(shape: tuple[int, ...], *, shift: float = 0.0, scale: float = 1.0) -> Law:
    """Return a Gaussian whose mean and variance differ at every position."""
    rng = np.random.default_rng(7)
    mean = 0.5 * np.sin(1 + np.arange(np.prod(shape, dtype=int))).reshape(shape) + shift
    return Law(np.ones(1), mean[None], scale * rng.uniform(0.1, 0.6, (1, *shape)))


def mixture(shape: tuple[int, ...]) -> Law:
    """Return two Gaussians on either side of zero, which make the positions dependent."""
    one = gaussian(shape)
    means = np.concatenate([0.8 + 0.2 * one.means, -0.6 - 0.2 * one.means])
    variances = np.concatenate([0.2 * one.variances, 0.4 * one.variances])
    return Law(np.array([0.35, 0.65]), means, variances)


LAWS = {"gaussian": gaussian, "mixture": mixture}


# Below: a chain γ_0 < … < γ_T with the denoiser of a Gaussian `law`, all in NumPy and per position.


def affine(law: Law, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return offset and gain of x̂_0 = offset + gain · x_t."""
    (mean,), (variance,) = law.means, law.variances
    signal, noise = np.sqrt(expit(-gamma)), expit(gamma)
    spread = signal**2 * variance + noise
    return mean * noise / spread, signal * variance / spread


def squared_error(law: Law, gamma: float, x0: np.ndarray) -> np.ndarray:
    """Return E‖x_0 − x̂_0‖² over the noise, for examples [n, *d]."""
    offset, gain = affine(law, gamma)
    bias = x0 - offset - gain * np.sqrt(expit(-gamma)) * x0
    return np.sum(bias**2 + gain**2 * expit(gamma), axis=tuple(range(1, x0.ndim)))


def matching(law: Law, gammas: np.ndarray, x0: np.ndarray) -> np.ndarray:
    """Return the matching terms of eq. (13), summed over the chain, for examples [n, *d]."""
    steps = itertools.pairwise(gammas)
    return sum(0.5 * np.exp(-t) * np.expm1(t - s) * squared_error(law, t, x0) for s, t in steps)


def matching_continuous(law: Law, first: float, last: float, x0: np.ndarray) -> np.ndarray:
    """Return the limit of `matching`, eq. (14), by Gauss–Legendre quadrature in γ."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    gammas = first + (last - first) * (nodes + 1) / 2
    parts = (
        np.exp(-g) * squared_error(law, g, x0) * w for g, w in zip(gammas, weights, strict=True)
    )
    return 0.25 * (last - first) * sum(parts)


def ends(first: float, last: float, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return reconstruction (`gaussian` likelihood) and prior, for examples [n, *d]."""
    axes = tuple(range(1, x0.ndim))
    reconstruction = 0.5 * np.sum(np.full_like(x0, 1 + first + LOG_2PI), axis=axes)
    variance, mean = expit(last), np.sqrt(expit(-last)) * x0
    prior = 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance), axis=axes)
    return reconstruction, prior


def ancestral_step(s: float, t: float) -> tuple[float, float, float]:
    """Return keep, new and variance of x_s = keep · x_t + new · x̂_0 + noise, eq. (19)."""
    keep = np.sqrt(expit(-s) / expit(-t)) * np.exp(s - t)
    return keep, -np.sqrt(expit(-s)) * np.expm1(s - t), -expit(s) * np.expm1(s - t)


def ddim_step(s: float, t: float) -> tuple[float, float, float]:
    """Return keep, new and variance for eq. (20), from x_s = α_s x̂_0 + σ_s (x_t − α_t x̂_0)/σ_t."""
    keep = np.sqrt(expit(s) / expit(t))
    return keep, np.sqrt(expit(-s)) - keep * np.sqrt(expit(-t)), 0.0


STEPS = {"ancestral": ancestral_step, "ddim": ddim_step, "euler": ddim_step}
"""Sampler of one prediction per step, without memory -> keep, new and variance of its step."""


def chain_law(law: Law, gammas: np.ndarray, step=ancestral_step) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of x_{t=0} when x_{t=1} ~ N(0, I) runs down a chain."""
    mean, variance = np.zeros_like(law.means[0]), np.ones_like(law.means[0])
    for s, t in reversed(list(itertools.pairwise(gammas))):
        offset, gain = affine(law, t)
        keep, new, noise = step(s, t)
        slope = keep + new * gain
        mean = slope * mean + new * offset
        variance = slope**2 * variance + noise
    return mean, variance


def chain_log_prob(law: Law, gammas: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return log p(x) of that chain under the `gaussian` likelihood, an upper bound of its ELBO."""
    mean, variance = chain_law(law, gammas)
    signal, noise = np.sqrt(expit(-gammas[0])), expit(gammas[0])
    model = Law(np.ones(1), (mean / signal)[None], ((variance + noise) / signal**2)[None])
    return model.log_prob(x)


def flow(law: Law, first: float, last: float, x1: np.ndarray) -> np.ndarray:
    """Map x_{t=1} to t = 0 by the probability flow (21) of a Gaussian, which keeps standard scores."""
    (mean,), (variance,) = law.means, law.variances

    def at(gamma):
        return np.sqrt(expit(-gamma)) * mean, np.sqrt(expit(-gamma) * variance + expit(gamma))

    (m0, s0), (m1, s1) = at(first), at(last)
    return m0 + s0 / s1 * (x1 - m1)


def printed_excess(law: Law, gammas: np.ndarray) -> float:
    """Return the excess of the printed consistency terms over the right terms, docs/equations.md §5."""
    total = 0.0
    before = np.inf
    for s, t in itertools.pairwise(gammas):
        _, gain = affine(law, t)
        keep, new, _ = ancestral_step(s, t)
        slope, ratio = keep + new * gain, np.sqrt(expit(-t) / expit(-s))
        # both variances carry σ_s²
        total += np.sum(slope * ratio * np.expm1(-before) / np.expm1(s - t))
        before = t - s
    return float(total)


def marginal_cdf(law: Law, gamma: float, xt: np.ndarray) -> np.ndarray:
    """Return P(x_t ≤ xt) of a one-dimensional law, which the probability flow keeps."""
    signal, noise = np.sqrt(expit(-gamma)), expit(gamma)
    each = (
        w * norm.cdf(xt, signal * m, np.sqrt(signal**2 * v + noise))
        for w, m, v in zip(*law, strict=True)
    )
    return sum(each)


def expit(x):
    """Return the logistic function in NumPy."""
    return np.exp(-np.logaddexp(0, -x))


def float64(tree):
    """Return the tree with its leaves as float64 NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def standard_error(values) -> np.ndarray:
    """Return the standard error of the mean over the first axis."""
    values = np.asarray(values, np.float64)
    return values.std(axis=0, ddof=1) / np.sqrt(values.shape[0])


def assert_moments(samples, mean, covariance, *, slack=0.0):
    """Assert that mean and covariance of [n, *d] are a Gaussian's within 4.5 standard errors plus `slack`."""
    flat = samples.reshape(len(samples), -1)
    variance = np.diag(covariance)
    mean_error = 4.5 * np.sqrt(variance / len(flat)) + slack
    np.testing.assert_array_less(np.abs(flat.mean(0) - mean), mean_error)
    products = np.sqrt((np.outer(variance, variance) + covariance**2) / len(flat))
    found = np.atleast_2d(np.cov(flat.T))
    np.testing.assert_array_less(np.abs(found - covariance), 4.5 * products + slack)
