"""The chain of Ho et al. 2020, transcribed from the paper, against this package in float64.

The transcription is NumPy, knows β, α and ᾱ only and shares no code with what it tests. Its latents count
from 1 to T; x_t is this package's at time (t − 1)/(T − 1), so that the terms L_1…L_{T−1} are its T − 1 steps.
"""

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import weekly_except

from vdm_jax.diffusion import data_interval, marginal, posterior
from vdm_jax.elbo import NoisySample, matching, negative_elbo, prior, training_interval
from vdm_jax.gaussian import kl
from vdm_jax.likelihoods import discretized_gaussian, observation
from vdm_jax.models import Statistics, mhvae, vdm
from vdm_jax.parameterizations import PARAMETERIZATIONS, exact_weight, regression_target, to_x0
from vdm_jax.samplers import SAMPLERS, generate
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
    """Return μ_θ(x_t, t) of the three outputs that the paper compares, [T, d]."""
    if output == "mean":
        return OUTPUT
    if output == "x0":
        return column(COEF_X0) * OUTPUT + column(COEF_XT) * XT
    noise = column(BETA / np.sqrt(1 - BAR)) * OUTPUT
    return (XT - noise) / column(np.sqrt(ALPHA))  # eq. (11)


def ddpm_x0(output: str) -> np.ndarray:
    """Return the x̂_0 of an output, [T, d]."""
    if output == "mean":
        return (OUTPUT - column(COEF_XT) * XT) / column(COEF_X0)
    if output == "x0":
        return OUTPUT
    return column(np.sqrt(1 / BAR)) * XT - column(np.sqrt(1 / BAR - 1)) * OUTPUT


def ddpm_kl(mean1, variance1, mean2, variance2) -> np.ndarray:
    """Return the KL of two Gaussians as in the paper's code, summed over the dimensions."""
    log1, log2 = np.log(variance1), np.log(variance2)
    terms = -1 + log2 - log1 + np.exp(log1 - log2) + (mean1 - mean2) ** 2 * np.exp(-log2)
    return 0.5 * np.sum(terms, axis=-1)


def ddpm_terms(output: str) -> np.ndarray:
    """Return L_{t−1} for t = 2…T, eq. (5), with the variance β̃_t."""
    target = column(COEF_X0) * X0 + column(COEF_XT) * XT
    variance = column(BETA_TILDE[1:])
    return ddpm_kl(target[1:], variance, ddpm_mean(output)[1:], variance)


def chain():
    """Return this package's interval of every step t = 2…T."""
    times = jnp.arange(T) / (T - 1)
    return interval(from_betas(betas=BETA), {}, times[:-1], times[1:])


def over_steps(function):
    """Map a function of (step, x_t, ε, network output) over t = 2…T."""
    return jax.jit(jax.vmap(function))(chain(), *(jnp.asarray(x[1:]) for x in (XT, EPS, OUTPUT)))


@pytest.mark.parametrize("output", ["mean", "x0", "eps"])
def test_terms_predictions_and_means(output):
    row = PARAMETERIZATIONS[output]()

    def of_step(step, xt, eps, F):
        x0, preconditioning = jnp.asarray(X0), row(step)
        x0_hat = to_x0(F, xt, preconditioning)
        p = posterior(xt, x0_hat, step)
        square = jnp.sum(jnp.square(F - regression_target(x0, eps, row.target(step))))
        return (
            x0_hat,
            p.mean,
            kl(posterior(xt, x0, step), p),
            exact_weight(step, preconditioning) * square,
        )

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
    """The prior term equals L_T = KL(q(x_T | x_0) ‖ N(0, I))."""
    expected = ddpm_kl(np.sqrt(BAR[-1]) * X0, np.full(DIM, 1 - BAR[-1]), 0.0, np.ones(DIM))
    with jax.enable_x64(True):
        gamma_1 = from_betas(betas=BETA).gamma({}, 1.0)
        np.testing.assert_allclose(prior(jnp.asarray(X0), gamma_1), expected, rtol=1e-8)


def test_the_simple_loss_drops_the_weight():
    """Eq. (12): the weight of ‖ε − ε_θ‖² in L_{t−1} is β_t² / (2 σ_t² α_t (1 − ᾱ_t)), with σ_t² = β̃_t."""
    weight = BETA**2 / (2 * BETA_TILDE * ALPHA * (1 - BAR) + (BETA_TILDE == 0))
    with jax.enable_x64(True):
        row = PARAMETERIZATIONS["eps"]()
        weights = over_steps(lambda step, xt, eps, F: exact_weight(step, row(step)))
        np.testing.assert_allclose(weights, weight[1:], rtol=1e-8)


# --- L_0: the decoder --------------------------------------------------------------------------------


def ddpm_decoder(k, mean, variance, levels):
    """Return −log p(x_0 | x_1) of eq. (13), as in the paper's code, on this package's levels."""
    erf = np.vectorize(math.erf)
    x, half = (2 * k + 1) / levels - 1, 1 / levels

    def cdf(z):
        return 0.5 * (1 + erf(z / np.sqrt(2 * variance)))

    upper = np.where(k == levels - 1, 1.0, cdf(x - mean + half))
    lower = np.where(k == 0, 0.0, cdf(x - mean - half))
    return -np.sum(np.log(upper - lower))


@pytest.mark.parametrize("package_variance", [False, True])
def test_decoder_with_ddpms_variance(package_variance):
    """DDPM takes β̃_2 since β̃_1 is 0; by default this package takes that of the least noisy latent, β_1."""
    k = np.asarray([0, 3, 128, 254, 255])
    mean = (2 * k + 1) / 256 - 1 + np.asarray([0.001, -0.004, 0.01, 0.002, -0.003])
    spec = {"levels": 256} | ({} if package_variance else {"variance": BETA_TILDE[1]})
    with jax.enable_x64(True):
        likelihood, x0_hat = discretized_gaussian(**spec), jnp.asarray(mean)
        gamma_0 = from_betas(betas=BETA).gamma({}, 0.0)
        nats = -likelihood.log_prob(k, *observation(likelihood, x0_hat, x0_hat, gamma_0))
    expected = ddpm_decoder(k, mean, BETA[0] if package_variance else BETA_TILDE[1], 256)
    np.testing.assert_allclose(nats, expected, rtol=1e-8)


def test_samples_of_the_decoder_have_its_variance():
    likelihood, n = discretized_gaussian(levels=2**14, variance=0.01), 4000
    draws = likelihood.sample(jax.random.key(0), jnp.zeros(n), jnp.zeros(()))
    assert abs(np.std(likelihood.encode(draws)) / 0.1 - 1) < 4 / math.sqrt(2 * n)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_a_decoder_without_a_variance_is_refused(variance):
    with pytest.raises(
        ValueError, match=f"variance: expected a finite number above 0, found {variance}"
    ):
        discretized_gaussian(variance=variance)


# --- zero terminal SNR -------------------------------------------------------------------------------


def rescaled(betas):
    """Shift and scale √ᾱ so that the last is 0, Algorithm 1 of Lin et al. 2023."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return 1 - bar / np.append(1.0, bar[:-1])


def linear_network(xt, gamma_t):
    del gamma_t
    return 0.3 * xt + 0.1


@pytest.mark.parametrize("output", ["x0", "v", "mean"])
@pytest.mark.parametrize("double", [True, False])
def test_terms_and_steps_of_a_chain_with_zero_terminal_snr(output, double):
    """DDPM's formulas in ᾱ hold with ᾱ_T = 0."""
    n = 20
    betas = rescaled(np.linspace(1e-3, 0.3, n))
    assert betas[-1] == 1
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    coef_x0 = np.sqrt(before) * betas / (1 - bar)
    coef_xt = np.sqrt(1 - betas) * (1 - before) / (1 - bar)
    variance = (1 - before) / (1 - bar) * betas
    x0, eps = RNG.uniform(-1, 1, DIM), RNG.normal(size=(n, DIM))
    xt = np.sqrt(bar)[:, None] * x0 + np.sqrt(1 - bar)[:, None] * eps
    F = 0.3 * xt + 0.1
    x0_hat = {
        "x0": F,
        "v": np.sqrt(bar)[:, None] * xt - np.sqrt(1 - bar)[:, None] * F,
        "mean": (F - coef_xt[:, None] * xt) / coef_x0[:, None],
    }[output]
    gap = coef_x0[:, None] * (x0 - x0_hat)
    expected = 0.5 * np.sum(gap[1:] ** 2, -1) / variance[1:]
    means = coef_x0[:, None] * x0_hat + coef_xt[:, None] * xt

    with jax.enable_x64(double):
        schedule, row = from_betas(betas=betas), PARAMETERIZATIONS[output]()
        dtype = jnp.result_type(float)

        def terms_of(i, eps):
            step, rate = training_interval(schedule, {}, i, n - 1)
            q = marginal(jnp.asarray(x0, dtype), step.gamma_t)
            xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
            preconditioning = row(step)
            output = linear_network(xt, step.gamma_t)
            error = preconditioning.out * (
                regression_target(jnp.asarray(x0, dtype), eps, row.target(step)) - output
            )
            noisy = NoisySample(jnp.asarray(x0, dtype), eps, xt, step, rate)
            p = posterior(xt, to_x0(output, xt, preconditioning), step)
            return matching(noisy, error) / (n - 1), p.mean, p.log_var

        results = jax.jit(jax.vmap(terms_of))(jnp.arange(n - 1), jnp.asarray(eps[1:], dtype))
        tolerance = {"rtol": 1e-8, "atol": 1e-10} if double else {"rtol": 2e-4, "atol": 1e-5}
        np.testing.assert_allclose(results[0], expected, **tolerance)
        np.testing.assert_allclose(results[1], means[1:], **tolerance)
        np.testing.assert_allclose(jnp.exp(results[2]), variance[1:], **tolerance)
        assert prior(jnp.asarray(x0, dtype), schedule.gamma({}, 1.0)) < 1e-20


@pytest.mark.parametrize(  # of fewer steps `mean` needs an interval that a function of γ_t does not know
    ("output", "steps"), [("x0", 19), ("v", 19), ("mean", 19), ("x0", 5), ("v", 5)]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.slow
def test_samples_of_a_chain_with_zero_terminal_snr(output, sampler, steps):
    """A network that predicts its only example samples that example in every parameterization."""
    schedule, row = (
        from_betas(betas=rescaled(np.linspace(1e-3, 0.3, 20))),
        PARAMETERIZATIONS[output](),
    )
    x0 = jnp.asarray([0.5, -0.25, 0.0])

    def denoise(xt, gamma_t):
        ends = schedule.gamma({}, jnp.arange(20) / 19)
        i = jnp.argmin(jnp.abs(ends - gamma_t))
        inside = interval(schedule, {}, jnp.maximum(i - 1, 0) / 19, jnp.maximum(i, 1) / 19)
        step = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), data_interval(gamma_t), inside)
        step = step if output == "mean" else step._replace(gamma_t=gamma_t)
        preconditioning = row(step)
        return (x0 - preconditioning.skip * xt) / preconditioning.out

    sample = jax.jit(
        lambda: generate(
            denoise, jax.random.key(0), (3,), schedule=schedule, parameterization=output,
            sampler=sampler, steps=steps,
        )
    )()  # fmt: skip
    np.testing.assert_allclose(sample, x0, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "weighting"),
    weekly_except(
        [("x0", "elbo"), ("v", "simple"), ("mean", "min_snr"), ("x0", "sigmoid"), ("v", "p2")],
        product(("x0", "v", "mean"), ("elbo", "simple", "min_snr", "sigmoid", "p2")),
    ),
)
@pytest.mark.slow
def test_models_train_on_a_chain_with_zero_terminal_snr(output, weighting):
    model = vdm(
        Statistics((3,), 8), network={"name": "mlp", "width": 4, "depth": 1}, weighting=weighting,
        parameterization=output, schedule={"name": "from_betas", "betas": rescaled(BETA[::50])},
        timesteps=19,
    )  # fmt: skip
    x = jnp.asarray(RNG.integers(0, 8, (19, 3)), jnp.uint8)  # each step is drawn once
    params = model.init(jax.random.key(0))
    loss_and_gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(
        params, jax.random.key(1), x
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loss_and_gradient))


@pytest.mark.parametrize("output", ["eps", "score"])
def test_outputs_that_divide_by_the_signal_are_refused(output):
    spec = {"name": "from_betas", "betas": rescaled(BETA[::50])}
    statistics, key = Statistics((3,), None), jax.random.key(0)
    settings = {"schedule": spec, "parameterization": output}
    doors = [
        lambda: vdm(statistics, likelihood="gaussian", timesteps=19, **settings),
        lambda: vdm(statistics, likelihood="gaussian", **settings),
        lambda: generate(linear_network, key, (3,), steps=4, **settings),
        lambda: negative_elbo(linear_network, jnp.ones(3), key, timesteps=19, **settings),
        lambda: mhvae(
            statistics,
            likelihood="gaussian",
            chain={"name": "diffusion", "timesteps": 3} | settings,
        ),
    ]
    for door in doors:
        with pytest.raises(
            ValueError, match=r"parameterization: .*SNR = 0.*use 'x0' or 'v', or make"
        ):
            door()
