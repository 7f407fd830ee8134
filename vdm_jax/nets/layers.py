"""Layers of convolutional networks: norm, attention, residual block, and stages of blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.nets.network import dropout
from vdm_jax.nets.ops import SAVED, Conv, attend
from vdm_jax.typing import Array, Keys

ZEROS = nn.initializers.zeros_init()


def norm(x: Array, name: str) -> Array:
    """Apply group norm in float32, with at most 32 groups and, if possible, at least 4 channels in a group.

    The condition shifts each channel. The norm of a group of one channel would remove this shift.
    """
    channels = x.shape[-1]
    # the largest number of groups that divides the channels evenly
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    normal = nn.GroupNorm(num_groups=groups, dtype=jnp.float32, name=name)
    return normal(x.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention over the positions, with one head; the identity at initialization."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        h = norm(x, "norm").reshape(batch, height * width, channels)
        q, k, v = (
            nn.Dense(channels, dtype=self.dtype, name=name)(h)[:, :, None, :]
            for name in ("query", "key", "value")
        )
        h = attend(q, k, v)[:, :, 0, :]
        h = nn.Dense(channels, kernel_init=ZEROS, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class ResnetBlock(nn.Module):
    """norm, silu, conv, + condition if not None, norm, silu, dropout, conv from zero weights, + shortcut."""

    channels: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Array, condition: Array | None, keys: Keys | None, layer: int | Array
    ) -> Array:
        h = Conv(self.channels, dtype=self.dtype, name="conv_1")(nn.silu(norm(x, "norm_1")))
        if condition is not None:
            shift = nn.Dense(
                self.channels, use_bias=False, kernel_init=ZEROS, dtype=self.dtype, name="condition"
            )(condition)
            h = h + shift[:, None, None, :]
        h = nn.silu(norm(h, "norm_2"))
        h = dropout(h, keys, rate=self.dropout, layer=layer)
        h = Conv(self.channels, kernel_init=ZEROS, dtype=self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Stage(nn.Module):
    """One block of a U-Net's level, as the body of a loop.

    On the way down (`skip` is None) it returns its input as well, from which a skip connection starts. On the
    way up it concatenates the skip to its input. A residual block follows, and attention if the level has it.
    """

    channels: int
    attention: bool
    dropout: float
    dtype: str

    @nn.compact
    def __call__(
        self,
        h: Array,
        skip: Array | None,
        layer: Array,
        condition: Array,
        keys: Keys | None,
    ) -> tuple[Array, Array | None]:
        # the input rather than the output of the block: the backward pass keeps it in any case
        start = h if skip is None else None
        if skip is not None:
            h = jnp.concatenate([h, skip], -1)
        block = ResnetBlock(self.channels, self.dropout, self.dtype, name="block")
        h = block(h, condition, keys, layer)
        if self.attention:
            h = Attention(self.dtype, name="attention")(h)
        return h, start


def looped(stage: type[nn.Module], *, reverse: bool) -> Callable[..., nn.Module]:
    """Turn a stage into a loop over equal stages; params, skips and outputs get a leading axis of stages."""
    # Any: axes of skip, layer, condition and keys, where Flax's annotation allows a single axis
    axes: Any = (0, 0, nn.broadcast, nn.broadcast)
    return nn.scan(
        stage,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=axes,
        reverse=reverse,
    )


REMAT: dict[str, Callable[[type[nn.Module]], type[nn.Module]]] = {
    "none": lambda module: module,
    "full": nn.remat,
    "save_conv": partial(nn.remat, policy=jax.checkpoint_policies.save_only_these_names(SAVED)),
}
"""name -> transformation of a block. Its backward pass then recomputes none of the inner values of the block,
all of them, or all except the outputs of convolutions."""
