"""The K levels of stored data: integers 0…K−1, at the centres of K equal bins of [−1, 1]."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_levels, whole_number
from vdm_jax.typing import Array, Data


def level_values(levels: Any) -> np.ndarray:
    """The K centres (2k+1)/K − 1 of equal bins of [−1, 1], float64 [K].

    Raises:
      ValueError: levels below 2, or None, of continuous data.

    Examples:
      >>> from vdm_jax.likelihoods import level_values
      >>> print(level_values(4))
      [-0.75 -0.25  0.25  0.75]
    """
    if levels is None:
        raise ValueError("levels: expected K-level data, found continuous values")
    levels = whole_number(levels, "levels", 2)
    return (2 * np.arange(levels) + 1) / levels - 1


def nearest_level(x0: Data, levels: int) -> Data:
    """Index of the level nearest to each of `x0`, a whole number in their own type."""
    return jnp.clip(jnp.floor((x0 + 1) * (levels / 2)), 0, levels - 1)


def as_levels(x: Any, levels: int, name: str) -> Array:
    check_levels(x, levels, f"likelihood {name!r}")
    x = jnp.asarray(x)
    return x.astype(jnp.uint8) if x.dtype == bool else x


def stored_type(levels: int):
    return jnp.uint8 if levels <= 256 else jnp.int32


def level_codec(levels: Any, name: str):
    values = level_values(levels)

    def encode(x):
        x = as_levels(x, levels, name).astype(jnp.int32)
        # from the table that the bases read: another rounding of a level would be an error of theirs
        x0 = jnp.asarray(values, jnp.result_type(float))[x]
        return jnp.where((x >= 0) & (x < levels), x0, jnp.nan)

    def decode(x0):
        return nearest_level(x0, levels).astype(stored_type(levels))

    return encode, decode
