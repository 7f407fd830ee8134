"""Types used in signatures, and the batch of examples that models and losses take.

Shapes are written per example: `*d` is the data shape, `B` a batch axis, "" a scalar. The annotations
cost nothing at run time; the tests check them at every call.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as TypedKey

from vdm_jax.checks import check_array

Data = Float[Array, "*d"]
"""One example or one of its latents, with the shape of the data."""

Scalar = Float[Array, ""]
"""A scalar of the mathematics: γ, Δ, a weight, a loss in nats."""

Real = float | int | Float[Array, "..."] | Int[Array, "..."]
"""A real number, or an array of them for an elementwise function (such as the times of a schedule)."""

Reals = Float[Array, "..."]
"""The result of an elementwise function of `Real`."""

Numbers = ArrayLike | Sequence[Any]
"""Numbers that NumPy converts to an array, such as nested lists from a config."""

Key = PRNGKeyArray
"""A typed key, `jax.random.key(...)`."""

Keys = TypedKey[Array, "B"]
"""One typed key for each example of a batch."""

Params = PyTree
"""Parameters: a pytree of arrays."""

Integer = int | np.integer
"""A whole number, also one of NumPy."""

Spec = str | Mapping[str, Any]
"""The name of a component, or {"name": ..., **arguments}; see `vdm_jax.specs.build`."""

__all__ = [
    "Array",
    "ArrayLike",
    "Batch",
    "Bool",
    "Data",
    "Float",
    "Int",
    "Integer",
    "Key",
    "Keys",
    "Numbers",
    "Params",
    "PyTree",
    "Real",
    "Reals",
    "Scalar",
    "Spec",
    "as_batch",
    "as_float",
    "in_precision_of",
]


class Batch(NamedTuple):
    """Examples with their positions in the global batch, from which random keys and times are derived.

    Attributes:
      x: [B, *d], the data as stored (integers for K-level data).
      index: int32 [B], the example's index in the global batch of its step.
      phase: float32 [B] in [0, 1), index / size of the global batch; stratifies the times, eq. (15).

    Examples:
      >>> batch = vdm.Batch(jnp.zeros((2, 3)), jnp.arange(2), jnp.asarray([0.0, 0.5]))
      >>> batch.x.shape, batch.index.tolist(), batch.phase.tolist()
      ((2, 3), [0, 1], [0.0, 0.5])
    """

    # Any: as a pytree, a Batch also holds shape structs, or the axes of a `vmap`
    x: Any
    index: Any
    phase: Any


def as_batch(batch: Batch | ArrayLike) -> Batch:
    """Wrap an array [B, *d] as a `Batch` with index 0…B−1; return a `Batch` unchanged.

    Raises:
      TypeError: `batch` is neither a `Batch` nor an array of examples, or is a masked array.
      ValueError: integers that need 64 bits.

    Examples:
      >>> from vdm_jax.typing import as_batch
      >>> as_batch(jnp.zeros((4, 3))).phase.tolist()
      [0.0, 0.25, 0.5, 0.75]
    """
    x = batch.x if isinstance(batch, Batch) else batch
    shape = getattr(x, "shape", ())
    if not shape:
        raise TypeError(f"batch: expected a `Batch` or an array [B, *d], found {_kind(x)}")
    check_array(x, "batch")
    if isinstance(batch, Batch):
        return batch
    # the array is the global batch: its examples have all of the positions
    index = jnp.arange(shape[0], dtype=jnp.int32)
    return Batch(batch, index, index.astype(jnp.float32) / shape[0])


def _kind(value: object) -> str:
    """Describe a value that is not a batch."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {shape}"
    keys = f" of {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
    return type(value).__name__ + keys


def in_precision_of(x: Array, like: Array) -> Array:
    """Return floats `x` in the type of `like` if that type is wider, and unchanged otherwise."""
    wider = jnp.finfo(like.dtype).bits > jnp.finfo(x.dtype).bits
    return x.astype(like.dtype) if wider else x


def as_float(x: ArrayLike) -> Array:
    """Return `x` as an array in its float type, or in JAX's default float type if it has none."""
    dtype = jnp.result_type(x)
    return jnp.asarray(x, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float))
