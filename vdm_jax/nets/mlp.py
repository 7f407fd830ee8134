"""A residual MLP over the flattened data, conditioned on γ by scale and shift."""

import math

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.nets.network import Network, check_settings, dropout, from_linen, gamma_features


class MLPModule(nn.Module):
    width: int
    depth: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, xt, gamma_t, extra, keys):
        shape, size = xt.shape, math.prod(xt.shape[1:])
        inputs = [xt] if extra is None else [xt, extra]
        flat = [part.reshape(shape[0], size) for part in inputs]
        features = gamma_features(gamma_t, 128)
        condition = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="condition")(features))
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(jnp.concatenate(flat, -1))
        for i in range(self.depth):
            scale_shift = nn.Dense(2 * self.width, dtype=self.dtype, name=f"film_{i}")(condition)
            scale, shift = jnp.split(scale_shift, 2, -1)
            y = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(h)
            y = nn.silu(y.astype(h.dtype) * (1 + scale) + shift)
            y = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"up_{i}")(y))
            y = dropout(y, keys, rate=self.dropout, layer=i)
            zeros = nn.initializers.zeros_init()
            h = h + nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros, name=f"down_{i}")(y)
        h = nn.LayerNorm(dtype=jnp.float32)(h)
        out = nn.Dense(
            size, dtype=jnp.float32, kernel_init=nn.initializers.zeros_init(), name="out"
        )
        return out(nn.silu(h)).reshape(shape).astype(xt.dtype)


def mlp(
    *, width: int = 512, depth: int = 3, dropout: float = 0.0, dtype: str = "float32"
) -> Network:
    """Residual MLP for data of any shape.

    Args:
      width: units of each layer.
      depth: residual blocks.
      dropout: rate, in [0, 1).
      dtype: of the computation ("float32" or "bfloat16"); parameters, norms and output stay float32.

    Raises:
      ValueError: a size below 1, a dropout outside [0, 1), an unknown dtype.
    """
    check_settings("mlp", dropout=dropout, dtype=dtype, width=width, depth=depth)
    return from_linen(MLPModule(width=width, depth=depth, dropout=dropout, dtype=dtype))
