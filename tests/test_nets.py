"""Networks: denoisers, zero at the start and conditioned on γ; maps to other shapes; examples that do not
see each other.
"""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit

from vdm_jax.nets import NETS, Network, as_network, network, ops
from vdm_jax.nets.adapters import complete
from vdm_jax.nets.unet import from_patches, to_patches
from vdm_jax.training.optimizer import OPTIMIZERS, make_optimizer

SMALL = {
    "mlp": {"width": 16, "depth": 2, "dropout": 0.5},
    "unet": {"channels": (8, 12), "blocks": 1, "dropout": 0.5},
    "vdm_unet": {"channels": 8, "blocks": 1, "fourier": (0, 1), "dropout": 0.5},
}
IMAGES = [(28, 28, 1), (8, 8, 1), (32, 32, 3), (7, 5, 2)]
SHAPES = {"mlp": [(5,), (), (3, 4), (8, 8, 1)], "unet": IMAGES, "vdm_unet": IMAGES}
CASES = [(name, shape) for name in SHAPES for shape in SHAPES[name]]
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
PAIRS = [(name, *pair) for name, (_, pairs) in MAPS.items() for pair in pairs]
ONE_SHAPE = {name: shapes[-1] for name, shapes in SHAPES.items()}


@cache
def small(name, dtype="float32"):
    """A small network and its compiled `apply`, shared by the tests."""
    net = NETS[name](**SMALL[name], dtype=dtype)
    return net, jit(net.apply)


def inputs(shape, batch=3, seed=0):
    """x_t, γ_t and a second input of a batch."""
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((batch, *shape)), rng.uniform(-13, 5, batch)
    return [jnp.asarray(a, jnp.float32) for a in (*arrays, rng.standard_normal((batch, *shape)))]


def params_of(net, shape, *, extra=False):
    """Parameters of the network's shapes with nothing left at zero; no computation of its own."""
    xt, gamma_t, second = inputs(shape, 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), xt, gamma_t, second if extra else None)
    rng = np.random.default_rng(1)

    def fill(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def largest(change):
    """Of each example."""
    return np.abs(change).reshape(len(change), -1).max(-1)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_every_row_has_shapes_to_be_tested_on():
    assert set(SMALL) == set(SHAPES) and set(NETS) == set(SMALL) | set(MAPS)


@pytest.mark.parametrize("name", SMALL)
def test_output_is_zero_at_the_start_in_the_shape_and_type_of_the_data(name):
    net, _ = small(name)
    xt, gamma_t, extra = inputs(ONE_SHAPE[name])

    @jit
    def start(key):
        params = net.init(key, xt, gamma_t, extra)
        return params, net.apply(params, xt, gamma_t, extra)

    # a generator that compiles fast
    first, second = (jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 1))
    (params, output), (other, _) = start(first), start(second)
    assert (output.shape, output.dtype) == (xt.shape, xt.dtype)
    np.testing.assert_array_equal(output, 0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    differ = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, other)
    assert any(jax.tree.leaves(differ))  # the key is used


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
@pytest.mark.slow
def test_output_has_any_admissible_shape_and_hears_of_gamma_and_data(name, shape):
    net, apply = small(name)
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape)
    output = apply(params, xt, gamma_t)
    assert (output.shape, output.dtype) == (xt.shape, jnp.float32)
    assert np.all(np.isfinite(output))
    for moved in (apply(params, xt, gamma_t + 0.5), apply(params, xt + 0.1, gamma_t)):
        assert np.all(largest(moved - output) > 1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_is_finite_and_reaches_every_parameter_and_the_second_input(name):
    net, _ = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape, extra=True)
    xt, gamma_t, extra = inputs(shape)

    @jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, xt, extra):
        return jnp.sum(jnp.square(net.apply(params, xt, gamma_t, extra) - 1))

    found = gradient(params, xt, extra)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.all(np.isfinite(leaf)), path
        is_key_bias = "key" in str(path) and "bias" in str(path)  # a softmax does not see it
        assert is_key_bias or np.any(np.abs(leaf) > 0), path


FAST = {  # settings that change what a U-Net keeps and compiles, and none of its numbers
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
    """The parameters of single blocks put where the tree `like` has loops over them."""
    single = [int(name.removeprefix("block_")) for name in like if name.startswith("block_")]
    blocks = sum(name.startswith("block_") for name in params)
    numbers = iter(sorted(set(range(blocks)) - set(single)))
    found = {name: params[name] for name in like if name in params}
    loops = [name for name in like if name not in found]
    down, up = (sorted(name for name in loops if name.startswith(way)) for way in ("down", "up"))
    for name in [*down, *reversed(up)]:
        count = len(jax.tree.leaves(like[name])[0])
        mine = [next(numbers) for _ in range(count)][:: -1 if name in up else 1]
        found[name] = {
            part: jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *[params[f"{part}_{i}"] for i in mine]
            )
            for part in like[name]
        }
    return found


@cache
def deep(name):
    """Parameters of a U-Net, what it gives, and the words of its program."""
    net = NETS[name](**DEEP[name])
    params = params_of(net, ONE_SHAPE[name])
    return params, *evaluate(net, params, ONE_SHAPE[name])


def norm(*leaves):
    return float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in leaves)))


def evaluate(net, params, shape):
    """((gradients, output), words)."""
    xt, gamma_t, _ = inputs(shape)

    def loss(params):
        output = net.apply(params, xt, gamma_t, None, jax.random.split(jax.random.key(5), len(xt)))
        return jnp.sum(jnp.square(output)), output

    gradients = jax.grad(loss, has_aux=True)
    return jit(gradients)(params), str(jax.make_jaxpr(gradients)(params))


@pytest.mark.parametrize(
    ("name", "fast"),
    [*(("vdm_unet", fast) for fast in FAST), ("unet", "full"), ("unet", "scan, save_conv")],
    ids=str,
)
@pytest.mark.slow
def test_a_fast_form_changes_nothing(name, fast):
    """The same output and gradients, from a program that keeps less or is shorter."""
    params, (expected, output), plain_words = deep(name)
    net, shape = NETS[name](**DEEP[name], **FAST[fast]), ONE_SHAPE[name]
    like = params_of(net, shape)
    if "scan" in fast:
        params, expected = in_loops(params, like), in_loops(expected, like)
    assert jax.tree.structure(like) == jax.tree.structure(params)

    (found, same), words = evaluate(net, params, shape)
    assert norm(same - output) < 1e-5 * norm(output)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        difference, size = norm(a - b), norm(b)
        # of a leaf by itself, or where all of it is rounding (a bias that a softmax does not see), of the whole
        assert difference < 1e-5 * max(size, 1e-3 * norm(*jax.tree.leaves(expected))), path
    assert ("remat" in words) == (fast != "scan") and "remat" not in plain_words
    assert ("scan" in words) == ("scan" in fast)


@pytest.mark.slow
def test_a_loop_that_keeps_less_takes_less_memory():
    """Temporary memory of the compiled gradient, for a batch whose activations outweigh the weights."""

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
def test_an_update_of_a_looped_network_is_that_of_its_blocks(name):
    """Weights decay, biases and scales do not, though a loop stacks them; each block's kernels are its own."""
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
    found = update(in_loops(gradients, like), in_loops(params, like))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_convolutions_refuse_what_they_would_ignore():
    x = jnp.ones((1, 8, 8, 2))
    for setting in ({"kernel_dilation": (2, 2)}, {"feature_group_count": 2}):
        with pytest.raises(ValueError, match="expected neither dilation nor groups, found"):
            ops.Conv(2, **setting).init(jax.random.key(0), x)


@pytest.mark.parametrize("name", DEEP)
def test_the_program_of_a_looped_network_does_not_grow_with_its_depth(name):
    def equations(blocks):
        net = NETS[name](**DEEP[name] | {"blocks": blocks}, scan=True)
        xt, gamma_t, _ = inputs(ONE_SHAPE[name])
        params = jax.eval_shape(net.init, jax.random.key(0), xt, gamma_t)
        return len(jax.make_jaxpr(net.apply)(params, xt, gamma_t).eqns)

    assert equations(8) == equations(4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (3, 4)], ids=str)
def test_gradients_of_convolutions_are_those_of_jax(size, strides, padding):
    """To the last bit, in a loop, where JAX's own are slow on CPUs, and outside of one."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    def ours(x, kernel):
        return ops.convolve(x, kernel, strides, padding)

    def gradients(convolve):
        return jax.grad(lambda *of: jnp.sum(jnp.square(convolve(*of))), (0, 1))

    def last_of_a_loop(x, kernel):
        found = jax.lax.map(lambda i: gradients(ours)(x + 0 * i, kernel), jnp.arange(2.0))
        return jax.tree.map(lambda leaf: leaf[-1], found)

    assert "custom_vjp" in str(jax.make_jaxpr(ours)(x, kernel))
    expected = jit(gradients(plain))(x, kernel)
    for found in (jit(gradients(ours)), jit(last_of_a_loop)):
        for a, b in zip(found(x, kernel), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("as_users")
def test_attention_is_cudnns_only_where_it_exists(monkeypatch):
    """Half precision, heads of up to 128 channels in eights, Ampere or newer."""
    asked = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *of, implementation: asked.append(implementation)
    )
    cases = [
        (8, "bfloat16"),
        (128, "bfloat16"),
        (256, "bfloat16"),
        (12, "bfloat16"),
        (8, "float32"),
    ]
    for here in (False, True):
        monkeypatch.setattr(ops, "_has_cudnn_attention", lambda here=here: here)
        for channels, dtype in cases:
            ops.attend(*[jnp.zeros((1, 4, 1, channels), dtype)] * 3)
    assert asked == ["xla"] * 5 + ["cudnn"] * 2 + ["xla"] * 3


@pytest.mark.parametrize("name", SMALL)
def test_examples_do_not_see_each_other(name):
    net, apply = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape, 49)
    together = apply(params, xt, gamma_t)
    assert together.shape == (49, *shape)
    alone = jnp.concatenate([apply(params, xt[i : i + 1], gamma_t[i : i + 1]) for i in (0, 48)])
    assert_same(together[jnp.array([0, 48])], alone)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_in_it_and_keeps_parameters_and_output_float32(name):
    shape = ONE_SHAPE[name]
    (_, apply), (half, apply_half) = small(name), small(name, "bfloat16")
    params = params_of(half, shape)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    xt, gamma_t, _ = inputs(shape)
    exact, rounded = (np.asarray(f(params, xt, gamma_t)) for f in (apply, apply_half))
    assert rounded.dtype == np.float32
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.1


def test_defaults_of_vdm_unet_have_30_6_million_parameters():
    net = NETS["vdm_unet"]()
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs((32, 32, 3), 1)[:2])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == 30.6


# --- maps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "inner", "outer"), PAIRS, ids=str)
def test_a_map_has_the_shape_it_is_asked_for_and_hears_of_its_input(name, inner, outer):
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
def test_a_map_starts_away_from_zero_unless_told(name):
    """An encoder and a decoder that are both zero would have no gradient."""
    settings, pairs = MAPS[name]
    inner, outer = pairs[1]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *inner)), jnp.float32)
    wanted = {"zero": False} if name == "mlp" else {}
    net = NETS[name](outputs=outer, **settings, **wanted)
    output = jit(lambda key: net.apply(net.init(key, x), x))(jax.random.key(0))
    assert np.all(largest(output) > 1e-3)
    if name == "mlp":
        net = NETS[name](outputs=outer, **settings)
        assert np.all(jit(lambda key: net.apply(net.init(key, x), x))(jax.random.key(0)) == 0)


@pytest.mark.parametrize(
    ("name", "inner", "outer"), [("conv_encoder", (8, 8), (3,)), ("conv_decoder", (3,), (8, 2))]
)
def test_a_convolutional_map_says_which_images_it_takes(name, inner, outer):
    net = NETS[name](outputs=outer)
    with pytest.raises(ValueError, match=rf"{name}: expected images H×W×C, found shape"):
        net.init(jax.random.key(0), jnp.zeros((1, *inner)))


# --- dropout -----------------------------------------------------------------------------------------


def test_a_dropout_mask_depends_on_its_own_key_and_layer_alone():
    x, keys = jnp.ones((5, 400)), jax.random.split(jax.random.key(0), 5)
    drop = jit(network.dropout, static_argnames=("rate", "layer"))
    masked = drop(x, keys, rate=0.25, layer=3)
    for chosen in ([2], [4, 2], [2, 2, 2]):  # another batch, other neighbours
        chosen = jnp.array(chosen)
        found = drop(x[chosen], keys[chosen], rate=0.25, layer=3)
        np.testing.assert_array_equal(found, masked[chosen])
    values, counts = np.unique(masked, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / masked.size - 0.25) < 0.04
    assert np.any(masked[0] != masked[1])
    assert np.any(drop(x, keys, rate=0.25, layer=4) != masked)
    for off in (drop(x, None, rate=0.25, layer=3), drop(x, keys, rate=0.0, layer=3)):
        np.testing.assert_array_equal(off, x)


@pytest.mark.parametrize("name", SMALL)
def test_networks_drop_by_example_and_only_with_keys(name):
    net, apply = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape)
    keys = jax.random.split(jax.random.key(0), 3)
    dropped = apply(params, xt, gamma_t, None, keys)
    assert np.all(largest(dropped - apply(params, xt, gamma_t)) > 1e-3)
    # an example's mask is its own: other neighbours, another place in the batch, the same output
    back = jnp.array([2, 1, 0])
    assert_same(apply(params, xt[back], gamma_t[back], None, keys[back]), dropped[back])
    other = apply(params, xt, gamma_t, None, keys.at[0].set(jax.random.key(9)))
    assert largest(other - dropped)[0] > 1e-3
    assert_same(other[1:], dropped[1:])


# --- patches -----------------------------------------------------------------------------------------


def test_patches_are_squares_of_pixels_and_undone():
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


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.5}, "dropout: expected a number in \\[0, 1\\), found 1.5"),
        ({"dropout": 1.0}, "found 1.0"),
        ({"dropout": -0.1}, "found -0.1"),
        ({"dtype": "bfloat17"}, "dtype: unknown name 'bfloat17'; did you mean 'bfloat16'"),
    ],
    ids=str,
)
def test_wrong_settings_of_any_network_are_named(name, settings, message):
    outputs = {} if name in SMALL else {"outputs": (2, 3)}
    with pytest.raises(ValueError, match=message):
        NETS[name](**settings, **outputs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "conv_encoder",
            {"outputs": (3,), "channels": ()},
            "channels: expected whole numbers",
        ),
        (
            "conv_decoder",
            {"outputs": (8, 8, 1), "blocks": 0},
            "blocks: expected whole numbers",
        ),
        ("mlp", {"width": 0}, "width: expected whole numbers of at least 1, found 0"),
        ("mlp", {"depth": -1}, "depth: expected whole numbers of at least 1, found -1"),
        (
            "unet",
            {"channels": (8, 0)},
            "channels: expected whole numbers of at least 1, found \\(8, 0\\)",
        ),
        ("unet", {"channels": 3}, "channels: expected a list, found 3"),
        ("unet", {"attention": 1}, "attention: expected a list, found 1"),
        ("unet", {"channels": ()}, "channels: expected whole numbers of at least 1, found \\(\\)"),
        ("unet", {"blocks": 0}, "blocks: expected whole numbers of at least 1, found 0"),
        ("unet", {"patch": 0}, "patch: expected whole numbers of at least 1, found 0"),
        ("unet", {"attention": (3,)}, "attention: expected levels 0..2, found \\(3,\\)"),
        ("unet", {"fourier": (8, 7)}, "fourier: expected \\(first, last\\)"),
        ("unet", {"remat": "fulll"}, "remat: unknown name 'fulll'; did you mean 'full'"),
        ("vdm_unet", {"scan": "yes"}, "scan: expected True or False, found 'yes'"),
        ("vdm_unet", {"channels": -8}, "channels: expected whole numbers"),
        ("vdm_unet", {"fourier": (8, 7)}, "found \\(8, 7\\)"),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_wrong_sizes_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        NETS[name](**settings)


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (8, 8)), ({}, (5,)), ({}, (2, 8, 8, 1)), ({"patch": 2}, (7, 8, 1))]
)
def test_a_convolutional_network_says_which_data_it_takes(settings, shape):
    net = NETS["unet"](**SMALL["unet"] | settings)
    with pytest.raises(ValueError, match=r"expected data H×W×C .*found shape \(") as caught:
        net.init(jax.random.key(0), *inputs(shape, 1)[:2])
    assert "\n" not in str(caught.value)


# --- own networks ------------------------------------------------------------------------------------


class Own(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        return nn.Dense(xt.shape[-1])(jnp.concatenate([xt, gamma_t[:, None]], -1))


def test_a_pair_of_functions_of_anything_is_called_with_what_a_denoiser_has():
    """As are the two methods of a Linen module, whose pair is the module."""
    xt, gamma_t, _ = inputs((4,))
    module, key = Own(), jax.random.key(0)

    @jit
    def run():
        found = []
        for given in (module, (module.init, module.apply)):
            own = as_network(given, (4,))
            params = own.init(key, xt, gamma_t, None)
            found.append(own.apply(params, xt, gamma_t, None, None))
        return found

    np.testing.assert_array_equal(*run())
    seen = []

    def init(key, *others):
        seen.append(others)
        return {}

    as_network((init, lambda params, *others: others[0]), (4,))
    assert [len(others) for others in seen] == [2]


def test_a_network_is_completed_where_it_lacks_arguments_and_else_is_as_it_is():
    whole = NETS["mlp"](width=4, depth=1)
    assert complete(whole, (4,)) == whole
    xt, gamma_t, extra = inputs((4,))
    own = Network(lambda key: {}, lambda params, xt, gamma_t, *, extra: xt + extra)
    found = complete(own, (4,)).apply({}, xt, gamma_t, extra, None)
    np.testing.assert_array_equal(found, xt + extra)
    # all five are passed on in their order, whatever their names
    own = Network(lambda *of: {}, lambda params, *of: of[0] + (0 if of[2] is None else of[2]))
    found = complete(own, (4,)).apply({}, xt, gamma_t, extra, None)
    np.testing.assert_array_equal(found, xt + extra)
    module = Own()
    with pytest.raises(ValueError, match=r"^cannot be applied to xt .*TypeError") as caught:
        complete(Network(module.init, module.apply), (4,))
    assert "\n" not in str(caught.value)
