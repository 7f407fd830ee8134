"""Every family of models provides loss, bound and samples to the code above it."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit

from vdm_jax.models import MODELS, Statistics, base_of, build_model
from vdm_jax.typing import Batch

SHAPE, LEVELS, TINY = (2, 3), 5, {"name": "mlp", "width": 8, "depth": 1}
PARTS = {"encoder": TINY, "decoder": TINY}
SETTINGS = {
    "vdm": {
        "network": TINY,
        "schedule": {"name": "linear", "gamma_min": -4.0, "gamma_max": 5.0},
    },
    "vae": {"latent": 3, **PARTS},
    "mhvae": {"chain": {"name": "gaussian", "latents": [4, 2], "level": TINY, **PARTS}},
}
DATA = {
    "levels": (Statistics(SHAPE, LEVELS, 0.4, np.zeros((*SHAPE, LEVELS), np.float32)), "softmax"),
    "continuous": (Statistics(SHAPE, None), "gaussian"),
}
CASES = [(name, data) for name in MODELS for data in DATA]


def made(name, data):
    """Return a model, parameters away from their start, and a batch."""
    statistics, likelihood = DATA[data]
    model = build_model({"name": name, "likelihood": likelihood} | SETTINGS[name], statistics)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.2 * rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves]
    if data == "levels":
        x = jnp.asarray(rng.integers(0, LEVELS, (7, *SHAPE)), jnp.uint8)
    else:
        x = jnp.asarray(rng.standard_normal((7, *SHAPE)), jnp.float32)
    return model, jax.tree.unflatten(tree, leaves), x


def test_every_family_is_tested():
    assert set(SETTINGS) == set(MODELS)


@pytest.mark.parametrize(("name", "data"), CASES)
def test_loss_bound_and_samples(name, data):
    """They are finite, of the right shapes, differentiable, and functions of their arguments alone."""
    model, params, x = made(name, data)
    traces = []

    @jit
    def step(params, key, x):
        traces.append(key)
        return jax.value_and_grad(model.loss, has_aux=True)(params, key, x)

    keys = jax.random.split(jax.random.key(1), 2)
    (loss, metrics), grads = step(params, keys[0], x)
    assert loss.shape == () and np.isfinite(loss)
    assert {"loss", "bits_per_dim"} <= set(metrics) and metrics["loss"] == loss
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path
    assert step(params, keys[0], x)[0][0] == loss
    assert step(params, keys[1], x)[0][0] != loss
    assert step(params, keys[0], x[::-1])[0][0] != loss
    assert len(traces) == 1

    elbo = jit(lambda p, key, x: model.elbo(p, key, x, draws=2))
    bound = elbo(params, keys[0], x)
    assert all(part.shape == (7,) and np.all(np.isfinite(part)) for part in bound)
    for a, b in zip(bound, elbo(params, keys[0], x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(elbo(params, keys[1], x).total != bound.total)

    sample = jit(lambda p, key: model.sample(p, key, 5))
    drawn = sample(params, keys[0])
    assert drawn.shape == (5, *SHAPE) and np.all(np.isfinite(drawn))
    assert drawn.dtype == x.dtype
    np.testing.assert_array_equal(drawn, sample(params, keys[0]))
    assert np.any(drawn != sample(params, keys[1]))


@pytest.mark.parametrize(("name", "data"), CASES)
@pytest.mark.slow
def test_an_example_keeps_its_numbers_in_another_batch(name, data):
    """The randomness of an example depends on its index alone."""
    model, params, x = made(name, data)
    index = jnp.arange(7, dtype=jnp.int32)
    whole = Batch(x, index, index / 7)
    chosen = jnp.asarray([5, 2])
    part = jax.tree.map(lambda leaf: leaf[chosen], whole)
    elbo = jit(lambda batch: model.elbo(params, jax.random.key(0), batch))
    for a, b in zip(elbo(whole), elbo(part), strict=True):
        np.testing.assert_allclose(a[chosen], b, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_no_better_than_the_law_of_the_data(name):
    """E[−ELBO] ≥ E[−log p(x)] for any parameters, since no model beats the truth."""
    model, params, _ = made(name, "continuous")
    law, n = oracles.gaussian(SHAPE), 4000
    x = law.sample(0, n)
    bound = jit(model.elbo)(params, jax.random.key(2), jnp.asarray(x, jnp.float32))
    gap = np.asarray(bound.total, np.float64) + law.log_prob(x)
    assert gap.mean() > -4.5 * oracles.standard_error(gap)
    if model.importance is not None:
        many = jit(lambda x: model.importance(params, jax.random.key(2), x, 20))
        gap = np.asarray(many(jnp.asarray(x, jnp.float32)), np.float64) + law.log_prob(x)
        assert gap.mean() > -4.5 * oracles.standard_error(gap)


@pytest.mark.parametrize("name", MODELS)
def test_unknown_fields_are_named(name):
    with pytest.raises(
        ValueError, match=r"model: unknown field 'likelyhood'; did you mean 'likelihood'"
    ):
        build_model({"name": name, "likelyhood": "softmax"} | SETTINGS[name], DATA["levels"][0])


def test_both_ways_to_a_diffusion_measure_the_same_base():
    parts = {"base": "levels", "timesteps": 3}
    chain = {"name": "diffusion"} | parts
    assert (
        base_of({"name": "vdm"} | parts) == base_of({"name": "mhvae", "chain": chain}) == "levels"
    )
    assert (
        base_of({"name": "vae"}) is None
        and base_of({"name": "mhvae", "chain": "diffusion"}) is None
    )
