"""Latent-variable models of linear-Gaussian data, whose likelihood and posterior are known."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.stats
from oracles import jit
from small_hierarchy import fixed_network

from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import Statistics, vae
from vdm_jax.models.chain import gaussian
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.latents import LatentDraw, Level, level_terms, log_ratio
from vdm_jax.nets import Network
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step

D, K, NOISE = 4, 2, 0.3
W = np.array([[1.0, 0.5], [0.4, -0.9], [-0.7, 0.2], [0.2, 0.1]])
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])  # then the posterior is diagonal
B = np.array([0.3, -0.2, 0.1, 0.5])
POSTERIOR_VARIANCE = 1 / (1 + np.sum(W**2, 0) / NOISE)
GAIN = POSTERIOR_VARIANCE[:, None] * W.T / NOISE
DATA = B + np.random.default_rng(1).standard_normal((5, K)) @ W.T
DATA = DATA + math.sqrt(NOISE) * np.random.default_rng(2).standard_normal(DATA.shape)
LOG_LIKELIHOOD = scipy.stats.multivariate_normal(B, W @ W.T + NOISE * np.eye(D)).logpdf(DATA)


def linear_vae(shift=0.0, stretch=1.0, **settings):
    """Return a VAE whose q is the posterior moved by `shift`, its variance times `stretch`; also its chain."""

    def encode(x):
        mean = (x - B[None]) @ jnp.asarray(GAIN.T, x.dtype) + shift
        log_var = jnp.asarray(np.log(stretch * POSTERIOR_VARIANCE), x.dtype)
        return jnp.stack([mean, jnp.broadcast_to(log_var, mean.shape)], 1)

    def decode(z):
        mean = z @ jnp.asarray(W.T, z.dtype) + B[None]
        return jnp.stack([mean, jnp.full_like(mean, math.log(NOISE))], -1)

    statistics = Statistics((D,), None)
    parts = {
        "encoder": fixed_network(encode),
        "decoder": fixed_network(decode),
        "likelihood": "gaussian",
    }
    chain = gaussian(
        statistics=statistics,
        latents=[K],
        encoder=fixed_network(encode),
        decoder=fixed_network(decode),
    )
    return vae(statistics, latent=K, **parts, **settings), chain


def test_exact_posterior_gives_the_likelihood_at_every_draw():
    with jax.enable_x64(True):
        model, _ = linear_vae()
        params = model.init(jax.random.key(0))
        for seed in range(3):
            bound = model.importance(params, jax.random.key(seed), jnp.asarray(DATA), 1)
            np.testing.assert_allclose(-bound, LOG_LIKELIHOOD, rtol=1e-10)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.4, 1.0), (-0.2, 2.5), (0.1, 0.3)])
def test_the_gap_is_the_divergence_from_the_posterior(shift, stretch):
    """Eq. (1) holds to 1e-9; the expectation is a quadrature that is exact for the quadratic in z."""
    with jax.enable_x64(True):
        model, chain = linear_vae(shift, stretch)
        params, x = model.init(jax.random.key(0)), jnp.asarray(DATA)
        likelihood = LIKELIHOODS["gaussian"]()
        nodes, weights = np.polynomial.hermite_e.hermegauss(3)
        weights = weights / weights.sum()
        q = chain.up(params, x, 1)
        by_terms, by_ratio = np.zeros(len(DATA)), np.zeros(len(DATA))
        for i, j in itertools.product(range(3), repeat=2):
            eps = jnp.asarray([nodes[i], nodes[j]])
            z = q.mean + jnp.exp(0.5 * q.log_var) * eps[None, :]
            normal = Gaussian(jnp.zeros_like(z), jnp.zeros(len(DATA)))
            level = Level(z, q, normal, q)
            draw = LatentDraw([level], chain.down(params, z, 1))
            nats = -jax.vmap(likelihood.log_prob)(x, *draw.observation)
            weight = weights[i] * weights[j]
            by_terms += weight * np.asarray(nats + level_terms(level))
            by_ratio += weight * np.asarray(nats + log_ratio(draw))
        divergence = 0.5 * (
            K * (stretch - 1 - math.log(stretch)) + shift**2 * np.sum(1 / POSTERIOR_VARIANCE)
        )
        for bound in (by_terms, by_ratio):
            np.testing.assert_allclose(LOG_LIKELIHOOD + bound, divergence, rtol=1e-9, atol=1e-9)
        # the estimates of the model average to it
        keys = jax.random.split(jax.random.key(1), 4000)
        estimates = jit(jax.vmap(lambda key: model.elbo(params, key, x).total))(keys)
        difference = np.asarray(estimates) - by_terms
        assert np.all(abs(difference.mean(0)) < 4.5 * oracles.standard_error(difference) + 1e-9)


def test_importance_weights_close_the_gap():
    """K = 1 is the ELBO, larger K is tighter on average, and many weights reach log p(x)."""
    model, _ = linear_vae(shift=0.4, stretch=1.5)
    params, x, n = model.init(jax.random.key(0)), jnp.asarray(DATA, jnp.float32), 2000
    keys = jax.random.split(jax.random.key(0), n)
    bounds = {
        k: np.asarray(jit(jax.vmap(lambda key, k=k: model.importance(params, key, x, k)))(keys))
        for k in (1, 2, 5, 50)
    }
    elbo = np.asarray(jit(jax.vmap(lambda key: model.elbo(params, key, x).total))(keys))
    difference = bounds[1] - elbo
    assert np.all(abs(difference.mean(0)) < 4.5 * oracles.standard_error(difference))
    for few, more in itertools.pairwise(bounds):
        gain = bounds[few] - bounds[more]
        assert np.all(gain.mean(0) > -4.5 * oracles.standard_error(gain))
        assert gain.mean() > 0
    gap = bounds[50] + LOG_LIKELIHOOD
    assert np.all(gap.mean(0) > -4.5 * oracles.standard_error(gap)) and gap.mean() < 0.03
    assert (elbo + LOG_LIKELIHOOD).mean() > 0.3


def test_training_a_linear_vae_reaches_probabilistic_pca():
    """The bound reaches the maximum likelihood of Tipping & Bishop within 1 %."""
    rng = np.random.default_rng(3)
    x = B + rng.standard_normal((400, K)) @ W.T + math.sqrt(NOISE) * rng.standard_normal((400, D))
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    noise = spectrum[K:].mean()
    nats = 0.5 * (
        D * math.log(2 * math.pi) + np.log(spectrum[:K]).sum() + (D - K) * math.log(noise) + D
    )

    def encoder_init(key, x, gamma_t=None, extra=None):
        return {"w": 0.1 * jax.random.normal(key, (D, K)), "b": jnp.zeros(K), "s": jnp.zeros(K)}

    def encoder(p, x, gamma_t=None, extra=None, keys=None):
        mean = x @ p["w"] + p["b"][None, :]
        return jnp.stack([mean, jnp.broadcast_to(p["s"], mean.shape)], 1)

    def decoder_init(key, z, gamma_t=None, extra=None):
        return {"w": 0.1 * jax.random.normal(key, (K, D)), "b": jnp.zeros(D), "s": jnp.zeros(())}

    def decoder(p, z, gamma_t=None, extra=None, keys=None):
        mean = z @ p["w"] + p["b"][None, :]
        return jnp.stack([mean, jnp.broadcast_to(p["s"], mean.shape)], -1)

    model = vae(
        Statistics((D,), None),
        latent=K,
        encoder=Network(encoder_init, encoder),
        decoder=Network(decoder_init, decoder),
        likelihood="gaussian",
        draws=4,
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    state = init_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1))
    step, batch = make_step(model.loss, optimizer, ema_decay=0.9), jnp.asarray(x, jnp.float32)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=1500))(state)
    elbo = jit(lambda p, k: model.elbo(p, k, batch, draws=200).total.mean())
    bound = float(elbo(state.ema_params, jax.random.key(2)))
    assert nats - 0.01 < bound < nats + 0.01 * abs(nats)


def test_samples_follow_the_model():
    """Draws follow x ~ N(B, W Wᵀ + s² I); their expectations are W z + B."""
    model, _ = linear_vae()
    drawn = np.asarray(
        jit(partial(model.sample, {"encoder": {}, "decoder": {}}, n=20_000))(jax.random.key(0))
    )
    oracles.assert_moments(drawn, B, W @ W.T + NOISE * np.eye(D))
    means = np.asarray(
        jit(partial(model.sample, {"encoder": {}, "decoder": {}}, n=20_000, draw=False))(
            jax.random.key(0)
        )
    )
    oracles.assert_moments(means, B, W @ W.T)


def test_a_custom_chain_makes_a_model():
    """`hierarchy` accepts any `Chain`."""
    _, chain = linear_vae()
    statistics, likelihood = Statistics((D,), None), LIKELIHOODS["gaussian"]()
    model = hierarchy(statistics, chain, likelihood, draws=1, prior_weight=1.0, components="mine")
    bound = model.importance(
        {"encoder": {}, "decoder": {}}, jax.random.key(0), jnp.asarray(DATA), 1
    )
    np.testing.assert_allclose(-bound, LOG_LIKELIHOOD, rtol=1e-4)
