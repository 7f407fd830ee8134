"""A residual MLP over the flattened input, conditioned on γ, if it is given one, by scale and shift."""

import math

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.nets.layers import ZEROS
from vdm_jax.nets.network import Network, check_settings, dropout, from_linen, gamma_features


class MLPModule(nn.Module):
    width: int
    depth: int
    dropout: float
    dtype: str
    outputs: tuple[int, ...] | None
    zero: bool

    @nn.compact
    def __call__(self, x, gamma_t, extra, keys):
        batch = x.shape[0]
        shape = x.shape[1:] if self.outputs is None else self.outputs
        condition = None
        if gamma_t is not None:
            features = gamma_features(gamma_t, 128)
            condition = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="condition")(features))
        inputs = [x] if extra is None else [x, extra]
        flat = [part.reshape(batch, math.prod(part.shape[1:])) for part in inputs]
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(jnp.concatenate(flat, -1))
        for i in range(self.depth):
            plain = condition is None  # then the norm's own scale and bias
            y = nn.LayerNorm(use_bias=plain, use_scale=plain, dtype=jnp.float32, name=f"norm_{i}")(
                h.astype(jnp.float32)
            ).astype(h.dtype)
            if not plain:
                film = nn.Dense(2 * self.width, dtype=self.dtype, name=f"film_{i}")(condition)
                scale, shift = jnp.split(film, 2, -1)
                y = y * (1 + scale) + shift
            y = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"up_{i}")(nn.silu(y)))
            y = dropout(y, keys, rate=self.dropout, layer=i)
            h = h + nn.Dense(self.width, dtype=self.dtype, kernel_init=ZEROS, name=f"down_{i}")(y)
        h = nn.silu(nn.LayerNorm(dtype=jnp.float32, name="norm_out")(h.astype(jnp.float32)))
        start = ZEROS if self.zero else nn.initializers.lecun_normal()
        out = nn.Dense(math.prod(shape), dtype=jnp.float32, kernel_init=start, name="out")(h)
        return out.reshape(batch, *shape).astype(x.dtype)


def mlp(
    *,
    width: int = 512,
    depth: int = 3,
    dropout: float = 0.0,
    dtype: str = "float32",
    outputs: tuple[int, ...] | None = None,
    zero: bool = True,
) -> Network:
    """Residual MLP for data of any shape.

    Args:
      width: units of each layer.
      depth: residual blocks.
      dropout: rate, in [0, 1).
      dtype: of the computation ("float32" or "bfloat16"); parameters, norms and output stay float32.
      outputs: shape of one example's output; None is that of its input.
      zero: whether the output is zero at the start.

    Raises:
      ValueError: a size below 1, a dropout outside [0, 1), an unknown dtype.

    Examples:
      >>> net = vdm.nets.mlp(width=8, depth=1)
      >>> xt, gamma_t = jnp.ones((2, 4, 4, 1)), jnp.zeros(2)
      >>> params = net.init(jax.random.key(0), xt, gamma_t)
      >>> net.apply(params, xt, gamma_t).shape
      (2, 4, 4, 1)
    """
    check_settings(dropout=dropout, dtype=dtype, width=width, depth=depth)
    return from_linen(
        MLPModule(
            width=width, depth=depth, dropout=dropout, dtype=dtype, outputs=outputs, zero=zero
        )
    )
