"""The only train step of the repository: pure, and wrapped from outside by jit, vmap, pmap, scan or a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vdm_jax.training.optimizer import with_running_averages, without_running_averages
from vdm_jax.training.state import TrainState
from vdm_jax.typing import Array, Key, Params

Loss = Callable[[Params, Key, Any], tuple[Array, dict[str, Array]]]
"""(params, key, batch) -> (scalar, metrics)."""

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    ema_warmup: bool = False,
    ema_every: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Make the pure step (state, batch) -> (state, metrics).

    Args:
      loss: of a model; the key it gets is that of (run, step), so that its randomness depends on neither the
        number of steps per dispatch nor of devices.
      optimizer: any optax transformation that asks for no more than the gradient and the loss's `value`, so
        no line search, which evaluates the loss again; clipping and accumulation are part of it. It does not
        see a part "running_averages" of the params, which moves by its own rule (`vdm_jax.times`).
      ema_decay: of the parameters' average, in [0, 1).
      ema_warmup: use min(ema_decay, (1 + n)/(10 + n)) after n moves, so that early averages forget the start.
      ema_every: batches for which the average moves once: those that an optimizer accumulates for an update, so
        that it is that of one large batch.
      axis_name: of a `pmap` or `vmap` axis over which gradients and metrics are averaged. The parts of a
        divided batch must be `Batch`es with their indices in the whole one, or all draw the same noise.

    Returns:
      The step. Its metrics are the loss's own, "loss", "grad_norm", and "skipped": 1 where the loss or the
      gradient was not finite, so that nothing but the number of the step was changed, else 0.

    Raises:
      ValueError: ema_decay outside [0, 1), ema_every below 1.

    Examples:
      >>> import optax
      >>> def loss(params, key, batch):
      ...     return jnp.mean((batch - params) ** 2), {}
      >>> optimizer = optax.sgd(0.5)
      >>> step = jax.jit(vdm.make_step(loss, optimizer))
      >>> state = vdm.init_state(jnp.zeros(()), optimizer, jax.random.key(0))
      >>> state, metrics = step(state, jnp.asarray([1.0, 3.0]))
      >>> float(state.params), float(metrics["loss"]), float(metrics["skipped"])
      (2.0, 5.0, 0.0)
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay: expected a value in [0, 1), found {ema_decay}")
    if ema_every < 1:
        raise ValueError(f"ema_every: expected at least 1, found {ema_every}")
    optimizer = with_running_averages(optimizer)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, key, batch)
        if axis_name is not None:
            value, grads, metrics = jax.lax.pmean((value, grads, metrics), axis_name)
        grad_norm = optax.tree.norm(without_running_averages(grads))
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
        # nothing is added, averaged or kept of a bad step; cheaper than a choice between two states
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        opt_state = jax.tree.map(partial(jnp.where, finite), opt_state, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        decay = jnp.asarray(ema_decay, jnp.float32)
        if ema_warmup:
            moves = state.step // ema_every
            decay = jnp.minimum(decay, (1 + moves) / (10 + moves))
        due = (state.step + 1) % ema_every == 0
        rate = jnp.where(finite & due, 1 - decay, 0.0)
        ema_params = optax.incremental_update(params, state.ema_params, rate)
        metrics = metrics | {"loss": value, "grad_norm": grad_norm}
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        return TrainState(state.step + 1, params, ema_params, opt_state, state.key), metrics

    return step
