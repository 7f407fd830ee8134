"""Latent-variable models: exact on linear-Gaussian data, VAE with one latent, VDM with a fixed encoder."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.stats
from oracles import jit

from vdm_jax.elbo import NoisySample, matching
from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import CHAINS, Statistics, mhvae, vae, vdm
from vdm_jax.models.chain import diffusion, gaussian
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.keys import example_keys, fold_each
from vdm_jax.models.latents import LatentDraw, Level, ascend, level_terms, log_ratio
from vdm_jax.nets import Network
from vdm_jax.schedules import linear
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import as_batch

SHAPE, LEVELS = (2, 3), 5
STATISTICS = Statistics(SHAPE, LEVELS, 0.4, np.zeros((*SHAPE, LEVELS), np.float32))
TINY = {"name": "mlp", "width": 8, "depth": 1}
PARTS = {"encoder": TINY, "decoder": TINY}
X = np.random.default_rng(0).integers(0, LEVELS, (6, *SHAPE)).astype(np.uint8)


def moved(params, scale=0.3, seed=5):
    """Parameters away from where they start."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    leaves = [leaf + scale * rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, leaves)


def learned(latents, statistics=STATISTICS, **settings):
    spec = {"name": "gaussian", "latents": latents, "level": TINY, **PARTS}
    return mhvae(statistics, chain=spec, **settings)


# --- linear-Gaussian: everything is known -------------------------------------------------------------

D, K, NOISE = 4, 2, 0.3
W = np.array([[1.0, 0.5], [0.4, -0.9], [-0.7, 0.2], [0.2, 0.1]])
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])  # then the posterior is diagonal
B = np.array([0.3, -0.2, 0.1, 0.5])
POSTERIOR_VARIANCE = 1 / (1 + np.sum(W**2, 0) / NOISE)
GAIN = POSTERIOR_VARIANCE[:, None] * W.T / NOISE
DATA = B + np.random.default_rng(1).standard_normal((5, K)) @ W.T
DATA = DATA + math.sqrt(NOISE) * np.random.default_rng(2).standard_normal(DATA.shape)
LOG_LIKELIHOOD = scipy.stats.multivariate_normal(B, W @ W.T + NOISE * np.eye(D)).logpdf(DATA)


def plain(function):
    """A network without parameters."""
    return Network(
        lambda key, x, gamma_t=None, extra=None: {},
        lambda params, x, gamma_t=None, extra=None, keys=None: function(x),
    )


def linear_vae(shift=0.0, stretch=1.0, **settings):
    """q is the posterior, moved by `shift` and with its variance times `stretch`."""

    def encode(x):
        mean = (x - B[None]) @ jnp.asarray(GAIN.T, x.dtype) + shift
        log_var = jnp.asarray(np.log(stretch * POSTERIOR_VARIANCE), x.dtype)
        return jnp.stack([mean, jnp.broadcast_to(log_var, mean.shape)], 1)

    def decode(z):
        mean = z @ jnp.asarray(W.T, z.dtype) + B[None]
        return jnp.stack([mean, jnp.full_like(mean, math.log(NOISE))], -1)

    statistics = Statistics((D,), None)
    parts = {"encoder": plain(encode), "decoder": plain(decode), "likelihood": "gaussian"}
    chain = gaussian(
        statistics=statistics, latents=[K], encoder=plain(encode), decoder=plain(decode)
    )
    return vae(statistics, latent=K, **parts, **settings), chain


def test_with_the_exact_posterior_every_draw_gives_the_likelihood():
    with jax.enable_x64(True):
        model, _ = linear_vae()
        params = model.init(jax.random.key(0))
        for seed in range(3):
            found = model.importance(params, jax.random.key(seed), jnp.asarray(DATA), 1)
            np.testing.assert_allclose(-found, LOG_LIKELIHOOD, rtol=1e-10)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.4, 1.0), (-0.2, 2.5), (0.1, 0.3)])
def test_the_gap_is_the_divergence_from_the_posterior(shift, stretch):
    """Eq. (1), the expectation by a quadrature that is exact for the quadratic in z, to 1e-9."""
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
            one = LatentDraw([level], chain.down(params, z, 1))
            nats = -jax.vmap(likelihood.log_prob)(x, *one.observation)
            weight = weights[i] * weights[j]
            by_terms += weight * np.asarray(nats + level_terms(level))
            by_ratio += weight * np.asarray(nats + log_ratio(one))
        divergence = 0.5 * (
            K * (stretch - 1 - math.log(stretch)) + shift**2 * np.sum(1 / POSTERIOR_VARIANCE)
        )
        for bound in (by_terms, by_ratio):
            np.testing.assert_allclose(LOG_LIKELIHOOD + bound, divergence, rtol=1e-9, atol=1e-9)
        # the model's own estimates average to it
        keys = jax.random.split(jax.random.key(1), 4000)
        estimates = jit(jax.vmap(lambda key: model.elbo(params, key, x).total))(keys)
        off = np.asarray(estimates) - by_terms
        assert np.all(abs(off.mean(0)) < 4.5 * oracles.standard_error(off) + 1e-9)


def test_importance_weights_close_the_gap():
    """K = 1 is the ELBO, more are tighter on average, many reach log p(x)."""
    model, _ = linear_vae(shift=0.4, stretch=1.5)
    params, x, n = model.init(jax.random.key(0)), jnp.asarray(DATA, jnp.float32), 2000
    keys = jax.random.split(jax.random.key(0), n)
    bounds = {
        k: np.asarray(jit(jax.vmap(lambda key, k=k: model.importance(params, key, x, k)))(keys))
        for k in (1, 2, 5, 50)
    }
    elbo = np.asarray(jit(jax.vmap(lambda key: model.elbo(params, key, x).total))(keys))
    off = bounds[1] - elbo
    assert np.all(abs(off.mean(0)) < 4.5 * oracles.standard_error(off))
    for few, more in itertools.pairwise(bounds):
        gain = bounds[few] - bounds[more]
        assert np.all(gain.mean(0) > -4.5 * oracles.standard_error(gain))
        assert gain.mean() > 0
    gap = bounds[50] + LOG_LIKELIHOOD
    assert np.all(gap.mean(0) > -4.5 * oracles.standard_error(gap)) and gap.mean() < 0.03
    assert (elbo + LOG_LIKELIHOOD).mean() > 0.3


def test_training_a_linear_vae_reaches_probabilistic_pca():
    """The maximum likelihood of Tipping & Bishop, within 1 %."""
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
    found = float(elbo(state.ema_params, jax.random.key(2)))
    assert nats - 0.01 < found < nats + 0.01 * abs(nats)


# --- chains ------------------------------------------------------------------------------------------


def test_one_latent_is_the_vae_of_the_formula():
    """Eq. (2), transcribed in float64 NumPy; and the hierarchy of one latent is the same numbers."""
    key = jax.random.key(4)
    model, other = vae(STATISTICS, latent=3, **PARTS), learned([3])
    params = moved(model.init(jax.random.key(0)))
    found = model.elbo(params, key, X)
    chain = gaussian(statistics=STATISTICS, latents=[3], **PARTS)
    x0 = jnp.asarray(2 * (X + 0.5) / LEVELS - 1, jnp.float32)
    q = oracles.float64(chain.up(params, x0, 1))
    divergence = 0.5 * np.sum(np.exp(q.log_var) + q.mean**2 - 1 - q.log_var, -1)
    np.testing.assert_allclose(found.prior, divergence, rtol=1e-5)
    (draw_keys,) = example_keys(key, jnp.arange(len(X)), 1)
    z = jax.vmap(Gaussian.sample)(chain.up(params, x0, 1), fold_each(fold_each(draw_keys, 0), 1))
    observation = chain.down(params, z, 1)
    nats = -jax.vmap(LIKELIHOODS["softmax"](levels=LEVELS).log_prob)(X, *observation)
    np.testing.assert_allclose(found.reconstruction, nats, rtol=1e-5)
    np.testing.assert_array_equal(found.matching, 0)
    assert jax.tree.structure(other.init(jax.random.key(0))) == jax.tree.structure(params)
    for a, b in zip(other.elbo(params, key, X), found, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(other.loss(params, key, X), model.loss(params, key, X), strict=True):
        assert a == b


@pytest.mark.slow
def test_levels_above_the_first_start_without_effect():
    """Every draw has the ratio of the VAE below, whatever the dimensions above."""
    key, one = jax.random.key(4), vae(STATISTICS, latent=5, **PARTS)
    params = one.init(jax.random.key(0))
    expected = one.importance(params, key, X, 3)
    for latents in ([5, 5], [5, 2, 7], [5, 8, 1, 3]):
        model = learned(latents)
        start = model.init(jax.random.key(0)) | params
        np.testing.assert_allclose(model.importance(start, key, X, 3), expected, rtol=2e-5)


@pytest.mark.parametrize("chain", ["gaussian", "diffusion"])
def test_terms_and_plain_ratio_agree_on_average(chain):
    specs = {
        "gaussian": {"latents": [3, 2, 4], "level": TINY, **PARTS},
        "diffusion": {"timesteps": 3, "network": TINY, "schedule": MILD, "base": "input"},
    }
    assert set(specs) == set(CHAINS)
    model = mhvae(STATISTICS, chain={"name": chain} | specs[chain], likelihood="softmax")
    params = moved(model.init(jax.random.key(0)), 0.1)
    keys = jax.random.split(jax.random.key(1), 4000)
    x = jnp.asarray(X[:3])
    elbos = jit(jax.vmap(lambda key: model.elbo(params, key, x)))(keys)
    ratios = jit(jax.vmap(lambda key: model.importance(params, key, x, 1)))(keys)
    off = np.asarray(elbos.total - ratios, np.float64)
    assert np.all(abs(off.mean(0)) < 4.5 * oracles.standard_error(off))
    assert off.std() > 0.01  # they are two estimators
    loss, metrics = jit(model.loss)(params, jax.random.key(1), x)
    levels = [float(value) for name, value in metrics.items() if name.startswith("level_")]
    assert len(levels) == {"gaussian": 3, "diffusion": 4}[chain]
    np.testing.assert_allclose(loss, metrics["reconstruction"] + sum(levels), rtol=1e-5)


# --- the VDM is the hierarchy over its fixed encoder ---------------------------------------------------

MILD = {"name": "linear", "gamma_min": -4.0, "gamma_max": 5.0}
OUTPUT_SCALES = [
    {"parameterization": "eps", "base": "input", "output_scale": "none"},
    {"parameterization": "v", "base": "levels", "output_scale": "unit_variance"},
    {"parameterization": "mean", "base": "zero", "output_scale": "unit_variance"},
]


@pytest.mark.parametrize("likelihood", ["softmax", "discretized_gaussian"])
@pytest.mark.parametrize("settings", OUTPUT_SCALES, ids=lambda s: s["parameterization"])
@pytest.mark.slow
def test_the_hierarchy_over_the_fixed_encoder_is_the_vdm_term_by_term(settings, likelihood):
    T, key = 4, jax.random.key(6)
    parts = {"network": TINY, "schedule": MILD, **settings}
    whole = vdm(STATISTICS, timesteps=T, likelihood=likelihood, **parts)
    spec = {"name": "diffusion", "timesteps": T, **parts}
    model = mhvae(STATISTICS, chain=spec, likelihood=likelihood)
    params = moved(whole.init(jax.random.key(0)), 0.1)
    assert jax.tree.structure(params) == jax.tree.structure(model.init(jax.random.key(0)))

    built = LIKELIHOODS[likelihood](levels=LEVELS)
    chain = diffusion(statistics=STATISTICS, likelihood=built, timesteps=T, **parts)
    net = denoiser(STATISTICS, **{k: parts[k] for k in parts if k != "schedule"})
    x0 = built.encode(X)
    (draw_keys,) = example_keys(key, jnp.arange(len(X)), 1)
    one = ascend(chain, params, fold_each(draw_keys, 0), x0)
    assert len(one.levels) == T + 1
    schedule = linear(gamma_min=-4.0, gamma_max=5.0)
    for t, level in enumerate(one.levels[:-1], start=1):
        # what models/vdm.py computes for the step that ends in the latent above
        step = oracles.interval(schedule, None, (t - 1) / T, t / T)
        above = one.levels[t].z
        eps = (above - jnp.sqrt(jax.nn.sigmoid(-step.gamma_t)) * x0) / jnp.sqrt(
            jax.nn.sigmoid(step.gamma_t)
        )
        many = jax.tree.map(lambda leaf: jnp.full(len(X), leaf), step)
        at = NoisySample(x0, eps, above, many, jnp.expm1(many.delta))
        expected = jax.vmap(matching)(at, net.error(params["network"], at))
        np.testing.assert_allclose(level_terms(level), expected, rtol=2e-4, err_msg=str(t))
    found, expected = model.elbo(params, key, X), whole.elbo(params, key, X)
    np.testing.assert_allclose(found.prior, expected.prior, rtol=1e-5)
    np.testing.assert_allclose(level_terms(one.levels[-1]), expected.prior, rtol=1e-5)

    # and the models' own estimates, all steps of each, have the same mean
    keys, x = jax.random.split(jax.random.key(1), 1500), jnp.asarray(X[:3])
    a = jit(jax.vmap(lambda key: model.elbo(params, key, x)))(keys)
    b = jit(jax.vmap(lambda key: whole.elbo(params, key, x, draws=T)))(keys)
    for name in ("reconstruction", "matching"):
        off = np.asarray(getattr(a, name), np.float64) - np.asarray(getattr(b, name), np.float64)
        slack = 4.5 * oracles.standard_error(off) + 1e-4 * np.mean(getattr(b, name), 0)
        assert np.all(abs(off.mean(0)) < slack), name


@pytest.mark.slow
def test_float32_data_under_double_precision():
    """The schedule's numbers are doubles there, whatever the data are."""
    chain = {"name": "diffusion", "timesteps": 3, "network": TINY, "schedule": MILD}
    with jax.enable_x64(True):
        model = mhvae(Statistics((3,), None), chain=chain, likelihood="gaussian")
        params, x = model.init(jax.random.key(0)), jnp.ones((2, 3), jnp.float32)
        assert model.elbo(params, jax.random.key(1), x, draws=2).total.shape == (2,)
        assert model.importance is not None
        assert model.importance(params, jax.random.key(1), x, 2).shape == (2,)


# --- training ----------------------------------------------------------------------------------------


def test_draws_divide_the_variance_of_the_loss():
    """L draws, eq. (2)."""
    keys, spread = jax.random.split(jax.random.key(0), 600), {}
    for draws in (1, 8):
        model = vae(STATISTICS, latent=3, draws=draws, **PARTS)
        params = moved(model.init(jax.random.key(0)), 0.5)
        loss = jit(jax.vmap(lambda key, m=model, p=params: m.loss(p, key, jnp.asarray(X))[0]))
        spread[draws] = np.var(np.asarray(loss(keys), np.float64))
    assert 1 / 8 / 1.5 < spread[8] / spread[1] < 1.5 / 8


def test_gradients_reach_mean_and_deviation_of_every_conditional():
    model = learned([3, 2, 2])
    params = moved(model.init(jax.random.key(0)))
    grads = jit(jax.grad(lambda p: model.loss(p, jax.random.key(1), X)[0]))(params)
    assert set(grads) == {"encoder", "decoder", "up_2", "down_2", "up_3", "down_3"}
    for name, tree in grads.items():
        last = np.asarray(tree["out"]["bias"]).reshape((2, -1) if name != "decoder" else (-1, 2))
        assert np.all(np.isfinite(last)) and np.all(
            abs(last).max(1 if name != "decoder" else 0) > 0
        )


def test_prior_weight_weighs_the_loss_and_not_the_bound():
    key, bounds, losses = jax.random.key(0), [], []
    for weight in (1.0, 3.0):
        model = learned([3, 2], prior_weight=weight)
        params = moved(model.init(jax.random.key(0)))
        loss, metrics = model.loss(params, key, X)
        levels = metrics["level_1"] + metrics["level_2"]
        np.testing.assert_allclose(loss, metrics["reconstruction"] + weight * levels, rtol=1e-5)
        losses.append(float(loss))
        bounds.append(float(metrics["bits_per_dim"]))
    assert bounds[0] == bounds[1] and losses[0] != losses[1]


def test_the_loss_is_the_mean_of_the_bound():
    """Of single draws, keyed by the place in the global batch."""
    model = learned([3, 2])
    params, key = moved(model.init(jax.random.key(0))), jax.random.key(0)
    whole = as_batch(X)
    halves = [jax.tree.map(lambda leaf, i=i: leaf[3 * i : 3 * i + 3], whole) for i in range(2)]
    loss = float(model.loss(params, key, whole)[0])
    parts = [float(model.loss(params, key, half)[0]) for half in halves]
    np.testing.assert_allclose(np.mean(parts), loss, rtol=1e-5)


def test_collapse_shows_in_the_metrics():
    """A latent that is not used has a gain of 0 at every draw; one that is has not."""
    model = learned([3, 2, 4])
    start = model.init(jax.random.key(0))
    silent = start | {"encoder": jax.tree.map(jnp.zeros_like, start["encoder"])}
    names = ("kl_1", "gain_2", "gain_3")
    _, metrics = model.loss(silent, jax.random.key(1), X)
    np.testing.assert_allclose([metrics[name] for name in names], 0, atol=1e-5)
    _, metrics = model.loss(start, jax.random.key(1), X)
    assert metrics["kl_1"] > 0.01
    np.testing.assert_allclose([metrics[name] for name in names[1:]], 0, atol=1e-5)
    _, metrics = model.loss(moved(start), jax.random.key(1), X)
    assert all(abs(metrics[name]) > 1e-3 for name in names)
    # the bound is that of the first latent, plus what the others add, up to the noise of the draw
    parts = metrics["kl_1"] - metrics["gain_2"] - metrics["gain_3"]
    levels = sum(metrics[f"level_{t}"] for t in (1, 2, 3))
    assert abs(parts - levels) < 1.5


# --- what there is to see ----------------------------------------------------------------------------


def test_samples_follow_the_model():
    """Linear-Gaussian: x ~ N(B, W Wᵀ + s² I), by draws; the expectation is W z + B."""
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


@pytest.mark.slow
def test_samples_of_a_chain_go_through_every_level():
    model = learned([3, 2, 4])
    params = moved(model.init(jax.random.key(0)))
    sample = partial(model.sample, n=7)
    x = sample(params, jax.random.key(0))
    assert x.shape == (7, *SHAPE) and x.dtype == np.uint8 and x.max() < LEVELS
    np.testing.assert_array_equal(x, sample(params, jax.random.key(0)))
    np.testing.assert_array_equal(x[:3], model.sample(params, jax.random.key(0), 3))
    for name in ("down_2", "down_3", "decoder"):
        other = sample(params | {name: moved(params[name], 3.0)}, jax.random.key(0))
        assert np.any(other != x), name


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.slow
def test_pictures_are_of_the_codes(weight):
    model = vae(STATISTICS, latent=3, prior_weight=weight, **PARTS)
    params = moved(model.init(jax.random.key(0)))
    pairs = model.plots["reconstructions"](params, X)
    paths = model.plots["interpolations"](params, X)
    assert pairs.shape == (6, 2, *SHAPE) and paths.shape == (3, 9, *SHAPE)
    np.testing.assert_array_equal(pairs[:, 0], X)
    np.testing.assert_array_equal(paths[:, 0], pairs[0::2, 1])
    np.testing.assert_array_equal(paths[:, -1], pairs[1::2, 1])
    odd = model.plots["interpolations"](params, X[:5])
    np.testing.assert_array_equal(odd, paths[:2])
    one = model.plots["interpolations"](params, X[:1])
    np.testing.assert_array_equal(one, np.repeat(pairs[:1, 1:], 9, axis=1))


def test_an_autoencoder_reconstructs_and_refuses_the_rest():
    model = vae(STATISTICS, latent=3, prior_weight=0, **PARTS)
    params = moved(model.init(jax.random.key(0)))
    loss, metrics = model.loss(params, jax.random.key(0), X)
    assert set(metrics) == {"loss", "reconstruction"} and loss == metrics["loss"]
    assert loss == model.loss(params, jax.random.key(1), X)[0]  # no noise on the code
    assert model.importance is None
    for call in (model.elbo, model.sample):
        with pytest.raises(ValueError, match=r"neither a likelihood.*nor samples.*it reconstructs"):
            call(params, jax.random.key(0), 3)


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: learned([]), r"chain\.latents: expected the dimensions of T ≥ 1 latents"),
        (lambda: learned(3), r"chain\.latents: expected the dimensions .* found 3"),
        (lambda: learned([4, 0]), r"latents\[1\]: expected a whole number of at least 1, found 0"),
        (
            lambda: learned([4, 2.5]),
            r"latents\[1\]: expected a whole number of at least 1, found 2.5",
        ),
        (lambda: learned([3], prior_weight=-0.5), r"prior_weight: expected .*, found -0.5"),
        (lambda: learned([3], prior_weight=math.nan), "prior_weight: expected .*, found nan"),
        (
            lambda: learned([3, 2], prior_weight=0),
            "prior_weight: 0 makes an autoencoder of one latent",
        ),
        (lambda: learned([3], draws=0), "draws: expected a whole number of at least 1, found 0"),
        (
            lambda: learned([3], likelihood="bernoulli"),
            "likelihood: the data have 5 levels.* of 2 levels",
        ),
        (lambda: learned([3], likelihood="gaussian"), "have 5 levels, .* of continuous values"),
        (lambda: vae(Statistics(SHAPE, None)), "expected K-level data, found continuous values"),
        (lambda: vae(Statistics(SHAPE, None), likelihood="softmax"), "found continuous values"),
        (lambda: vae(STATISTICS, latent=0), r"latent: expected .* at least 1, found 0"),
        (lambda: vae(STATISTICS, latent=2.0), r"latent: .* found 2\.0"),
        (
            lambda: vae(STATISTICS, encoder="unet"),
            r"encoder: .*cannot map \(2, 3\) to \(2, 16\)",
        ),
        (
            lambda: vae(STATISTICS, encoder=plain(lambda x: x)),
            r"expected a map from .* found one to \(2, 3\)",
        ),
        (
            lambda: vae(STATISTICS, decoder="vdm_unet"),
            r"decoder: cannot map \(16,\) to \(2, 3, 2\)",
        ),
        (lambda: vae(STATISTICS, decoder="mpl"), r"decoder: unknown name 'mpl'; .*'mlp'"),
        (
            lambda: mhvae(STATISTICS, chain="diffusion"),
            r"chain: 'diffusion' needs timesteps",
        ),
        (
            lambda: mhvae(STATISTICS, chain={"name": "diffusion", "timesteps": 0}),
            r"chain\.timesteps: expected a whole number",
        ),
        (
            lambda: mhvae(
                STATISTICS, chain={"name": "diffusion", "timesteps": 2, "network": "mpl"}
            ),
            r"^chain\.network: unknown name 'mpl'",
        ),
        (
            lambda: mhvae(STATISTICS, chain={"name": "gaussian", "latents": [2], "lvl": 3}),
            "chain: 'gaussian' has no argument 'lvl'; did you mean 'level'",
        ),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_mistakes_are_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_chain_of_ones_own_makes_a_model():
    """`hierarchy` takes any `Chain`."""
    _, chain = linear_vae()
    statistics, likelihood = Statistics((D,), None), LIKELIHOODS["gaussian"]()
    model = hierarchy(statistics, chain, likelihood, draws=1, prior_weight=1.0, components="mine")
    found = model.importance(
        {"encoder": {}, "decoder": {}}, jax.random.key(0), jnp.asarray(DATA), 1
    )
    np.testing.assert_allclose(-found, LOG_LIKELIHOOD, rtol=1e-4)


class Map(nn.Module):
    """Of a user, with dropout or without."""

    outputs: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        out = nn.Dense(math.prod(self.outputs))(x.reshape(len(x), -1))
        return out.reshape(len(x), *self.outputs)


class KeyedMap(Map):
    @nn.compact
    def __call__(self, x, keys=None):
        out = nn.Dense(math.prod(self.outputs))(x.reshape(len(x), -1))
        if keys is not None:
            out = out + 1.0
        return out.reshape(len(x), *self.outputs)


def map_pair(outputs):
    module = Map(outputs)
    return module.init, module.apply


def map_of_two(outputs):
    module = Map(outputs)
    return Network(
        lambda key, x: module.init(key, x)["params"],
        lambda params, x: module.apply({"params": params}, x),
    )


@pytest.mark.parametrize("made", [Map, map_pair, map_of_two, KeyedMap])
def test_encoders_and_decoders_of_a_user_are_trained(made):
    """Linen modules, pairs and networks; they hear of what they have parameters for."""
    parts = {"encoder": made((2, 3)), "decoder": made((*SHAPE, 2))}
    model, key = vae(STATISTICS, latent=3, **parts), jax.random.key(0)

    @jit
    def run():
        params = model.init(key)
        loss, gradients = jax.value_and_grad(lambda params: model.loss(params, key, X)[0])(params)
        return loss, gradients, model.loss(params, key, X)[1], model.elbo(params, key, X)

    loss, gradients, metrics, bound = run()
    assert np.isfinite(loss) and all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradients))
    assert len(jax.tree.leaves(gradients)) == 4
    assert np.all(np.isfinite(bound.total)) and np.isfinite(metrics["bits_per_dim"])
    # the loss has keys, the bound has none
    same = np.allclose(metrics["kl_1"], np.mean(bound.prior) / (6 * math.log(2)), rtol=1e-5)
    assert same == (made is not KeyedMap)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Map((2, 4)), r"expected a map from \(2, 3\) to \(2, 3\), found one to \(2, 4\)"),
        (lambda x: x, "expected a name, a Linen module, or init and apply, found function"),
        ((map_pair, lambda params: params), r"apply takes 'params', expected \(params, x\)"),
        (
            (lambda key, x: {}, lambda params, x, scale: x),
            r"cannot map \(2, 3\) to \(2, 3\): .*'scale'",
        ),
    ],
    ids=["shape", "function", "apply", "argument"],
)
def test_maps_that_are_none_are_refused_in_one_line(encoder, message):
    with pytest.raises(ValueError, match=rf"^encoder: {message}") as caught:
        vae(STATISTICS, latent=3, encoder=encoder, decoder=TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vae", "autoencoder", "diffusion"])
def test_data_of_another_shape_than_the_statistics_are_refused(kind):
    if kind == "diffusion":
        model = mhvae(STATISTICS, chain={"name": "diffusion", "timesteps": 2, "network": TINY})
    else:
        model = vae(STATISTICS, latent=3, prior_weight=float(kind == "vae"), **PARTS)
    key, x = jax.random.key(0), X[:, :1]
    params = jax.eval_shape(model.init, key)
    calls = [model.loss]
    if model.importance is not None:
        calls += [model.elbo, lambda *of: model.importance(*of, 2)]
    for call in calls:
        with pytest.raises(ValueError, match=r"batch: .* expected shape \(2, 3\), found \(1, 3\)"):
            jax.eval_shape(call, params, key, x)
