"""U-Nets: loops over blocks, recomputed activations and patches do not change the function."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import ONE_SHAPE, inputs, params_of
from oracles import jit
from thinned import weekly_except

from vdm_jax.nets import NETS
from vdm_jax.nets.unet import from_patches, to_patches
from vdm_jax.training.optimizer import OPTIMIZERS, make_optimizer

FAST = {  # settings that change the memory and the program of a U-Net, but no number
    "full": {"remat": "full"},
    "save_conv": {"remat": "save_conv"},
    "scan": {"scan": True},
    "scan, full": {"scan": True, "remat": "full"},
    "scan, save_conv": {"scan": True, "remat": "save_conv"},
}
DEEP = {  # several blocks a level, levels of other widths, attention inside a loop
    "unet": {"channels": (8, 12), "blocks": 3, "attention": (1,), "dropout": 0.5},
    "vdm_unet": {"channels": 8, "blocks": 3, "fourier": (0, 1), "dropout": 0.5},
}


def in_loops(params, like):
    """Stack the parameters of single blocks where the tree `like` has loops over them."""
    single = [int(name.removeprefix("block_")) for name in like if name.startswith("block_")]
    blocks = sum(name.startswith("block_") for name in params)
    numbers = iter(sorted(set(range(blocks)) - set(single)))
    stacked = {name: params[name] for name in like if name in params}
    loops = [name for name in like if name not in stacked]
    down, up = (sorted(name for name in loops if name.startswith(way)) for way in ("down", "up"))
    for name in [*down, *reversed(up)]:
        count = len(jax.tree.leaves(like[name])[0])
        members = [next(numbers) for _ in range(count)][:: -1 if name in up else 1]
        stacked[name] = {
            part: jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *[params[f"{part}_{i}"] for i in members]
            )
            for part in like[name]
        }
    return stacked


@cache
def deep(name):
    """Return the parameters of a U-Net, its gradients and output, and the text of its program."""
    net = NETS[name](**DEEP[name])
    params = params_of(net, ONE_SHAPE[name])
    return params, *evaluate(net, params, ONE_SHAPE[name])


def norm(*leaves):
    return float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in leaves)))


def evaluate(net, params, shape):
    """Return ((gradients, output), text of the program)."""
    xt, gamma_t, _ = inputs(shape)

    def loss(params):
        output = net.apply(params, xt, gamma_t, None, jax.random.split(jax.random.key(5), len(xt)))
        return jnp.sum(jnp.square(output)), output

    gradients = jax.grad(loss, has_aux=True)
    return jit(gradients)(params), str(jax.make_jaxpr(gradients)(params))


@pytest.mark.parametrize(
    ("name", "fast"),
    weekly_except(
        [("vdm_unet", "scan, full"), ("unet", "full"), ("unet", "scan, save_conv")],
        [(name, fast) for name in DEEP for fast in FAST],
    ),
    ids=str,
)
@pytest.mark.slow
def test_remat_and_scan_keep_output_and_gradients(name, fast):
    """Output and gradients stay the same; the program stores less or is shorter."""
    params, (expected, output), plain_text = deep(name)
    net, shape = NETS[name](**DEEP[name], **FAST[fast]), ONE_SHAPE[name]
    like = params_of(net, shape)
    if "scan" in fast:
        params, expected = in_loops(params, like), in_loops(expected, like)
    assert jax.tree.structure(like) == jax.tree.structure(params)

    (gradients, other_output), text = evaluate(net, params, shape)
    assert norm(other_output - output) < 1e-5 * norm(output)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        difference, size = norm(a - b), norm(b)
        # relative to the leaf, or to all leaves where it is all rounding (a bias that a softmax does not see)
        assert difference < 1e-5 * max(size, 1e-3 * norm(*jax.tree.leaves(expected))), path
    assert ("remat" in text) == (fast != "scan") and "remat" not in plain_text
    assert ("scan" in text) == ("scan" in fast)


@pytest.mark.slow
def test_remat_saves_memory():
    """The compiled gradient of a large batch needs less temporary memory."""

    def temporary(**fast):
        net = NETS["vdm_unet"](channels=8, blocks=6, **fast)
        xt, gamma_t, _ = inputs((8, 8, 1), batch=64)
        params = jax.eval_shape(net.init, jax.random.key(0), xt, gamma_t)
        gradient = jax.grad(lambda params: jnp.sum(jnp.square(net.apply(params, xt, gamma_t))))
        return jit(gradient).lower(params).compile().memory_analysis().temp_size_in_bytes

    plain = temporary()
    assert temporary(scan=True, remat="save_conv") < 0.7 * plain
    assert temporary(scan=True, remat="full") < 0.6 * plain


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_scanned_blocks_are_updated_like_single_blocks(name):
    """Stacked kernels decay and stacked biases and scales do not; each block is updated separately."""
    params, (gradients, _), _ = deep("unet")
    like = params_of(NETS["unet"](**DEEP["unet"], scan=True), ONE_SHAPE["unet"])
    settings = {"warmup_steps": 0, "decay_steps": None, "decay_to": 1.0, "b1": 0.9, "b2": 0.99}
    optimizer, _ = make_optimizer(
        name=name, learning_rate=0.1, weight_decay=0.5, clip_norm=None, accumulate=1, **settings
    )

    @jit
    def update(gradients, params):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    params = jax.tree.map(lambda leaf: leaf + 1, params)  # none is zero
    expected = in_loops(update(gradients, params), like)
    actual = update(in_loops(gradients, like), in_loops(params, like))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.parametrize("name", DEEP)
def test_scanned_program_does_not_grow_with_depth(name):
    def equations(blocks):
        net = NETS[name](**DEEP[name] | {"blocks": blocks}, scan=True)
        xt, gamma_t, _ = inputs(ONE_SHAPE[name])
        params = jax.eval_shape(net.init, jax.random.key(0), xt, gamma_t)
        return len(jax.make_jaxpr(net.apply)(params, xt, gamma_t).eqns)

    assert equations(8) == equations(4)


def test_default_vdm_unet_has_30_6_million_parameters():
    net = NETS["vdm_unet"]()
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs((32, 32, 3), 1)[:2])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == 30.6


# --- patches -----------------------------------------------------------------------------------------


def test_patches_are_squares_of_pixels_and_invertible():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = to_patches(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(from_patches(patches, 2), x)


def test_unet_on_patches_keeps_the_shape_of_the_data():
    net = NETS["unet"](channels=(8,), blocks=1, patch=2, attention=(0,))
    xt, gamma_t, _ = inputs((4, 6, 2))
    output = jit(net.apply)(params_of(net, (4, 6, 2)), xt, gamma_t)
    assert output.shape == xt.shape
    assert np.all(np.isfinite(output))
