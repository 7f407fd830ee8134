"""Train what lies between the ends of a schedule on the variance of the loss, in the same backward pass.

In continuous time the bound does not depend on the path between the schedule's ends, eq. (14), but the
variance of its estimate does. As its mean does not, the gradient of the variance is that of the second moment,

    ∇ E[L²] = E[2 L ∇L]                                                                   (26)

so that of each example it is its part of the bound's gradient times 2 L. That factor is known when the
backward pass begins: `record_loss` hands it to a handle, and `per_example_params` takes it off there.
Kingma et al. 2021, appendix.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Float, PyTree


@jax.custom_vjp
def per_example_params(
    interior: PyTree, handle: Float[Array, " B"]
) -> tuple[PyTree, Float[Array, " B"]]:
    """Give each example its own copy of some parameters: leaves [B, ...], and the handle.

    The gradient of each copy counts 2 times the loss recorded in the handle: it is that of the mean square.
    """
    n = handle.shape[0]
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), interior), handle


def _params_forward(interior: PyTree, handle: Array) -> tuple[Any, None]:
    return per_example_params(interior, handle), None


def _params_backward(_: None, cotangents: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
    each, losses = cotangents

    def total(leaf):
        return jnp.tensordot(2 * losses, leaf, 1).astype(leaf.dtype)

    interior = jax.tree.map(total, each)
    return interior, jnp.zeros_like(losses)


per_example_params.defvjp(_params_forward, _params_backward)


@jax.custom_vjp
def record_loss(loss: Float[Array, " B"], handle: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return the losses as they are; going back, the handle gets their values."""
    del handle
    return loss


def _record_forward(loss: Array, handle: Array) -> tuple[Array, Array]:
    del handle
    return loss, loss


def _record_backward(loss: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, loss


record_loss.defvjp(_record_forward, _record_backward)
