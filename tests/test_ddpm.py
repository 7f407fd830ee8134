"""The chain of Ho et al. 2020, transcribed from the paper, against this package in float64.

The transcription is NumPy, knows β, α and ᾱ only and shares no code with what it tests. Its latents count
from 1 to T; x_t is this package's at time (t − 1)/(T − 1), so that the terms L_1…L_{T−1} are its T − 1 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import posterior
from vdm_jax.elbo import prior
from vdm_jax.gaussian import kl
from vdm_jax.parameterizations import PARAMETERIZATIONS, exact_weight, regression_target, to_x0
from vdm_jax.schedules import from_betas, interval

T = 1000
BETA = np.linspace(1e-4, 0.02, T)
ALPHA = 1 - BETA
BAR = np.cumprod(ALPHA)  # ᾱ_t
BAR_BEFORE = np.append(1.0, BAR[:-1])  # ᾱ_{t−1}, with ᾱ_0 = 1
BETA_TILDE = (1 - BAR_BEFORE) / (1 - BAR) * BETA  # eq. (7)
COEF_X0 = np.sqrt(BAR_BEFORE) * BETA / (1 - BAR)  # eq. (7), posterior_mean_coef1
COEF_XT = np.sqrt(ALPHA) * (1 - BAR_BEFORE) / (1 - BAR)  # posterior_mean_coef2

DIM = 4
RNG = np.random.default_rng(0)
X0 = RNG.uniform(-1, 1, DIM)
EPS = RNG.normal(size=(T, DIM))
XT = np.sqrt(BAR)[:, None] * X0 + np.sqrt(1 - BAR)[:, None] * EPS  # eq. (4)
MATRIX, BIAS = 0.3 * RNG.normal(size=(DIM, DIM)), 0.1 * RNG.normal(size=DIM)
OUTPUT = XT @ MATRIX.T + BIAS  # a fixed linear network, the same whatever its output means


def column(values):
    return values[:, None]


def ddpm_mean(output: str) -> np.ndarray:
    """μ_θ(x_t, t) of the three outputs that the paper compares, [T, d]."""
    if output == "mean":
        return OUTPUT
    if output == "x0":
        return column(COEF_X0) * OUTPUT + column(COEF_XT) * XT
    noise = column(BETA / np.sqrt(1 - BAR)) * OUTPUT
    return (XT - noise) / column(np.sqrt(ALPHA))  # eq. (11)


def ddpm_x0(output: str) -> np.ndarray:
    """x̂_0 that the output stands for, [T, d]."""
    if output == "mean":
        return (OUTPUT - column(COEF_XT) * XT) / column(COEF_X0)
    if output == "x0":
        return OUTPUT
    return column(np.sqrt(1 / BAR)) * XT - column(np.sqrt(1 / BAR - 1)) * OUTPUT


def ddpm_kl(mean1, variance1, mean2, variance2) -> np.ndarray:
    """KL of two Gaussians as the paper's code has it, summed over the dimensions."""
    log1, log2 = np.log(variance1), np.log(variance2)
    terms = -1 + log2 - log1 + np.exp(log1 - log2) + (mean1 - mean2) ** 2 * np.exp(-log2)
    return 0.5 * np.sum(terms, axis=-1)


def ddpm_terms(output: str) -> np.ndarray:
    """L_{t−1} for t = 2…T, eq. (5), with the variance β̃_t."""
    target = column(COEF_X0) * X0 + column(COEF_XT) * XT
    variance = column(BETA_TILDE[1:])
    return ddpm_kl(target[1:], variance, ddpm_mean(output)[1:], variance)


def chain():
    """This package's interval of every step t = 2…T."""
    times = jnp.arange(T) / (T - 1)
    return interval(from_betas(betas=BETA), {}, times[:-1], times[1:])


def over_steps(function):
    """Map a function of (step, x_t, ε, network output) over t = 2…T."""
    return jax.jit(jax.vmap(function))(chain(), *(jnp.asarray(x[1:]) for x in (XT, EPS, OUTPUT)))


@pytest.mark.parametrize("output", ["mean", "x0", "eps"])
def test_terms_predictions_and_means(output):
    row = PARAMETERIZATIONS[output]()

    def of_step(step, xt, eps, F):
        x0, mix = jnp.asarray(X0), row(step)
        x0_hat = to_x0(F, xt, mix)
        p = posterior(xt, x0_hat, step)
        square = jnp.sum(jnp.square(F - regression_target(x0, eps, row.target(step))))
        return x0_hat, p.mean, kl(posterior(xt, x0, step), p), exact_weight(step, mix) * square

    with jax.enable_x64(True):
        x0_hat, mean, divergence, loss = over_steps(of_step)
        np.testing.assert_allclose(x0_hat, ddpm_x0(output)[1:], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(mean, ddpm_mean(output)[1:], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(divergence, ddpm_terms(output), rtol=1e-8)
        np.testing.assert_allclose(loss, ddpm_terms(output), rtol=1e-8)


def test_posterior_of_every_step():
    with jax.enable_x64(True):
        q = over_steps(lambda step, xt, eps, F: posterior(xt, jnp.asarray(X0), step))
        target = column(COEF_X0) * X0 + column(COEF_XT) * XT
        np.testing.assert_allclose(q.mean, target[1:], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(jnp.exp(q.log_var), BETA_TILDE[1:], rtol=1e-8)


def test_prior_term():
    """L_T = KL(q(x_T | x_0) ‖ N(0, I))."""
    expected = ddpm_kl(np.sqrt(BAR[-1]) * X0, np.full(DIM, 1 - BAR[-1]), 0.0, np.ones(DIM))
    with jax.enable_x64(True):
        gamma_1 = from_betas(betas=BETA).gamma({}, 1.0)
        np.testing.assert_allclose(prior(jnp.asarray(X0), gamma_1), expected, rtol=1e-8)


def test_the_simple_loss_drops_the_weight():
    """Eq. (12): the weight of ‖ε − ε_θ‖² in L_{t−1} is β_t² / (2 σ_t² α_t (1 − ᾱ_t)), with σ_t² = β̃_t."""
    weight = BETA**2 / (2 * BETA_TILDE * ALPHA * (1 - BAR) + (BETA_TILDE == 0))
    with jax.enable_x64(True):
        row = PARAMETERIZATIONS["eps"]()
        found = over_steps(lambda step, xt, eps, F: exact_weight(step, row(step)))
        np.testing.assert_allclose(found, weight[1:], rtol=1e-8)
