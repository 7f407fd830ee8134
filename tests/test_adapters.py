"""A callable that could be read as two networks is refused; others are trained as their authors wrote them."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vdm_jax as vdm
from vdm_jax.nets import as_network, from_callable, from_linen

SHAPE = (4, 4, 2)


def inputs(shape=SHAPE, batch=3):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((batch, *shape)), rng.uniform(-6, 4, batch)
    return [jnp.asarray(a, jnp.float32) for a in (*arrays, rng.standard_normal((batch, *shape)))]


class Attention(nnx.Module):
    """A network for batches that attends within rows when applied to one example."""

    def __init__(self, scale=1.0):
        self.scale = nnx.Param(jnp.full((), scale))

    def __call__(self, x, gamma_t):
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        weights = jax.nn.softmax(tokens @ tokens.swapaxes(-1, -2), -1)
        return (
            self.scale[...] * (weights @ tokens).reshape(x.shape)
            + jnp.cos(gamma_t)[..., None, None, None]
        )


class Pointwise(eqx.Module):
    scale: jax.Array

    def __call__(self, xt, gamma_t):
        return self.scale * jnp.tanh(xt)


class ZeroAtStart(eqx.Module):
    """A network whose readings differ only after the first step of training."""

    out: jax.Array

    def __call__(self, xt, gamma_t):
        return self.out * (xt - xt.mean(0, keepdims=True))


class Dropped(eqx.Module):
    """A network for single examples that runs on batches while nothing is dropped."""

    scale: jax.Array

    def __call__(self, xt, gamma_t, keys=None):
        mask = 1.0 if keys is None else jax.random.bernoulli(keys, 0.5, xt.shape)
        return self.scale * xt * mask


class Second(eqx.Module):
    scale: jax.Array

    def __call__(self, xt, gamma_t, extra=None):
        return self.scale * (xt if extra is None else xt - extra.mean(0, keepdims=True))


def centred(xt, gamma_t):
    return xt - xt.mean((1, 2), keepdims=True) + jnp.cos(gamma_t)[..., None, None, None]


def with_noise(xt, gamma_t):
    return xt + jax.random.normal(jax.random.key(0), xt.shape)


def by_size(xt, gamma_t):
    """Treat a batch that is as large as a dimension as one example."""
    return xt - xt.mean(0, keepdims=True) if xt.shape[0] == SHAPE[0] else xt


def wrong_statistics(xt, gamma_t):
    return xt - 1e-3 * xt.mean(0, keepdims=True)


ONE, HALF = jnp.ones(()), jnp.bfloat16
AMBIGUOUS = {
    "attention": Attention(),
    "centred": centred,
    "zero at the start": ZeroAtStart(jnp.zeros(())),
    "traced noise": with_noise,
    "size of a dimension": by_size,
    "second input": Second(ONE),
    "a little": wrong_statistics,
    "half precision": lambda xt, gamma_t: (xt - xt.mean(0, keepdims=True)).astype(HALF),
    "partial": partial(lambda a, xt, gamma_t: xt - a * xt.mean(0, keepdims=True), 1.0),
}
CLEAR = {  # a callable and its network on a batch
    "pointwise": (Pointwise(ONE), lambda xt, g: jnp.tanh(xt)),
    "zero": (lambda xt, g: 0 * xt, lambda xt, g: 0 * xt),
    "scalar gamma": (lambda xt, g: g * xt, lambda xt, g: g[:, None, None, None] * xt),
    "batched": (
        lambda xt, g: xt * g[:, None, None, None],
        lambda xt, g: g[:, None, None, None] * xt,
    ),
    "either": (
        lambda xt, g: (
            xt * jnp.reshape(g, g.shape + (1,) * (xt.ndim - g.ndim)) if g.ndim else g * xt
        ),
        lambda xt, g: g[:, None, None, None] * xt,
    ),
    "half precision": (
        lambda xt, g: jnp.sin(xt.astype(HALF)),
        lambda xt, g: jnp.sin(xt.astype(HALF)),
    ),
    "jitted": (jax.jit(lambda xt, g: xt * g), lambda xt, g: g[:, None, None, None] * xt),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_callables_are_refused(name):
    with pytest.raises(
        ValueError, match=r"^runs on single .*from_callable\(f, batched=True\)"
    ) as caught:
        as_network(AMBIGUOUS[name], SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CLEAR)
def test_unambiguous_callables_are_accepted(name):
    given, expected = CLEAR[name]
    xt, gamma_t, _ = inputs()
    for batch in (3, SHAPE[0]):
        xt, gamma_t, _ = inputs(batch=batch)
        net = as_network(given, SHAPE)
        output = net.apply(net.init(jax.random.key(0), xt, gamma_t), xt, gamma_t)
        np.testing.assert_allclose(
            np.asarray(output, float), np.asarray(expected(xt, gamma_t), float), atol=1e-5
        )


def test_from_callable_resolves_the_ambiguity():
    xt, gamma_t, extra = inputs()
    for name, function in AMBIGUOUS.items():
        others = {"extra": extra} if name == "second input" else {}
        whole = from_callable(function, batched=True)
        single = from_callable(function, batched=False)
        outputs = [
            net.apply(net.init(None, xt), xt, gamma_t, extra, None) for net in (whole, single)
        ]
        expected = function(xt, gamma_t, **others)
        each = jax.vmap(lambda x, g, others, f=function: f(x, g, **others))(xt, gamma_t, others)
        for a, b in zip(outputs, (expected, each), strict=True):
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-5)


def test_dropout_for_single_examples_is_detected():
    """Without keys both readings run and agree; with keys only one of them runs."""
    net = as_network(Dropped(ONE), SHAPE)
    xt, gamma_t, _ = inputs()
    keys = jax.random.split(jax.random.key(0), 3)
    dropped = net.apply([ONE], xt, gamma_t, None, keys)
    assert np.mean(np.asarray(dropped) == 0) > 0.2
    np.testing.assert_array_equal(net.apply([ONE], xt, gamma_t), xt)


def test_traced_weights_are_checked_too():
    x = jnp.ones((4, 3))

    @jax.jit
    def loss(scale):
        given = {"eps": Pointwise(scale), "v": lambda xt, gamma_t: scale * jnp.tanh(xt)}
        losses = vdm.parameterization_losses(given, x, jax.random.key(0))
        return sum(row.bits_per_dim.mean() for row in losses.values())

    assert np.isfinite(jax.grad(loss)(1.0))

    @jax.jit
    def ambiguous(scale):
        given = {"eps": lambda xt, gamma_t: scale * (xt - xt.mean(0, keepdims=True))}
        return vdm.parameterization_losses(given, x, jax.random.key(0))["eps"].bits_per_dim

    with pytest.raises(ValueError, match="runs on single examples and on batches"):
        ambiguous(1.0)


def test_from_callable_is_accepted_everywhere():
    x, key = np.linspace(-1, 1, 96, dtype=np.float32).reshape(8, 4, 3), jax.random.key(0)
    statistics = vdm.Statistics((4, 3), None, 1.0)

    def both(xt, gamma_t):
        return xt - xt.mean(0, keepdims=True)

    with pytest.raises(ValueError, match="from_callable"):
        vdm.parameterization_losses({"eps": both}, x, key)
    bits = []
    for batched in (False, True):
        net = from_callable(both, batched=batched)
        bits_per_network = vdm.parameterization_losses({"eps": net}, x, key)["eps"].bits_per_dim
        model = vdm.models.vdm(statistics, network=net, likelihood="gaussian")
        assert np.isfinite(model.loss(model.init(key), key, x)[0])
        bits.append(bits_per_network)
    assert np.all(bits[0] != bits[1])
    model = vdm.models.vdm(statistics, network=Pointwise(ONE), likelihood="gaussian")
    assert jax.tree.leaves(model.init(key)["network"]) == [1.0]
    with pytest.raises(ValueError, match=r"network: expected an output of shape"):
        vdm.models.vdm(statistics, network=from_callable(lambda x, g: x[..., :1], batched=True))


class Counts(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, xt, gamma_t):
        self.scale[...] = self.scale[...] + 1
        return self.scale[...] * xt


class Normed(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        return nn.BatchNorm(use_running_average=True)(xt)


LOST = {
    "dropout": (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "has state besides its parameters"),
    "batch norm": (nnx.BatchNorm(2, rngs=nnx.Rngs(0)), "has state besides its parameters"),
    "written in a call": (Counts(), "changes its own state when it is called"),
    "bound method": (
        Attention().__call__,
        "a function of the NNX module Attention, whose parameters",
    ),
    "partial": (partial(Pointwise(ONE)), "a function of a Pointwise, whose parameters it hides"),
    "class": (Attention, "expected an object, found the class Attention"),
    "linen": (Normed(), r"the Linen module Normed has variables .*'batch_stats'"),
}


@pytest.mark.parametrize("name", LOST)
def test_no_state_is_lost(name):
    given, message = LOST[name]
    with pytest.raises(ValueError, match=message) as caught:
        as_network(given, SHAPE)
    assert "\n" not in str(caught.value)


class Own(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t, extra=None):
        h = xt if extra is None else jnp.concatenate([xt, extra], -1)
        return nn.Dense(xt.shape[-1])(h) * gamma_t[:, None]


def test_a_linen_module_gets_only_the_arguments_it_takes():
    xt, gamma_t, extra = inputs((4,))
    net, module = from_linen(Own()), Own()
    params = net.init(jax.random.key(0), xt, gamma_t, extra)
    output = net.apply(params, xt, gamma_t, extra, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(output, module.apply({"params": params}, xt, gamma_t, extra))


def test_both_readings_are_checked_with_double_precision():
    with jax.enable_x64(True):
        as_network(lambda xt, g: jnp.tanh(xt), SHAPE)
        with pytest.raises(ValueError, match="runs on single examples and on batches"):
            as_network(centred, SHAPE)
