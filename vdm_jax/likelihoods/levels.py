"""The K levels of stored data: integers 0…K−1, at the centres of K equal bins of [−1, 1]."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vdm_jax.checks import check_levels, whole_number
from vdm_jax.typing import Array, Data, Numbers


def level_values(levels: object) -> np.ndarray:
    """Return the centres (2k+1)/K − 1 of K equal bins of [−1, 1], float64 [K].

    Raises:
      ValueError: `levels` is below 2, or None (continuous data).

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
    """Return the index of the level nearest to each element of `x0`, as a float of the type of `x0`."""
    return jnp.clip(jnp.floor((x0 + 1) * (levels / 2)), 0, levels - 1)


def as_levels(x: Numbers, levels: int, name: str) -> Array:
    """Return stored data as an array of integers 0…K−1, or raise an error of the likelihood `name`."""
    check_levels(x, levels, f"likelihood {name!r}")
    x = jnp.asarray(x)
    return x.astype(jnp.uint8) if x.dtype == bool else x


def stored_type(levels: int) -> DTypeLike:
    """Return the integer type of stored data on K levels."""
    return jnp.uint8 if levels <= 256 else jnp.int32


def level_codec(
    levels: int, name: str
) -> tuple[Callable[[Numbers], Data], Callable[[Data], Array]]:
    """Return `encode` and `decode` of a `Likelihood` of K levels; `name` appears in error messages."""
    values = level_values(levels)

    def encode(x):
        index = as_levels(x, levels, name).astype(jnp.int32)
        # from the table that the bases use: a level rounded differently would be an error of the base
        x0 = jnp.asarray(values, jnp.result_type(float))[index]
        # indexing clamps traced integers out of range; NaN makes the fault visible
        return jnp.where((index >= 0) & (index < levels), x0, jnp.nan)

    def decode(x0):
        return nearest_level(x0, levels).astype(stored_type(levels))

    return encode, decode
