"""A residual MLP over the flattened input; γ, if not None, conditions it by scale and shift."""

import math

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.checks import check_sizes
from vdm_jax.nets.layers import ZEROS
from vdm_jax.nets.network import Network, check_settings, dropout, from_linen, gamma_features
from vdm_jax.typing import Array, Keys


class MLPModule(nn.Module):
    """Residual blocks of norm, scale and shift by γ, and two dense layers."""

    width: int
    depth: int
    dropout: float
    dtype: str
    outputs: tuple[int, ...] | None
    zero: bool

    @nn.compact
    def __call__(
        self, x: Array, gamma_t: Array | None, extra: Array | None, keys: Keys | None
    ) -> Array:
        batch = x.shape[0]
        shape = x.shape[1:] if self.outputs is None else self.outputs
        condition = None
        if gamma_t is not None:
            features = gamma_features(gamma_t, 128)
            condition = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="condition")(features))
        inputs = [x] if extra is None else [x, extra]
        flat = [array.reshape(batch, math.prod(array.shape[1:])) for array in inputs]
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(jnp.concatenate(flat, -1))
        for i in range(self.depth):
            # the scale and shift by γ replace the norm's own scale and bias
            affine = condition is None
            norm = nn.LayerNorm(
                use_bias=affine, use_scale=affine, dtype=jnp.float32, name=f"norm_{i}"
            )
            y = norm(h.astype(jnp.float32)).astype(h.dtype)
            if condition is not None:
                film = nn.Dense(2 * self.width, dtype=self.dtype, name=f"film_{i}")(condition)
                scale, shift = jnp.split(film, 2, -1)
                y = y * (1 + scale) + shift
            y = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"up_{i}")(nn.silu(y)))
            y = dropout(y, keys, rate=self.dropout, layer=i)
            # from zero weights: each block is the identity at initialization
            h = h + nn.Dense(self.width, dtype=self.dtype, kernel_init=ZEROS, name=f"down_{i}")(y)
        h = nn.silu(nn.LayerNorm(dtype=jnp.float32, name="norm_out")(h.astype(jnp.float32)))
        init = ZEROS if self.zero else nn.initializers.lecun_normal()
        out = nn.Dense(math.prod(shape), dtype=jnp.float32, kernel_init=init, name="out")(h)
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
    """Build a residual MLP for data of any shape.

    Args:
      width: units of each layer.
      depth: residual blocks.
      dropout: rate, in [0, 1).
      dtype: of the computation ("float32" or "bfloat16"); parameters, norms and output stay float32.
      outputs: shape of one example's output; None for the shape of its input.
      zero: True for an output that is zero at initialization.

    Raises:
      ValueError: a size is below 1, `dropout` is outside [0, 1), or `dtype` is unknown.

    Examples:
      >>> net = vdm.nets.mlp(width=8, depth=1)
      >>> xt, gamma_t = jnp.ones((2, 4, 4, 1)), jnp.zeros(2)
      >>> params = net.init(jax.random.key(0), xt, gamma_t)
      >>> net.apply(params, xt, gamma_t).shape
      (2, 4, 4, 1)
    """
    check_settings(dropout=dropout, dtype=dtype, width=width, depth=depth)
    outputs = None if outputs is None else check_sizes(outputs, "outputs")
    if not isinstance(zero, bool):
        raise ValueError(f"zero: expected True or False, found {zero!r}")
    return from_linen(
        MLPModule(
            width=width, depth=depth, dropout=dropout, dtype=dtype, outputs=outputs, zero=zero
        )
    )
