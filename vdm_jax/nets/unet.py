"""The two U-Nets: flat (constant resolution, Kingma et al. 2021) and strided (for larger images).

Both are residual blocks with group norms, conditioned on γ, with skip connections between the two halves
and attention in the middle. They take any H×W×C with channels last.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.nets.blocks import ZEROS, ResnetBlock, norm
from vdm_jax.nets.network import (
    Network,
    as_tuple,
    check_settings,
    fourier_features,
    from_linen,
    gamma_features,
)


def to_patches(x, size: int):
    """[B, H, W, C] as [B, H/size, W/size, size²·C]: pixels of a patch become channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, size**2 * channels)


def from_patches(x, size: int):
    """The inverse of `to_patches`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2).swapaxes(2, 3)
    return x.reshape(batch, height * size, width * size, channels // size**2)


class Attention(nn.Module):
    """Self-attention over the positions, one head, zero at the start."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = norm(x, "norm").reshape(batch, height * width, channels)
        q, k, v = (
            nn.Dense(channels, dtype=self.dtype, name=name)(h)[:, :, None, :]
            for name in ("query", "key", "value")
        )
        h = jax.nn.dot_product_attention(q, k, v)[:, :, 0, :]
        h = nn.Dense(channels, kernel_init=ZEROS, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class UNetModule(nn.Module):
    """Levels of resolution with `blocks` residual blocks each; one level is the flat U-Net."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float
    fourier: tuple[int, int] | None
    patch: int
    dtype: str
    remat: bool

    def condition(self, gamma_t):
        width = 4 * self.channels[0]
        h = gamma_features(gamma_t, self.channels[0])
        h = nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_1")(h))
        return nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_2")(h))

    @nn.compact
    def __call__(self, xt, gamma_t, extra, keys):
        if xt.ndim != 4 or xt.shape[1] % self.patch or xt.shape[2] % self.patch:
            raise ValueError(
                f"unet: expected data H×W×C with H and W multiples of patch = {self.patch}, "
                f"found shape {xt.shape[1:]}"
            )
        layer = itertools.count()
        kind = nn.remat(ResnetBlock) if self.remat else ResnetBlock

        def block(x, channels):
            i = next(layer)
            module = kind(channels, self.dropout, self.dtype, i, name=f"block_{i}")
            return module(x, condition, keys)

        def attend(x, level):
            return Attention(self.dtype)(x) if level in self.attention else x

        condition = self.condition(gamma_t)
        inputs = [xt] if extra is None else [xt, extra]
        if self.fourier is not None:
            inputs.append(fourier_features(xt, first=self.fourier[0], last=self.fourier[1]))
        h = to_patches(
            jnp.concatenate([part.astype(self.dtype) for part in inputs], -1), self.patch
        )
        h = nn.Conv(self.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(h)

        last = len(self.channels) - 1
        skips = [h]
        for level, channels in enumerate(self.channels):
            for _ in range(self.blocks):
                h = attend(block(h, channels), level)
                skips.append(h)
            if level < last:
                h = nn.Conv(channels, (3, 3), (2, 2), dtype=self.dtype, name=f"down_{level}")(h)
                skips.append(h)

        h = block(h, self.channels[-1])
        h = Attention(self.dtype, name="middle")(h)
        h = block(h, self.channels[-1])

        for level, channels in reversed(list(enumerate(self.channels))):
            for _ in range(self.blocks + 1):
                h = attend(block(jnp.concatenate([h, skips.pop()], -1), channels), level)
            if level > 0:
                size = (h.shape[0], *skips[-1].shape[1:3], channels)
                h = jax.image.resize(h, size, "nearest")
                h = nn.Conv(channels, (3, 3), dtype=self.dtype, name=f"up_{level}")(h)

        h = nn.silu(norm(h, "norm_out").astype(jnp.float32))
        channels = xt.shape[-1] * self.patch**2
        h = nn.Conv(channels, (3, 3), kernel_init=ZEROS, dtype=jnp.float32, name="conv_out")(h)
        return from_patches(h, self.patch).astype(xt.dtype)


def vdm_unet(
    *,
    channels: int = 128,
    blocks: int = 32,
    dropout: float = 0.1,
    fourier: Sequence[int] | None = (7, 8),
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """The flat U-Net of Kingma et al. 2021; the defaults are their CIFAR-10 model, 30.6 M parameters.

    Args:
      channels: of every block.
      blocks: residual blocks on the way down (one more on the way up).
      dropout: rate, in [0, 1).
      fourier: first and last n of the features sin, cos 2^n π x_t, or None.
      dtype: of the computation; parameters, norms, γ and Fourier features and output stay float32.
      remat: compute a block's inner values again in the backward pass instead of keeping them: less memory,
        the same numbers, more time.
    """
    settings = {"dropout": dropout, "fourier": fourier, "dtype": dtype, "remat": remat}
    return unet(channels=(channels,), blocks=blocks, **settings)


def unet(
    *,
    channels: Any = (64, 128, 128),
    blocks: int = 2,
    attention: Any = (),
    dropout: float = 0.0,
    fourier: Sequence[int] | None = None,
    patch: int = 1,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """Strided U-Net: each entry of `channels` is a level at half the resolution of the one before.

    Args:
      channels: of each level.
      blocks: residual blocks of a level on the way down (one more on the way up).
      attention: levels with attention after every block; the middle always has it.
      dropout, fourier, dtype, remat: as in `vdm_unet`.
      patch: side of the square of pixels that the network sees as one position; divides H and W.

    Raises:
      ValueError: here for a setting that cannot be, at the first call for data that are not H×W×C.
    """
    channels, attention = (
        as_tuple("unet", "channels", channels),
        as_tuple("unet", "attention", attention),
    )
    check_settings(
        "unet", dropout=dropout, dtype=dtype, channels=channels, blocks=blocks, patch=patch
    )
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(
            f"unet: attention must name levels 0..{len(channels) - 1}, found {attention}"
        )
    if fourier is not None and not (len(fourier) == 2 and fourier[0] <= fourier[1]):
        raise ValueError(f"unet: fourier must be (first, last) or None, found {fourier}")
    module = UNetModule(
        channels=channels,
        blocks=blocks,
        attention=attention,
        dropout=dropout,
        fourier=None if fourier is None else (fourier[0], fourier[1]),
        patch=patch,
        dtype=dtype,
        remat=remat,
    )
    return from_linen(module)
