"""The two U-Nets: flat (constant resolution, Kingma et al. 2021) and strided (for larger images).

Both are residual blocks with group norms, conditioned on γ, with skip connections between the two halves
and attention in the middle. They take any H×W×C with channels last.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.nets.layers import REMAT, ZEROS, Attention, ResnetBlock, Stage, looped, norm
from vdm_jax.nets.network import (
    Network,
    as_tuple,
    check_settings,
    fourier_features,
    from_linen,
    gamma_features,
)
from vdm_jax.nets.ops import Conv
from vdm_jax.specs import choose
from vdm_jax.typing import Array, Keys


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


class UNetModule(nn.Module):
    """Levels of resolution with `blocks` residual blocks each; one level is the flat U-Net."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float
    fourier: tuple[int, int] | None
    patch: int
    dtype: str
    scan: bool
    remat: str

    def condition(self, gamma_t):
        width = 4 * self.channels[0]
        h = gamma_features(gamma_t, self.channels[0])
        h = nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_1")(h))
        return nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_2")(h))

    def first(self, xt, extra):
        inputs = [xt] if extra is None else [xt, extra]
        if self.fourier is not None:
            inputs.append(fourier_features(xt, first=self.fourier[0], last=self.fourier[1]))
        h = jnp.concatenate([part.astype(self.dtype) for part in inputs], -1)
        return Conv(self.channels[0], dtype=self.dtype, name="conv_in")(to_patches(h, self.patch))

    @nn.compact
    def __call__(self, xt, gamma_t, extra, keys):
        if xt.ndim != 4 or xt.shape[1] % self.patch or xt.shape[2] % self.patch:
            raise ValueError(
                f"unet: expected data H×W×C with H and W multiples of patch = {self.patch}, "
                f"found shape {xt.shape[1:]}"
            )
        stages = _Stages(self, self.condition(gamma_t), keys, itertools.count())
        h = self.first(xt, extra)
        last, skips = len(self.channels) - 1, []
        for level, channels in enumerate(self.channels):
            h, pieces = stages.down(h, level)
            skips.append(pieces)
            if level < last:
                h = Conv(channels, strides=(2, 2), dtype=self.dtype, name=f"down_{level}")(h)

        h = stages.block(h, last)
        h = Attention(self.dtype, name="middle")(h)
        h = stages.block(h, last)

        for level, channels in reversed(list(enumerate(self.channels))):
            h = stages.up(h, level, skips[level])
            if level > 0:
                size = (h.shape[0], *skips[level - 1][0].shape[2:4], channels)
                h = jax.image.resize(h, size, "nearest")
                h = Conv(channels, dtype=self.dtype, name=f"up_{level}")(h)

        h = nn.silu(norm(h, "norm_out").astype(jnp.float32))
        channels = xt.shape[-1] * self.patch**2
        h = Conv(channels, kernel_init=ZEROS, dtype=jnp.float32, name="conv_out")(h)
        return from_patches(h, self.patch).astype(xt.dtype)


class _Stages(NamedTuple):
    """The residual blocks of a U-Net by level; its methods add submodules to the network that calls them.

    Attributes:
      net: the U-Net.
      condition: of γ, [B, n].
      keys: of dropout, [B], or None.
      layers: numbers the blocks in the order of their calls.
    """

    net: UNetModule
    condition: Array
    keys: Keys | None
    layers: Iterator[int]

    def block(self, h, level, attention=False):
        """Apply one block, and attention after it."""
        net, i = self.net, next(self.layers)
        again = REMAT[net.remat]
        settings = {"dropout": net.dropout, "dtype": net.dtype}
        module = again(ResnetBlock)(net.channels[level], **settings, name=f"block_{i}")
        h = module(h, self.condition, self.keys, i)
        return again(Attention)(net.dtype, name=f"attention_{i}")(h) if attention else h

    def loop(self, h, level, count, skips=None):
        """Apply blocks of equal shapes as one loop; return, going down, their inputs [count, ...] as well."""
        net, up = self.net, skips is not None
        numbers = jnp.asarray([next(self.layers) for _ in range(count)])
        stage = looped(REMAT[net.remat](Stage), reverse=up)(
            net.channels[level],
            level in net.attention,
            dropout=net.dropout,
            dtype=net.dtype,
            name=f"{'up' if up else 'down'}_blocks_{level}",
        )
        # the newest skip comes first, and so does its layer's number
        return stage(h, skips, numbers[::-1] if up else numbers, self.condition, self.keys)

    def down(self, h, level):
        """Apply the blocks of a level; return, too, the starts of skips: the inputs of some blocks each."""
        net = self.net
        pieces, left = [], net.blocks
        while left > 0:
            piece = h[None]
            if net.scan and h.shape[-1] == net.channels[level]:
                h, piece = self.loop(h, level, left)
            else:
                h = self.block(h, level, level in net.attention)
            pieces.append(piece)
            left -= len(piece)
        return h, [*pieces, h[None]]

    def up(self, h, level, pieces):
        """Apply blocks that take one skip connection each, the newest first."""
        net = self.net
        while pieces:
            piece = pieces.pop()
            if net.scan and len(piece) > 1 and h.shape[-1] == net.channels[level]:
                h, _ = self.loop(h, level, len(piece), piece)
                continue
            h = self.block(jnp.concatenate([h, piece[-1]], -1), level, level in net.attention)
            if len(piece) > 1:
                pieces.append(piece[:-1])
        return h


def vdm_unet(
    *,
    channels: int = 128,
    blocks: int = 32,
    dropout: float = 0.1,
    fourier: Sequence[int] | None = (7, 8),
    dtype: str = "float32",
    scan: Any = False,
    remat: str = "none",
) -> Network:
    """The flat U-Net of Kingma et al. 2021; the defaults are their CIFAR-10 model, 30.6 M parameters.

    Args:
      channels: of every block.
      blocks: residual blocks on the way down (one more on the way up).
      dropout: rate, in [0, 1).
      fourier: first and last n of the features sin, cos 2^n π x_t, or None.
      dtype: of the computation; parameters, norms, γ and Fourier features and output stay float32.
      scan: blocks of equal shapes are one loop over parameters with a leading axis of blocks, so that time and
        memory to compile do not grow with their number. The parameters are another tree, of the same model.
      remat: what of a block's inner values the backward pass computes again instead of keeping it, of `REMAT`:
        "none", "full", or "save_conv" for all but its convolutions. The same numbers with less memory, which
        XLA frees on CPUs only if `scan`, and by itself more time.
    """
    settings = {"dropout": dropout, "fourier": fourier, "dtype": dtype}
    settings |= {"scan": scan, "remat": remat}
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
    scan: Any = False,
    remat: str = "none",
) -> Network:
    """Strided U-Net: each entry of `channels` is a level at half the resolution of the one before.

    Args:
      channels: of each level.
      blocks: residual blocks of a level on the way down (one more on the way up).
      attention: levels with attention after every block; the middle always has it.
      dropout, fourier, dtype, scan, remat: as in `vdm_unet`.
      patch: side of the square of pixels that the network sees as one position; divides H and W.

    Raises:
      ValueError: here for a setting that cannot be, at the first call for data that are not H×W×C.
    """
    channels, attention = as_tuple("channels", channels), as_tuple("attention", attention)
    check_settings(dropout=dropout, dtype=dtype, channels=channels, blocks=blocks, patch=patch)
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention: expected levels 0..{len(channels) - 1}, found {attention}")
    if fourier is not None and not (len(fourier) == 2 and fourier[0] <= fourier[1]):
        raise ValueError(f"fourier: expected (first, last) or None, found {fourier}")
    choose(REMAT, remat, "remat")
    if not isinstance(scan, bool):
        raise ValueError(f"scan: expected True or False, found {scan!r}")
    module = UNetModule(
        channels=channels,
        blocks=blocks,
        attention=attention,
        dropout=dropout,
        fourier=None if fourier is None else (fourier[0], fourier[1]),
        patch=patch,
        dtype=dtype,
        scan=scan,
        remat=remat,
    )
    return from_linen(module)
