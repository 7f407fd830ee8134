"""Gradients of the loss's variance for the parameters between a schedule's ends, in the same backward pass.

In continuous time the bound does not depend on the path between the schedule's ends, eq. (14), but the
variance of its estimate does. Because the mean is constant, the gradient of the variance is that of the second
moment,

    ∇ E[L²] = E[2 L ∇L]                                                                   (39)

so that the contribution of each example is its gradient of the bound times 2 L. The losses are known when the
backward pass begins: `record_loss` passes them to a handle as its cotangent, and `per_example_params`, which
the backward pass reaches last, multiplies by them. Source: Kingma et al. 2021, appendix.
"""

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Float, PyTree


@jax.custom_vjp
def per_example_params(
    interior: PyTree, handle: Float[Array, " B"]
) -> tuple[PyTree, Float[Array, " B"]]:
    """Return a copy of some parameters for each example, with leaves [B, ...], and the handle.

    In the backward pass, the gradient of each copy is multiplied by 2 times the loss recorded in the handle, so
    that the sum over the copies is the gradient of the squared losses.
    """
    n = handle.shape[0]
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), interior), handle


def _params_forward(interior: PyTree, handle: Array) -> tuple[tuple[PyTree, Array], None]:
    return per_example_params(interior, handle), None


def _params_backward(_: None, cotangents: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
    copies, losses = cotangents  # the cotangent of the handle holds the losses, see `record_loss`

    def weighted_sum(leaf):
        return jnp.tensordot(2 * losses, leaf, 1).astype(leaf.dtype)

    interior = jax.tree.map(weighted_sum, copies)
    return interior, jnp.zeros_like(losses)


per_example_params.defvjp(_params_forward, _params_backward)


@jax.custom_vjp
def record_loss(loss: Float[Array, " B"], handle: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return the losses unchanged; in the backward pass, their values become the cotangent of the handle."""
    del handle
    return loss


def _record_forward(loss: Array, handle: Array) -> tuple[Array, Array]:
    del handle
    return loss, loss


def _record_backward(loss: Array, cotangent: Array) -> tuple[Array, Array]:
    # the second is not a gradient: it carries the losses to `per_example_params`
    return cotangent, loss


record_loss.defvjp(_record_forward, _record_backward)
