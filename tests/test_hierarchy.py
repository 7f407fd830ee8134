"""Latent-variable models: the VAE has one latent, the VDM a fixed encoder; samples and plots of both."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_hierarchy import (
    LEVELS,
    MILD,
    PARTS,
    SHAPE,
    STATISTICS,
    TINY,
    X,
    perturbed,
    small_hierarchy,
)
from thinned import weekly_except

from vdm_jax.elbo import NoisySample, matching
from vdm_jax.gaussian import Gaussian
from vdm_jax.keys import example_keys, fold_each
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import CHAINS, Statistics, mhvae, vae, vdm
from vdm_jax.models.chain import diffusion, gaussian
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.latents import ascend, level_terms
from vdm_jax.schedules import linear


def test_one_latent_is_the_vae_of_the_formula():
    """Eq. (2), transcribed in float64 NumPy, gives the bound, and so does a hierarchy of one latent."""
    key = jax.random.key(4)
    model, of_one_latent = vae(STATISTICS, latent=3, **PARTS), small_hierarchy([3])
    params = perturbed(model.init(jax.random.key(0)))
    bound = model.elbo(params, key, X)
    chain = gaussian(statistics=STATISTICS, latents=[3], **PARTS)
    x0 = jnp.asarray(2 * (X + 0.5) / LEVELS - 1, jnp.float32)
    q = oracles.float64(chain.up(params, x0, 1))
    divergence = 0.5 * np.sum(np.exp(q.log_var) + q.mean**2 - 1 - q.log_var, -1)
    np.testing.assert_allclose(bound.prior, divergence, rtol=1e-5)
    (draw_keys,) = example_keys(key, jnp.arange(len(X)), 1)
    z = jax.vmap(Gaussian.sample)(chain.up(params, x0, 1), fold_each(fold_each(draw_keys, 0), 1))
    observation = chain.down(params, z, 1)
    nats = -jax.vmap(LIKELIHOODS["softmax"](levels=LEVELS).log_prob)(X, *observation)
    np.testing.assert_allclose(bound.reconstruction, nats, rtol=1e-5)
    np.testing.assert_array_equal(bound.matching, 0)
    assert jax.tree.structure(of_one_latent.init(jax.random.key(0))) == jax.tree.structure(params)
    for a, b in zip(of_one_latent.elbo(params, key, X), bound, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(of_one_latent.loss(params, key, X), model.loss(params, key, X), strict=True):
        assert a == b


@pytest.mark.slow
def test_levels_above_the_first_start_without_effect():
    """Every draw has the ratio of the VAE below, whatever the dimensions above it."""
    key, below = jax.random.key(4), vae(STATISTICS, latent=5, **PARTS)
    params = below.init(jax.random.key(0))
    expected = below.importance(params, key, X, 3)
    for latents in ([5, 5], [5, 2, 7], [5, 8, 1, 3]):
        model = small_hierarchy(latents)
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
    params = perturbed(model.init(jax.random.key(0)), 0.1)
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


# --- a VDM is the hierarchy over its fixed encoder ---------------------------------------------------

OUTPUT_SCALES = [
    {"parameterization": "eps", "base": "input", "output_scale": "none"},
    {"parameterization": "v", "base": "levels", "output_scale": "unit_variance"},
    {"parameterization": "mean", "base": "zero", "output_scale": "unit_variance"},
]


FIXED_ENCODERS = [*product(OUTPUT_SCALES, ["softmax", "discretized_gaussian"])]


@pytest.mark.parametrize(
    ("settings", "likelihood"),
    weekly_except(FIXED_ENCODERS[3:4], FIXED_ENCODERS),
    ids=lambda value: value if isinstance(value, str) else value["parameterization"],
)
@pytest.mark.slow
def test_fixed_encoder_hierarchy_is_the_vdm_term_by_term(settings, likelihood):
    T, key = 4, jax.random.key(6)
    parts = {"network": TINY, "schedule": MILD, **settings}
    vdm_model = vdm(STATISTICS, timesteps=T, likelihood=likelihood, **parts)
    spec = {"name": "diffusion", "timesteps": T, **parts}
    model = mhvae(STATISTICS, chain=spec, likelihood=likelihood)
    params = perturbed(vdm_model.init(jax.random.key(0)), 0.1)
    assert jax.tree.structure(params) == jax.tree.structure(model.init(jax.random.key(0)))

    built = LIKELIHOODS[likelihood](levels=LEVELS)
    chain = diffusion(statistics=STATISTICS, likelihood=built, timesteps=T, **parts)
    net = denoiser(STATISTICS, **{k: parts[k] for k in parts if k != "schedule"})
    x0 = built.encode(X)
    (draw_keys,) = example_keys(key, jnp.arange(len(X)), 1)
    draw = ascend(chain, params, fold_each(draw_keys, 0), x0)
    assert len(draw.levels) == T + 1
    schedule = linear(gamma_min=-4.0, gamma_max=5.0)
    for t, level in enumerate(draw.levels[:-1], start=1):
        # the term that models/vdm computes for the step that ends in the latent above
        step = oracles.interval(schedule, None, (t - 1) / T, t / T)
        above = draw.levels[t].z
        eps = (above - jnp.sqrt(jax.nn.sigmoid(-step.gamma_t)) * x0) / jnp.sqrt(
            jax.nn.sigmoid(step.gamma_t)
        )
        many = jax.tree.map(lambda leaf: jnp.full(len(X), leaf), step)
        noisy = NoisySample(x0, eps, above, many, jnp.expm1(many.delta))
        expected = jax.vmap(matching)(noisy, net.error(params["network"], noisy))
        np.testing.assert_allclose(level_terms(level), expected, rtol=2e-4, err_msg=str(t))
    bound, expected = model.elbo(params, key, X), vdm_model.elbo(params, key, X)
    np.testing.assert_allclose(bound.prior, expected.prior, rtol=1e-5)
    np.testing.assert_allclose(level_terms(draw.levels[-1]), expected.prior, rtol=1e-5)

    # and the estimates of both models over all steps have the same mean
    keys, x = jax.random.split(jax.random.key(1), 1500), jnp.asarray(X[:3])
    a = jit(jax.vmap(lambda key: model.elbo(params, key, x)))(keys)
    b = jit(jax.vmap(lambda key: vdm_model.elbo(params, key, x, draws=T)))(keys)
    for name in ("reconstruction", "matching"):
        off = np.asarray(getattr(a, name), np.float64) - np.asarray(getattr(b, name), np.float64)
        slack = 4.5 * oracles.standard_error(off) + 1e-4 * np.mean(getattr(b, name), 0)
        assert np.all(abs(off.mean(0)) < slack), name


@pytest.mark.slow
def test_float32_data_under_double_precision():
    """The numbers of a schedule are float64 there even for float32 data."""
    chain = {"name": "diffusion", "timesteps": 3, "network": TINY, "schedule": MILD}
    with jax.enable_x64(True):
        model = mhvae(Statistics((3,), None), chain=chain, likelihood="gaussian")
        params, x = model.init(jax.random.key(0)), jnp.ones((2, 3), jnp.float32)
        assert model.elbo(params, jax.random.key(1), x, draws=2).total.shape == (2,)
        assert model.importance is not None
        assert model.importance(params, jax.random.key(1), x, 2).shape == (2,)


# --- samples and plots -------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_of_a_chain_go_through_every_level():
    model = small_hierarchy([3, 2, 4])
    params = perturbed(model.init(jax.random.key(0)))
    sample = partial(model.sample, n=7)
    x = sample(params, jax.random.key(0))
    assert x.shape == (7, *SHAPE) and x.dtype == np.uint8 and x.max() < LEVELS
    np.testing.assert_array_equal(x, sample(params, jax.random.key(0)))
    np.testing.assert_array_equal(x[:3], model.sample(params, jax.random.key(0), 3))
    for name in ("down_2", "down_3", "decoder"):
        other = sample(params | {name: perturbed(params[name], 3.0)}, jax.random.key(0))
        assert np.any(other != x), name


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.slow
def test_plots_show_reconstructions_and_interpolations(weight):
    model = vae(STATISTICS, latent=3, prior_weight=weight, **PARTS)
    params = perturbed(model.init(jax.random.key(0)))
    pairs = model.plots["reconstructions"](params, X)
    paths = model.plots["interpolations"](params, X)
    assert pairs.shape == (6, 2, *SHAPE) and paths.shape == (3, 9, *SHAPE)
    np.testing.assert_array_equal(pairs[:, 0], X)
    np.testing.assert_array_equal(paths[:, 0], pairs[0::2, 1])
    np.testing.assert_array_equal(paths[:, -1], pairs[1::2, 1])
    odd = model.plots["interpolations"](params, X[:5])
    np.testing.assert_array_equal(odd, paths[:2])
    single = model.plots["interpolations"](params, X[:1])
    np.testing.assert_array_equal(single, np.repeat(pairs[:1, 1:], 9, axis=1))


def test_an_autoencoder_reconstructs_and_refuses_the_rest():
    model = vae(STATISTICS, latent=3, prior_weight=0, **PARTS)
    params = perturbed(model.init(jax.random.key(0)))
    loss, metrics = model.loss(params, jax.random.key(0), X)
    assert set(metrics) == {"loss", "reconstruction"} and loss == metrics["loss"]
    assert loss == model.loss(params, jax.random.key(1), X)[0]  # no noise on the code
    assert model.importance is None
    for call in (model.elbo, model.sample):
        with pytest.raises(ValueError, match=r"no bound.*no samples.*reconstruct"):
            call(params, jax.random.key(0), 3)
