"""Layers of convolutional networks: norm, attention, residual block, and stages of blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.nets.network import dropout
from vdm_jax.nets.ops import SAVED, Conv, attend

ZEROS = nn.initializers.zeros_init()


def norm(x, name: str):
    """Group norm in float32 with at most 32 groups, of at least 4 channels where there are as many.

    A group of one channel would take the condition, which is a shift of each channel, out again.
    """
    channels = x.shape[-1]
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    normal = nn.GroupNorm(num_groups=groups, dtype=jnp.float32, name=name)
    return normal(x.astype(jnp.float32)).astype(x.dtype)


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
        h = attend(q, k, v)[:, :, 0, :]
        h = nn.Dense(channels, kernel_init=ZEROS, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class ResnetBlock(nn.Module):
    """norm, silu, conv, + condition if there is one, norm, silu, dropout, zero conv, + shortcut."""

    channels: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x, condition, keys, layer):
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
    """One repetition of a U-Net's level: [the end of a skip connection], a residual block, attention if any.

    The body of a loop: (h, skip or None, layer, condition, keys) -> (h, what a skip starts from). That is its
    input, which the backward pass keeps anyway, where it is not computed again.
    """

    channels: int
    attention: bool
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, h, skip, layer, condition, keys):
        start = h if skip is None else None
        if skip is not None:
            h = jnp.concatenate([h, skip], -1)
        block = ResnetBlock(self.channels, self.dropout, self.dtype, name="block")
        h = block(h, condition, keys, layer)
        if self.attention:
            h = Attention(self.dtype, name="attention")(h)
        return h, start


def looped(stage: type[nn.Module], *, reverse: bool) -> Callable[..., nn.Module]:
    """One loop over stages of equal shapes: parameters, skips and outputs have a leading axis of stages."""
    axes: Any = (0, 0, nn.broadcast, nn.broadcast)  # of the call's arguments; Flax annotates one
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
"""Inner values of a block that the backward pass recomputes: none, all, or all but the convolutions."""
