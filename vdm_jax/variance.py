"""Train what lies between the ends of a schedule on the variance of the loss, in the same backward pass.

In continuous time the bound does not depend on the path between the schedule's ends, eq. (14), but the
variance of its estimate does. As its mean does not, the gradient of the variance is that of the second moment,

    ∇ E[L²] = E[2 L ∇L]                                                                   (26)

so that of each example it is its part of the bound's gradient times 2 L. That factor is known when the
backward pass begins: `tie` hands it to a handle, and `copies` takes it off there. Kingma et al. 2021, appendix.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Float, PyTree


@jax.custom_vjp
def copies(interior: PyTree, handle: Float[Array, " B"]) -> tuple[PyTree, Float[Array, " B"]]:
    """Give each example its own copy of some parameters: leaves [B, ...], and the handle.

    The gradient of each copy counts 2 times what was tied to the handle: it is that of the mean square.
    """
    n = handle.shape[0]
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), interior), handle


def _copies_forward(interior: PyTree, handle: Array) -> tuple[Any, None]:
    return copies(interior, handle), None


def _copies_backward(_: None, cotangents: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
    each, losses = cotangents

    def total(leaf):
        return jnp.tensordot(2 * losses, leaf, 1).astype(leaf.dtype)

    interior = jax.tree.map(total, each)
    return interior, jnp.zeros_like(losses)


copies.defvjp(_copies_forward, _copies_backward)


@jax.custom_vjp
def tie(loss: Float[Array, " B"], handle: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return the losses as they are; going back, the handle gets their values."""
    del handle
    return loss


def _tie_forward(loss: Array, handle: Array) -> tuple[Array, Array]:
    del handle
    return loss, loss


def _tie_backward(loss: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, loss


tie.defvjp(_tie_forward, _tie_backward)
