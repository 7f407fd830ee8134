"""The vocabulary of signatures: what an array means, and the batch that travels through the floors.

Shapes are written per example: `*d` is the data shape, `B` a batch axis, "" a scalar. The annotations
cost nothing at run time; the tests check them at every call.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as TypedKey

from vdm_jax.checks import check_array

Data = Float[Array, "*d"]
"""One example, or a latent of it, in the data's own shape."""

Scalar = Float[Array, ""]
"""A scalar of the mathematics: γ, Δ, a weight, nats."""

Real = float | int | Float[Array, "..."] | Int[Array, "..."]
"""A real number, or an array of them where a function is elementwise (times of a schedule)."""

Reals = Float[Array, "..."]
"""The result of an elementwise function of a `Real`."""

Key = PRNGKeyArray
"""A typed key, `jax.random.key(...)`."""

Keys = TypedKey[Array, "B"]
"""One for each example of a batch."""

Params = PyTree

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Data",
    "Float",
    "Int",
    "Key",
    "Keys",
    "Params",
    "PyTree",
    "Real",
    "Reals",
    "Scalar",
    "as_batch",
    "as_float",
    "in_precision_of",
]


class Batch(NamedTuple):
    """Examples and their place in the global batch, which keys their randomness.

    Attributes:
      x: [B, *d], the data as stored (integers for K-level data).
      index: int32 [B], the example's index in the global batch of its step.
      phase: float32 [B] in [0, 1), index / size of the global batch; stratifies the times, eq. (15).

    Examples:
      >>> batch = vdm.Batch(jnp.zeros((2, 3)), jnp.arange(2), jnp.asarray([0.0, 0.5]))
      >>> batch.x.shape, batch.index.tolist(), batch.phase.tolist()
      ((2, 3), [0, 1], [0.0, 0.5])
    """

    x: Any
    index: Any
    phase: Any


def as_batch(batch: Batch | Any) -> Batch:
    """Give a plain array [B, *d] the places of a batch that is global by itself.

    Raises:
      TypeError: neither a batch nor an array of examples; a masked array.

    Examples:
      >>> from vdm_jax.typing import as_batch
      >>> as_batch(jnp.zeros((4, 3))).phase.tolist()
      [0.0, 0.25, 0.5, 0.75]
    """
    x = batch.x if isinstance(batch, Batch) else batch
    if not hasattr(x, "shape") or not x.shape:
        raise TypeError(f"batch: expected a `Batch` or an array [B, *d], found {_kind(x)}")
    check_array(x, "batch")
    if isinstance(batch, Batch):
        return batch
    index = jnp.arange(batch.shape[0], dtype=jnp.int32)
    return Batch(batch, index, index.astype(jnp.float32) / batch.shape[0])


def _kind(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    keys = f" of {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
    return type(value).__name__ + keys


def in_precision_of(x: Array, like: Array) -> Array:
    """Return floats `x` in the type of `like` if that is wider, which loses nothing."""
    wider = jnp.finfo(like.dtype).bits > jnp.finfo(x.dtype).bits
    return x.astype(like.dtype) if wider else x


def as_float(x: Any) -> Array:
    """Return `x` as an array of its own float type, or of JAX's default one if it has none."""
    dtype = jnp.result_type(x)
    return jnp.asarray(x, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float))
