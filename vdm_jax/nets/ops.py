"""Two operations whose fastest form depends on the device: convolution and attention.

Convolution on CPUs: JAX derives the gradients of a convolution as convolutions with exchanged axes. XLA runs
these tens of times more slowly inside a loop than outside, even in a loop of length one. (Scanned blocks and
several steps per dispatch are loops.) Written as ordinary convolutions, channels last, the gradients are as
fast inside a loop as outside, and bit-identical.

Attention on NVIDIA GPUs: cuDNN's flash attention does not store the positions × positions matrix. It supports
some types and sizes only.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import PrecisionLike, conv_general_dilated, padtype_to_pads

from vdm_jax.typing import Array

SAVED = "convolution"
"""Name of the outputs of convolutions, which the remat policy `save_conv` keeps."""

NHWC = ("NHWC", "HWIO", "NHWC")
LARGEST_HEAD = 128  # channels of a head in cuDNN's attention and its gradient, in multiples of 8


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str,
    dimension_numbers: object = None,
    precision: PrecisionLike = None,
    **others: object,
) -> Array:
    """Convolve [B, H, W, C] with a kernel [h, w, C, O] to [B, H', W', O], with the arguments that Flax passes.

    JAX's default backend at tracing time decides on the form. The form for CPUs has no forward-mode derivative
    (`jax.jvp`), because it is a `custom_vjp`; forward over reverse works.

    Raises:
      ValueError: the arguments have dilations or groups, which no network here uses.
    """
    del dimension_numbers  # channels last
    # the values for no dilation and for one group
    neutral = {None, 1, (1,) * (kernel.ndim - 2)}
    unknown = {name: value for name, value in others.items() if value not in neutral}
    if unknown:
        raise ValueError(f"convolve: expected neither dilation nor groups, found {unknown}")
    run = FORMS["loop-safe" if jax.default_backend() == "cpu" else "plain"]
    return checkpoint_name(run(tuple(strides), padding, precision, x, kernel), SAVED)


Conv = partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=convolve)
"""The convolution layer of all networks here: 3×3, padding "SAME"."""


def _plain(
    strides: Sequence[int], padding: str, precision: PrecisionLike, x: Array, kernel: Array
) -> Array:
    """Convolve with JAX's own gradients."""
    return conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=NHWC, precision=precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loop_safe(
    strides: Sequence[int], padding: str, precision: PrecisionLike, x: Array, kernel: Array
) -> Array:
    """Convolve with gradients that XLA runs fast on CPUs inside loops, too."""
    return _plain(strides, padding, precision, x, kernel)


def _forward(
    strides: Sequence[int], padding: str, precision: PrecisionLike, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _plain(strides, padding, precision, x, kernel), (x, kernel)


def _backward(
    strides: Sequence[int],
    padding: str,
    precision: PrecisionLike,
    saved: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    """Return both gradients as channels-last convolutions, whose operands are transposed beforehand."""
    x, kernel = saved
    options = {"dimension_numbers": NHWC, "precision": precision}
    pads = padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    dx_pads, dw_pads = [], []
    sizes = zip(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strides, pads, strict=True)
    for size, width, outputs, stride, (low, _) in sizes:
        dilated = (outputs - 1) * stride + 1
        dx_pads.append((width - 1 - low, size + low - dilated))
        dw_pads.append((low, width - 1 + dilated - size - low))
    # dx: dy, dilated by the strides, with the flipped kernel whose channels are exchanged
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = conv_general_dilated(dy, flipped, (1, 1), dx_pads, lhs_dilation=strides, **options)
    # dw: x with dy, summed over the batch, which takes the place of the channels
    by_channel, by_batch = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    dw = conv_general_dilated(
        by_channel, by_batch, (1, 1), dw_pads, rhs_dilation=strides, **options
    )
    return dx, dw.transpose(1, 2, 0, 3)


_loop_safe.defvjp(_forward, _backward)

FORMS = {"plain": _plain, "loop-safe": _loop_safe}
"""name -> (strides, padding, precision, x, kernel) -> the convolution; see `experiments/convolutions.py`."""


def attend(query: Array, key: Array, value: Array) -> Array:
    """Return the softmax attention over positions, of arrays [B, N, heads, C].

    cuDNN computes it if JAX's first device has cuDNN's attention for this type and head size.
    """
    channels = query.shape[-1]
    fits = query.dtype == jnp.bfloat16 and channels % 8 == 0 and channels <= LARGEST_HEAD
    implementation = "cudnn" if fits and _has_cudnn_attention() else "xla"
    strict = jax.config.jax_numpy_dtype_promotion == "strict"  # type: ignore[attr-defined]
    if implementation == "xla" and strict:
        # JAX's own attention mixes bfloat16 and float32, also in its derivatives
        wide = [array.astype(jnp.float32) for array in (query, key, value)]
        return jax.nn.dot_product_attention(*wide).astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def _has_cudnn_attention() -> bool:
    """Return True if JAX's first device is an NVIDIA GPU of the Ampere generation or newer."""
    device = jax.devices()[0]
    return device.device_kind.startswith("NVIDIA") and float(device.compute_capability) >= 8
