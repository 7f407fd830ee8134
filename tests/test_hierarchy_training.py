"""Training of latent-variable models: the loss, its gradients and metrics, and networks of a user."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit
from small_hierarchy import PARTS, SHAPE, STATISTICS, Map, X, map_pair, perturbed, small_hierarchy

from vdm_jax.models import vae
from vdm_jax.nets import Network
from vdm_jax.typing import as_batch


def test_draws_divide_the_variance_of_the_loss():
    """L draws, eq. (2), divide the variance by L."""
    keys, spread = jax.random.split(jax.random.key(0), 600), {}
    for draws in (1, 8):
        model = vae(STATISTICS, latent=3, draws=draws, **PARTS)
        params = perturbed(model.init(jax.random.key(0)), 0.5)
        loss = jit(jax.vmap(lambda key, m=model, p=params: m.loss(p, key, jnp.asarray(X))[0]))
        spread[draws] = np.var(np.asarray(loss(keys), np.float64))
    assert 1 / 8 / 1.5 < spread[8] / spread[1] < 1.5 / 8


def test_gradients_reach_mean_and_deviation_of_every_conditional():
    model = small_hierarchy([3, 2, 2])
    params = perturbed(model.init(jax.random.key(0)))
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
        model = small_hierarchy([3, 2], prior_weight=weight)
        params = perturbed(model.init(jax.random.key(0)))
        loss, metrics = model.loss(params, key, X)
        levels = metrics["level_1"] + metrics["level_2"]
        np.testing.assert_allclose(loss, metrics["reconstruction"] + weight * levels, rtol=1e-5)
        losses.append(float(loss))
        bounds.append(float(metrics["bits_per_dim"]))
    assert bounds[0] == bounds[1] and losses[0] != losses[1]


def test_the_loss_is_the_mean_of_the_bound():
    """Single draws are keyed by the place in the global batch, so that halves average to the whole."""
    model = small_hierarchy([3, 2])
    params, key = perturbed(model.init(jax.random.key(0))), jax.random.key(0)
    whole = as_batch(X)
    halves = [jax.tree.map(lambda leaf, i=i: leaf[3 * i : 3 * i + 3], whole) for i in range(2)]
    loss = float(model.loss(params, key, whole)[0])
    parts = [float(model.loss(params, key, half)[0]) for half in halves]
    np.testing.assert_allclose(np.mean(parts), loss, rtol=1e-5)


def test_collapse_shows_in_the_metrics():
    """An unused latent has a gain of 0 at every draw, a used latent has not."""
    model = small_hierarchy([3, 2, 4])
    start = model.init(jax.random.key(0))
    silent = start | {"encoder": jax.tree.map(jnp.zeros_like, start["encoder"])}
    names = ("kl_1", "gain_2", "gain_3")
    _, metrics = model.loss(silent, jax.random.key(1), X)
    np.testing.assert_allclose([metrics[name] for name in names], 0, atol=1e-5)
    _, metrics = model.loss(start, jax.random.key(1), X)
    assert metrics["kl_1"] > 0.01
    np.testing.assert_allclose([metrics[name] for name in names[1:]], 0, atol=1e-5)
    _, metrics = model.loss(perturbed(start), jax.random.key(1), X)
    assert all(abs(metrics[name]) > 1e-3 for name in names)
    # the bound is that of the first latent, plus what the others add, up to the noise of the draw
    parts = metrics["kl_1"] - metrics["gain_2"] - metrics["gain_3"]
    levels = sum(metrics[f"level_{t}"] for t in (1, 2, 3))
    assert abs(parts - levels) < 1.5


# --- networks of a user ------------------------------------------------------------------------------


class KeyedMap(Map):
    """A layer that adds one where it receives keys, as dropout would."""

    @nn.compact
    def __call__(self, x, keys=None):
        out = nn.Dense(math.prod(self.outputs))(x.reshape(len(x), -1))
        if keys is not None:
            out = out + 1.0
        return out.reshape(len(x), *self.outputs)


def map_of_two(outputs):
    """Return `Map` as a network of functions of two arguments."""
    module = Map(outputs)
    return Network(
        lambda key, x: module.init(key, x)["params"],
        lambda params, x: module.apply({"params": params}, x),
    )


@pytest.mark.parametrize("made", [Map, map_pair, map_of_two, KeyedMap])
def test_custom_encoders_and_decoders_are_trained(made):
    """Linen modules, pairs and networks are trained; each receives only the arguments that it takes."""
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
