"""Convolutions and attention: the same numbers as JAX's own, by the kernel that suits the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit

from vdm_jax.nets import ops


def test_convolutions_refuse_dilation_and_groups():
    x = jnp.ones((1, 8, 8, 2))
    for setting in ({"kernel_dilation": (2, 2)}, {"feature_group_count": 2}):
        with pytest.raises(ValueError, match="expected neither dilation nor groups, found"):
            ops.Conv(2, **setting).init(jax.random.key(0), x)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (3, 4)], ids=str)
def test_convolution_gradients_equal_those_of_jax(size, strides, padding):
    """The gradients are bit-equal inside of a loop, where JAX's own are slow on CPUs, and outside."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    def ours(x, kernel):
        return ops.convolve(x, kernel, strides, padding)

    def gradients(convolve):
        return jax.grad(lambda *arguments: jnp.sum(jnp.square(convolve(*arguments))), (0, 1))

    def last_of_a_loop(x, kernel):
        stacked = jax.lax.map(lambda i: gradients(ours)(x + 0 * i, kernel), jnp.arange(2.0))
        return jax.tree.map(lambda leaf: leaf[-1], stacked)

    assert "custom_vjp" in str(jax.make_jaxpr(ours)(x, kernel))
    expected = jit(gradients(plain))(x, kernel)
    for differentiate in (jit(gradients(ours)), jit(last_of_a_loop)):
        for a, b in zip(differentiate(x, kernel), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("as_users")
def test_cudnn_attention_is_used_where_supported(monkeypatch):
    """cuDNN needs half precision, a multiple of 8 channels up to 128, and Ampere or newer."""
    implementations = []
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *arrays, implementation: implementations.append(implementation),
    )
    cases = [
        (8, "bfloat16"),
        (128, "bfloat16"),
        (256, "bfloat16"),
        (12, "bfloat16"),
        (8, "float32"),
    ]
    for supported in (False, True):
        monkeypatch.setattr(ops, "_has_cudnn_attention", lambda supported=supported: supported)
        for channels, dtype in cases:
            ops.attend(*[jnp.zeros((1, 4, 1, channels), dtype)] * 3)
    assert implementations == ["xla"] * 5 + ["cudnn"] * 2 + ["xla"] * 3
