"""What convolutional networks are made of: the norm and the residual block."""

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.nets.network import dropout

ZEROS = nn.initializers.zeros_init()


def norm(x, name: str):
    """Group norm in float32 with at most 32 groups, of at least 4 channels where there are as many.

    A group of one channel would take the condition, which is a shift of each channel, out again.
    """
    channels = x.shape[-1]
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(num_groups=groups, dtype=jnp.float32, name=name)(x).astype(x.dtype)


class ResnetBlock(nn.Module):
    """norm, silu, conv, + condition if there is one, norm, silu, dropout, zero conv, + shortcut."""

    channels: int
    dropout: float
    dtype: str
    layer: int

    @nn.compact
    def __call__(self, x, condition, keys):
        conv = {"features": self.channels, "kernel_size": (3, 3), "dtype": self.dtype}
        h = nn.Conv(**conv, name="conv_1")(nn.silu(norm(x, "norm_1")))
        if condition is not None:
            shift = nn.Dense(
                self.channels, use_bias=False, kernel_init=ZEROS, dtype=self.dtype, name="condition"
            )(condition)
            h = h + shift[:, None, None, :]
        h = nn.silu(norm(h, "norm_2"))
        h = dropout(h, keys, rate=self.dropout, layer=self.layer)
        h = nn.Conv(**conv, kernel_init=ZEROS, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h
