"""Small networks of every row of the table, their shapes, and inputs and parameters to call them with."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from oracles import jit

from vdm_jax.nets import NETS

SMALL = {
    "mlp": {"width": 16, "depth": 2, "dropout": 0.5},
    "unet": {"channels": (8, 12), "blocks": 1, "dropout": 0.5},
    "vdm_unet": {"channels": 8, "blocks": 1, "fourier": (0, 1), "dropout": 0.5},
}
IMAGES = [(28, 28, 1), (8, 8, 1), (32, 32, 3), (7, 5, 2)]
SHAPES = {"mlp": [(5,), (), (3, 4), (8, 8, 1)], "unet": IMAGES, "vdm_unet": IMAGES}
MAPS = {  # name: settings, and pairs of shapes
    "mlp": ({"width": 16, "depth": 2}, [((5,), (2, 3)), ((8, 8, 1), (2, 4)), ((3,), (7, 5, 2))]),
    "conv_encoder": (
        {"channels": (8, 12), "blocks": 1},
        [((28, 28, 1), (2, 3)), ((7, 5, 2), (4,)), ((32, 32, 3), (2, 8)), ((8, 8, 1), (1,))],
    ),
    "conv_decoder": (
        {"channels": (8, 12), "blocks": 1},
        [((3,), (28, 28, 1, 2)), ((4,), (7, 5, 2, 2)), ((1,), (32, 32, 3)), ((9,), (8, 8, 1, 2))],
    ),
}
ONE_SHAPE = {name: shapes[-1] for name, shapes in SHAPES.items()}


@cache
def small(name, dtype="float32"):
    """Return a small network and its compiled `apply`, shared by the tests."""
    net = NETS[name](**SMALL[name], dtype=dtype)
    return net, jit(net.apply)


def inputs(shape, batch=3, seed=0):
    """Return x_t, γ_t and a second input of a batch."""
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((batch, *shape)), rng.uniform(-13, 5, batch)
    return [jnp.asarray(a, jnp.float32) for a in (*arrays, rng.standard_normal((batch, *shape)))]


def params_of(net, shape, *, extra=False):
    """Return random parameters of the network's shapes, none of them zero, without running its `init`."""
    xt, gamma_t, second = inputs(shape, 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), xt, gamma_t, second if extra else None)
    rng = np.random.default_rng(1)

    def fill(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def largest(change):
    """Return the largest absolute change of each example."""
    return np.abs(change).reshape(len(change), -1).max(-1)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
