"""Networks: zero at the start, conditioned on γ, and every example computed by itself."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import MAPS, ONE_SHAPE, SHAPES, SMALL, assert_same, inputs, largest, params_of, small
from oracles import jit

from vdm_jax.nets import NETS, Network, as_network, network
from vdm_jax.nets.adapters import complete

CASES = [(name, shape) for name in SHAPES for shape in SHAPES[name]]


def test_every_row_has_test_shapes():
    assert set(SMALL) == set(SHAPES) and set(NETS) == set(SMALL) | set(MAPS)


@pytest.mark.parametrize("name", SMALL)
def test_initial_output_is_zero(name):
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
def test_output_depends_on_gamma_and_data(name, shape):
    net, apply = small(name)
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape)
    output = apply(params, xt, gamma_t)
    assert (output.shape, output.dtype) == (xt.shape, jnp.float32)
    assert np.all(np.isfinite(output))
    for moved in (apply(params, xt, gamma_t + 0.5), apply(params, xt + 0.1, gamma_t)):
        assert np.all(largest(moved - output) > 1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter_and_input(name):
    net, _ = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape, extra=True)
    xt, gamma_t, extra = inputs(shape)

    @jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, xt, extra):
        return jnp.sum(jnp.square(net.apply(params, xt, gamma_t, extra) - 1))

    gradients = gradient(params, xt, extra)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        is_key_bias = "key" in str(path) and "bias" in str(path)  # a softmax does not see it
        assert is_key_bias or np.any(np.abs(leaf) > 0), path


@pytest.mark.parametrize("name", SMALL)
def test_examples_are_independent(name):
    net, apply = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape, 49)
    together = apply(params, xt, gamma_t)
    assert together.shape == (49, *shape)
    alone = jnp.concatenate([apply(params, xt[i : i + 1], gamma_t[i : i + 1]) for i in (0, 48)])
    assert_same(together[jnp.array([0, 48])], alone)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_keeps_parameters_and_output_float32(name):
    shape = ONE_SHAPE[name]
    (_, apply), (half, apply_half) = small(name), small(name, "bfloat16")
    params = params_of(half, shape)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    xt, gamma_t, _ = inputs(shape)
    exact, rounded = (np.asarray(f(params, xt, gamma_t)) for f in (apply, apply_half))
    assert rounded.dtype == np.float32
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.1


# --- dropout -----------------------------------------------------------------------------------------


def test_dropout_mask_depends_only_on_key_and_layer():
    x, keys = jnp.ones((5, 400)), jax.random.split(jax.random.key(0), 5)
    drop = jit(network.dropout, static_argnames=("rate", "layer"))
    masked = drop(x, keys, rate=0.25, layer=3)
    for chosen in ([2], [4, 2], [2, 2, 2]):  # another batch, other neighbours
        chosen = jnp.array(chosen)
        dropped = drop(x[chosen], keys[chosen], rate=0.25, layer=3)
        np.testing.assert_array_equal(dropped, masked[chosen])
    values, counts = np.unique(masked, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / masked.size - 0.25) < 0.04
    assert np.any(masked[0] != masked[1])
    assert np.any(drop(x, keys, rate=0.25, layer=4) != masked)
    for off in (drop(x, None, rate=0.25, layer=3), drop(x, keys, rate=0.0, layer=3)):
        np.testing.assert_array_equal(off, x)


@pytest.mark.parametrize("name", SMALL)
def test_dropout_needs_keys_and_is_per_example(name):
    net, apply = small(name)
    shape = ONE_SHAPE[name]
    params = params_of(net, shape)
    xt, gamma_t, _ = inputs(shape)
    keys = jax.random.split(jax.random.key(0), 3)
    dropped = apply(params, xt, gamma_t, None, keys)
    assert np.all(largest(dropped - apply(params, xt, gamma_t)) > 1e-3)
    # neither the neighbours of an example nor its place in the batch change its mask
    back = jnp.array([2, 1, 0])
    assert_same(apply(params, xt[back], gamma_t[back], None, keys[back]), dropped[back])
    other = apply(params, xt, gamma_t, None, keys.at[0].set(jax.random.key(9)))
    assert largest(other - dropped)[0] > 1e-3
    assert_same(other[1:], dropped[1:])


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
def test_wrong_settings_are_reported(name, settings, message):
    outputs = {} if name in SMALL else {"outputs": (2, 3)}
    with pytest.raises(ValueError, match=message):
        NETS[name](**settings, **outputs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "conv_encoder",
            {"outputs": (3,), "channels": ()},
            "channels: expected",
        ),
        (
            "conv_decoder",
            {"outputs": (8, 8, 1), "blocks": 0},
            "blocks: expected",
        ),
        ("mlp", {"width": 0}, "width.*: expected .*found 0"),
        ("mlp", {"depth": -1}, "depth.*: expected .*found -1"),
        (
            "unet",
            {"channels": (8, 0)},
            "channels\\[1\\]: expected .*found 0",
        ),
        ("unet", {"channels": 3}, "channels: expected a list, found 3"),
        ("unet", {"attention": 1}, "attention: expected a list, found 1"),
        ("unet", {"channels": ()}, "channels: expected at least 1, found none"),
        ("unet", {"blocks": 0}, "blocks.*: expected .*found 0"),
        ("unet", {"patch": 0}, "patch.*: expected .*found 0"),
        ("unet", {"attention": (3,)}, "attention: expected levels 0..2, found \\(3,\\)"),
        ("unet", {"fourier": (8, 7)}, "fourier: expected \\(first, last\\)"),
        ("unet", {"remat": "fulll"}, "remat: unknown name 'fulll'; did you mean 'full'"),
        ("vdm_unet", {"scan": "yes"}, "scan: expected True or False, found 'yes'"),
        ("vdm_unet", {"channels": -8}, "channels.*: expected"),
        ("vdm_unet", {"fourier": (8, 7)}, "found \\(8, 7\\)"),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_wrong_sizes_are_reported(name, settings, message):
    with pytest.raises(ValueError, match=message):
        NETS[name](**settings)


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (8, 8)), ({}, (5,)), ({}, (2, 8, 8, 1)), ({"patch": 2}, (7, 8, 1))]
)
def test_convolutional_network_refuses_other_shapes(settings, shape):
    net = NETS["unet"](**SMALL["unet"] | settings)
    with pytest.raises(ValueError, match=r"expected data H×W×C .*found shape \(") as caught:
        net.init(jax.random.key(0), *inputs(shape, 1)[:2])
    assert "\n" not in str(caught.value)


# --- user networks -----------------------------------------------------------------------------------


class UserNetwork(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        return nn.Dense(xt.shape[-1])(jnp.concatenate([xt, gamma_t[:, None]], -1))


def test_function_pair_equals_its_module():
    """A Linen module and the pair of its two methods are the same network."""
    xt, gamma_t, _ = inputs((4,))
    module, key = UserNetwork(), jax.random.key(0)

    @jit
    def run():
        outputs = []
        for source in (module, (module.init, module.apply)):
            completed = as_network(source, (4,))
            params = completed.init(key, xt, gamma_t, None)
            outputs.append(completed.apply(params, xt, gamma_t, None, None))
        return outputs

    np.testing.assert_array_equal(*run())
    seen = []

    def init(key, *others):
        seen.append(others)
        return {}

    as_network((init, lambda params, *others: others[0]), (4,))
    assert [len(others) for others in seen] == [2]


def test_missing_arguments_are_filled_in():
    mlp = NETS["mlp"](width=4, depth=1)
    assert complete(mlp, (4,)) == mlp
    xt, gamma_t, extra = inputs((4,))
    net = Network(lambda key: {}, lambda params, xt, gamma_t, *, extra: xt + extra)
    output = complete(net, (4,)).apply({}, xt, gamma_t, extra, None)
    np.testing.assert_array_equal(output, xt + extra)
    # all five are passed on in their order, whatever their names
    net = Network(
        lambda *arguments: {},
        lambda params, *arguments: arguments[0] + (0 if arguments[2] is None else arguments[2]),
    )
    output = complete(net, (4,)).apply({}, xt, gamma_t, extra, None)
    np.testing.assert_array_equal(output, xt + extra)
    module = UserNetwork()
    with pytest.raises(ValueError, match=r"^cannot be applied to xt .*TypeError") as caught:
        complete(Network(module.init, module.apply), (4,))
    assert "\n" not in str(caught.value)
