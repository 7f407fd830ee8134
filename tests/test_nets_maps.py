"""Maps to other shapes: the MLP, the convolutional encoder and the convolutional decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import MAPS, assert_same, largest
from oracles import jit

from vdm_jax.nets import NETS

PAIRS = [(name, *pair) for name, (_, pairs) in MAPS.items() for pair in pairs]


@pytest.mark.parametrize(("name", "inner", "outer"), PAIRS, ids=str)
def test_map_has_the_given_shape_and_depends_on_its_input(name, inner, outer):
    net = NETS[name](outputs=outer, dropout=0.5, **MAPS[name][0])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, *inner)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)

    def fill(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    params, apply = jax.tree.map(fill, shapes), jit(net.apply)
    output = apply(params, x)
    assert (output.shape, output.dtype) == ((5, *outer), jnp.float32)
    assert np.all(np.isfinite(output))
    assert np.all(largest(apply(params, x + 0.3) - output) > 1e-4)
    # of one example alone
    assert_same(apply(params, x[3:4]), output[3:4])
    keys = jax.random.split(jax.random.key(0), 5)
    dropped = apply(params, x, None, None, keys)
    assert np.all(largest(dropped - output) > 1e-4)
    back = jnp.arange(5)[::-1]
    assert_same(apply(params, x[back], None, None, keys[back]), dropped[back])


@pytest.mark.parametrize("name", MAPS)
def test_initial_map_is_not_zero(name):
    """A zero encoder with a zero decoder would have no gradient."""
    settings, pairs = MAPS[name]
    inner, outer = pairs[1]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *inner)), jnp.float32)
    not_zero = {"zero": False} if name == "mlp" else {}
    net = NETS[name](outputs=outer, **settings, **not_zero)
    output = jit(lambda key: net.apply(net.init(key, x), x))(jax.random.key(0))
    assert np.all(largest(output) > 1e-3)
    if name == "mlp":
        net = NETS[name](outputs=outer, **settings)
        assert np.all(jit(lambda key: net.apply(net.init(key, x), x))(jax.random.key(0)) == 0)


@pytest.mark.parametrize(
    ("name", "inner", "outer"), [("conv_encoder", (8, 8), (3,)), ("conv_decoder", (3,), (8, 2))]
)
def test_convolutional_map_refuses_other_shapes(name, inner, outer):
    net = NETS[name](outputs=outer)
    with pytest.raises(ValueError, match=rf"{name}: expected images H×W×C, found shape"):
        net.init(jax.random.key(0), jnp.zeros((1, *inner)))
