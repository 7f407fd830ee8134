"""The two operations whose best form depends on where they run, each chosen here and nowhere else.

Convolutions on a CPU: XLA runs the gradients that JAX derives for a convolution tens of times slower inside a
loop (scanned blocks, several steps a dispatch) than outside of one, even in a loop of length one, for they are
convolutions with exchanged axes. Written as ordinary ones, channels last, they cost the same everywhere and
give the same numbers. Attention on an NVIDIA GPU: cuDNN's flash attention does not hold the matrix of positions
× positions, for the types and sizes that it has.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import conv_general_dilated, padtype_to_pads

SAVED = "convolution"
"""The name of what the remat policy `save_conv` keeps."""

NHWC = ("NHWC", "HWIO", "NHWC")
LARGEST_HEAD = 128  # of cuDNN's attention and its gradient, in multiples of 8


def convolve(x, kernel, strides, padding, dimension_numbers=None, precision=None, **others):
    """A convolution as Flax calls it, [B, H, W, C] with a kernel [h, w, C, O] -> [B, H', W', O].

    On CPUs it has no forward-mode derivative (`jax.jvp`); forward over reverse is fine. Which form it takes is
    decided by JAX's default backend when it is traced.

    Raises:
      ValueError: dilations or groups, which no network here has.
    """
    del dimension_numbers  # channels last
    plain = {None, 1, (1,) * (kernel.ndim - 2)}
    unknown = {name: value for name, value in others.items() if value not in plain}
    if unknown:
        raise ValueError(f"convolve: expected neither dilation nor groups, found {unknown}")
    run = FORMS["loop-safe" if jax.default_backend() == "cpu" else "plain"]
    return checkpoint_name(run(tuple(strides), padding, precision, x, kernel), SAVED)


Conv = partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=convolve)
"""The convolution of all networks here: 3×3, "SAME"."""


def _plain(strides, padding, precision, x, kernel):
    return conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=NHWC, precision=precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loop_safe(strides, padding, precision, x, kernel):
    return _plain(strides, padding, precision, x, kernel)


def _forward(strides, padding, precision, x, kernel):
    return _plain(strides, padding, precision, x, kernel), (x, kernel)


def _backward(strides, padding, precision, saved, dy):
    """Both gradients as convolutions whose operands are transposed by themselves, before."""
    x, kernel = saved
    options = {"dimension_numbers": NHWC, "precision": precision}
    pads = padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    dx_pads, dw_pads = [], []
    sizes = zip(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strides, pads, strict=True)
    for size, width, outputs, stride, (low, _) in sizes:
        dilated = (outputs - 1) * stride + 1
        dx_pads.append((width - 1 - low, size + low - dilated))
        dw_pads.append((low, width - 1 + dilated - size - low))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = conv_general_dilated(dy, turned, (1, 1), dx_pads, lhs_dilation=strides, **options)
    by_channel, by_batch = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    dw = conv_general_dilated(
        by_channel, by_batch, (1, 1), dw_pads, rhs_dilation=strides, **options
    )
    return dx, dw.transpose(1, 2, 0, 3)


_loop_safe.defvjp(_forward, _backward)

FORMS = {"plain": _plain, "loop-safe": _loop_safe}
"""name -> (strides, padding, precision, x, kernel) -> the convolution; see `experiments/convolutions.py`."""


def attend(query, key, value):
    """Softmax attention over positions, [B, N, heads, C] each; cuDNN's where JAX's first device has it."""
    channels = query.shape[-1]
    fits = query.dtype == jnp.bfloat16 and channels % 8 == 0 and channels <= LARGEST_HEAD
    best = "cudnn" if fits and _has_cudnn_attention() else "xla"
    strict = jax.config.jax_numpy_dtype_promotion == "strict"  # type: ignore[attr-defined]
    if best == "xla" and strict:
        # JAX's own attention mixes bfloat16 and float32, also in its derivatives
        wide = [part.astype(jnp.float32) for part in (query, key, value)]
        return jax.nn.dot_product_attention(*wide).astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, implementation=best)


def _has_cudnn_attention() -> bool:
    device = jax.devices()[0]
    # Ampere or newer
    return device.device_kind.startswith("NVIDIA") and float(device.compute_capability) >= 8
