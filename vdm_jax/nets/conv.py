"""Convolutional encoder and decoder: images to vectors and back, at half the resolution per level."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.checks import check_sizes
from vdm_jax.nets.layers import ResnetBlock, norm
from vdm_jax.nets.network import Network, as_tuple, check_settings, from_linen
from vdm_jax.nets.ops import Conv
from vdm_jax.typing import Array, Keys


class EncoderModule(nn.Module):
    """Residual blocks at falling resolution, and a dense layer from all positions to the outputs."""

    channels: tuple[int, ...]
    blocks: int
    dropout: float
    dtype: str
    outputs: tuple[int, ...]

    @nn.compact
    def __call__(
        self, x: Array, gamma_t: Array | None, extra: Array | None, keys: Keys | None
    ) -> Array:
        _check_image("conv_encoder", x.shape[1:], gamma_t, extra)
        layer = 0
        h = Conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for level, channels in enumerate(self.channels):
            if level > 0:
                h = Conv(channels, strides=(2, 2), dtype=self.dtype, name=f"down_{level}")(h)
            for _ in range(self.blocks):
                block = ResnetBlock(channels, self.dropout, self.dtype, name=f"block_{layer}")
                h, layer = block(h, None, keys, layer), layer + 1
        h = nn.silu(norm(h, "norm_out").astype(jnp.float32)).reshape(x.shape[0], -1)
        out = nn.Dense(math.prod(self.outputs), dtype=jnp.float32, name="out")(h)
        return out.reshape(-1, *self.outputs).astype(x.dtype)


class DecoderModule(nn.Module):
    """A dense layer from a vector to a small image, and residual blocks at rising resolution."""

    channels: tuple[int, ...]
    blocks: int
    dropout: float
    dtype: str
    outputs: tuple[int, ...]

    @nn.compact
    def __call__(
        self, x: Array, gamma_t: Array | None, extra: Array | None, keys: Keys | None
    ) -> Array:
        _check_image("conv_decoder", self.outputs, gamma_t, extra)
        height, width, *rest = self.outputs
        # rounded up, as a convolution of stride 2 does: any height and width can be decoded
        sizes = [(height, width)]
        for _ in self.channels[1:]:
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        layer, batch = 0, x.shape[0]
        h = nn.Dense(math.prod(sizes[-1]) * self.channels[-1], dtype=self.dtype, name="in")(
            x.reshape(batch, -1)
        )
        h = h.reshape(batch, *sizes[-1], self.channels[-1])
        for level, channels in reversed(list(enumerate(self.channels))):
            if h.shape[1:3] != sizes[level]:
                size = (batch, *sizes[level], h.shape[-1])
                h = jax.image.resize(h, size, "nearest")
                h = Conv(channels, dtype=self.dtype, name=f"up_{level}")(h)
            for _ in range(self.blocks):
                block = ResnetBlock(channels, self.dropout, self.dtype, name=f"block_{layer}")
                h, layer = block(h, None, keys, layer), layer + 1
        h = nn.silu(norm(h, "norm_out").astype(jnp.float32))
        out = Conv(math.prod(rest), dtype=jnp.float32, name="conv_out")(h)
        return out.reshape(batch, *self.outputs).astype(x.dtype)


def conv_encoder(
    *,
    outputs: Sequence[int],
    channels: Sequence[int] = (32, 64),
    blocks: int = 1,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> Network:
    """Build an encoder of residual blocks and strided convolutions, from images H×W×C to another shape.

    Args:
      outputs: shape of one example's output.
      channels: of each level; every level after the first halves the resolution.
      blocks: residual blocks of each level.
      dropout, dtype: as in `unet`.

    Raises:
      ValueError: here for a wrong setting, and at the first call for data that are not H×W×C.
    """
    return _conv(EncoderModule, outputs, channels, blocks, dropout, dtype)


def conv_decoder(
    *,
    outputs: Sequence[int],
    channels: Sequence[int] = (32, 64),
    blocks: int = 1,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> Network:
    """Build the decoder to an image of shape `outputs` = H×W×….

    Its arguments are those of `conv_encoder`. It goes through `channels` from the last to the first.
    """
    return _conv(DecoderModule, outputs, channels, blocks, dropout, dtype)


def _conv(
    module: type[EncoderModule] | type[DecoderModule],
    outputs: Sequence[int],
    channels: Sequence[int],
    blocks: int,
    dropout: float,
    dtype: str,
) -> Network:
    """Check the settings of an encoder or decoder, and build its `Network`."""
    outputs, channels = check_sizes(outputs, "outputs"), as_tuple("channels", channels)
    check_settings(dropout=dropout, dtype=dtype, channels=channels, blocks=blocks)
    return from_linen(
        module(channels=channels, blocks=blocks, dropout=dropout, dtype=dtype, outputs=outputs)
    )


def _check_image(
    name: str, shape: tuple[int, ...], gamma_t: Array | None, extra: Array | None
) -> None:
    """Raise ValueError unless the shape is that of an image and there are no inputs of a denoiser."""
    if gamma_t is not None or extra is not None:
        raise ValueError(f"{name}: is no denoiser; it takes neither γ nor the estimate of a base")
    if len(shape) < 3:
        raise ValueError(f"{name}: expected images H×W×C, found shape {shape}")
