"""The two U-Nets: flat (constant resolution, Kingma et al. 2021) and strided (for larger images).

Both consist of residual blocks with group norms, conditioned on γ, with skip connections between the two halves
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


def to_patches(x: Array, size: int) -> Array:
    """Turn the pixels of each patch into channels: [B, H, W, C] to [B, H/size, W/size, size²·C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, size**2 * channels)


def from_patches(x: Array, size: int) -> Array:
    """Invert `to_patches`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2).swapaxes(2, 3)
    return x.reshape(batch, height * size, width * size, channels // size**2)


class UNetModule(nn.Module):
    """A U-Net with one level of resolution for each entry of `channels`; one level is the flat U-Net."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float
    fourier: tuple[int, int] | None
    patch: int
    dtype: str
    scan: bool
    remat: str

    def condition(self, gamma_t: Array) -> Array:
        """Return the condition of all blocks, [B, n]."""
        width = 4 * self.channels[0]
        h = gamma_features(gamma_t, self.channels[0])
        h = nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_1")(h))
        return nn.silu(nn.Dense(width, dtype=self.dtype, name="condition_2")(h))

    def first(self, xt: Array, extra: Array | None) -> Array:
        """Concatenate the inputs and their Fourier features; apply the first convolution to their patches."""
        inputs = [xt] if extra is None else [xt, extra]
        if self.fourier is not None:
            inputs.append(fourier_features(xt, first=self.fourier[0], last=self.fourier[1]))
        h = jnp.concatenate([array.astype(self.dtype) for array in inputs], -1)
        return Conv(self.channels[0], dtype=self.dtype, name="conv_in")(to_patches(h, self.patch))

    @nn.compact
    def __call__(self, xt: Array, gamma_t: Array, extra: Array | None, keys: Keys | None) -> Array:
        if xt.ndim != 4 or xt.shape[1] % self.patch or xt.shape[2] % self.patch:
            raise ValueError(
                f"unet: expected data H×W×C with H and W multiples of patch = {self.patch}, "
                f"found shape {xt.shape[1:]}"
            )
        stages = _Stages(self, self.condition(gamma_t), keys, itertools.count())
        h = self.first(xt, extra)
        last = len(self.channels) - 1
        skips: list[list[Array]] = []  # of each level
        for level, channels in enumerate(self.channels):
            h, level_skips = stages.down(h, level)
            skips.append(level_skips)
            if level < last:
                h = Conv(channels, strides=(2, 2), dtype=self.dtype, name=f"down_{level}")(h)

        h = stages.block(h, last)
        h = Attention(self.dtype, name="middle")(h)
        h = stages.block(h, last)

        for level, channels in reversed(list(enumerate(self.channels))):
            h = stages.up(h, level, skips[level])
            if level > 0:
                # resized to the level above, whose height and width may be odd
                size = (h.shape[0], *skips[level - 1][0].shape[2:4], channels)
                h = jax.image.resize(h, size, "nearest")
                h = Conv(channels, dtype=self.dtype, name=f"up_{level}")(h)

        h = nn.silu(norm(h, "norm_out").astype(jnp.float32))
        channels = xt.shape[-1] * self.patch**2
        h = Conv(channels, kernel_init=ZEROS, dtype=jnp.float32, name="conv_out")(h)
        return from_patches(h, self.patch).astype(xt.dtype)


class _Stages(NamedTuple):
    """The residual blocks of a U-Net by level. Its methods add submodules to the network that calls them.

    A skip connection starts from the input of a block, or from the output of a level. A loop over blocks gives
    several at once, so that skips are passed on as stacks of arrays [count, B, H, W, C].

    Attributes:
      net: the U-Net.
      condition: of γ, [B, n].
      keys: [B], of dropout, or None.
      layers: the numbers of the blocks, in the order of their calls.
    """

    net: UNetModule
    condition: Array
    keys: Keys | None
    layers: Iterator[int]

    def block(self, h: Array, level: int, attention: bool = False) -> Array:
        """Apply one block, and attention after it."""
        net, i = self.net, next(self.layers)
        remat = REMAT[net.remat]
        settings = {"dropout": net.dropout, "dtype": net.dtype}
        module = remat(ResnetBlock)(net.channels[level], **settings, name=f"block_{i}")
        h = module(h, self.condition, self.keys, i)
        return remat(Attention)(net.dtype, name=f"attention_{i}")(h) if attention else h

    def loop(
        self, h: Array, level: int, count: int, skips: Array | None = None
    ) -> tuple[Array, Any]:
        """Apply `count` equal blocks as one loop; return their inputs as well, or None on the way up."""
        net, up = self.net, skips is not None
        numbers = jnp.asarray([next(self.layers) for _ in range(count)])
        stage = looped(REMAT[net.remat](Stage), reverse=up)(
            net.channels[level],
            level in net.attention,
            dropout=net.dropout,
            dtype=net.dtype,
            name=f"{'up' if up else 'down'}_blocks_{level}",
        )
        # on the way up the loop runs in reverse, from the newest skip, and so the numbers are reversed, too
        return stage(h, skips, numbers[::-1] if up else numbers, self.condition, self.keys)

    def down(self, h: Array, level: int) -> tuple[Array, list[Array]]:
        """Apply the blocks of a level; return their output and the stacks of skips."""
        net = self.net
        stacks, remaining = [], net.blocks
        while remaining > 0:
            stack = h[None]
            # only blocks that keep the number of channels have equal shapes and fit into a loop
            if net.scan and h.shape[-1] == net.channels[level]:
                h, stack = self.loop(h, level, remaining)
            else:
                h = self.block(h, level, level in net.attention)
            stacks.append(stack)
            remaining -= len(stack)
        return h, [*stacks, h[None]]

    def up(self, h: Array, level: int, stacks: list[Array]) -> Array:
        """Apply blocks that take one skip each, the newest first."""
        net = self.net
        while stacks:
            stack = stacks.pop()
            if net.scan and len(stack) > 1 and h.shape[-1] == net.channels[level]:
                h, _ = self.loop(h, level, len(stack), stack)
                continue
            h = self.block(jnp.concatenate([h, stack[-1]], -1), level, level in net.attention)
            if len(stack) > 1:
                stacks.append(stack[:-1])
        return h


def vdm_unet(
    *,
    channels: int = 128,
    blocks: int = 32,
    dropout: float = 0.1,
    fourier: Sequence[int] | None = (7, 8),
    dtype: str = "float32",
    scan: bool = False,
    remat: str = "none",
) -> Network:
    """Build the flat U-Net of Kingma et al. 2021. The defaults are their CIFAR-10 model, 30.6 M parameters.

    Args:
      channels: of every block.
      blocks: residual blocks on the way down (one more on the way up).
      dropout: rate, in [0, 1).
      fourier: first and last n of the features sin, cos 2^n π x_t, or None.
      dtype: of the computation; parameters, norms, features of γ and x_t, and output stay float32.
      scan: True to run blocks of equal shapes as one loop over parameters with a leading axis of blocks. Time
        and memory of the compilation then do not grow with the number of blocks. The model is the same, but its
        parameters are stored in another tree.
      remat: the inner values of a block that the backward pass recomputes instead of keeping them, of `REMAT`:
        "none", "full" for all, or "save_conv" for all but its convolutions. Results agree to rounding. Both
        save memory (on CPUs only with `scan`), while the recomputation takes time.

    Raises:
      ValueError: as `unet`.
    """
    settings = {"dropout": dropout, "fourier": fourier, "dtype": dtype}
    settings |= {"scan": scan, "remat": remat}
    return unet(channels=(channels,), blocks=blocks, **settings)


def unet(
    *,
    channels: Sequence[int] = (64, 128, 128),
    blocks: int = 2,
    attention: Sequence[int] = (),
    dropout: float = 0.0,
    fourier: Sequence[int] | None = None,
    patch: int = 1,
    dtype: str = "float32",
    scan: bool = False,
    remat: str = "none",
) -> Network:
    """Build a strided U-Net, whose levels after the first have half the resolution of the level before.

    Args:
      channels: of each level.
      blocks: residual blocks of a level on the way down (one more on the way up).
      attention: levels with attention after every block; the middle always has it.
      dropout, fourier, dtype, scan, remat: as in `vdm_unet`.
      patch: side of the square of pixels that is one position for the network; divides H and W.

    Raises:
      ValueError: here for a wrong setting, and at the first call for data that are not H×W×C.
    """
    channels, attention = as_tuple("channels", channels), as_tuple("attention", attention)
    check_settings(dropout=dropout, dtype=dtype, channels=channels, blocks=blocks, patch=patch)
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention: expected levels 0..{len(channels) - 1}, found {attention}")
    if fourier is not None:
        first, *rest = as_tuple("fourier", fourier) or (1,)
        if len(rest) != 1 or first > rest[0]:
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
