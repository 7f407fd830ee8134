"""The only train step of the repository: pure, and wrapped from outside by jit, vmap, pmap, scan or a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.checks import check_callable, describe, real_number, takes, whole_number
from vdm_jax.training.optimizer import check_optimizer
from vdm_jax.training.state import TrainState
from vdm_jax.typing import Array, Key, Params, PyTree

Metrics = dict[str, Array]

Loss = Callable[[Params, Key, Any], tuple[Array, Metrics]]
"""(params, key, batch) -> (scalar, metrics)."""

StatefulLoss = Callable[[Params, Key, Any, PyTree], tuple[Array, tuple[Metrics, PyTree]]]
"""(params, key, batch, model_state) -> (scalar, (metrics, next model state))."""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_step(
    loss: Loss | StatefulLoss,
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
        number of steps per dispatch nor of devices. If the train state has a model state, the loss gets it as a
        fourth argument and returns (scalar, (metrics, next model state)). A model with state, such as learned
        training times, keeps its first density if the train state has none (see `init_state`).
      optimizer: any optax transformation that asks for no more than the gradient and the loss's `value`, so
        no line search, which evaluates the loss again; clipping and accumulation are part of it.
      ema_decay: of the parameters' average, in [0, 1).
      ema_warmup: use min(ema_decay, (1 + n)/(10 + n)) after n moves, so that early averages forget the start.
      ema_every: batches for which the average moves once: those that an optimizer accumulates for an update, so
        that it is that of one large batch.
      axis_name: of a `pmap` or `vmap` axis over which gradients, metrics and the floats of the model state are
        averaged. The parts of a divided batch must be `Batch`es with their indices in the whole one, or all
        draw the same noise.

    Returns:
      The step. Its metrics are the loss's own, "loss", "grad_norm", and "skipped": 1 where the loss or the
      gradient was not finite, so that nothing but the number of the step was changed, else 0.

    Raises:
      ValueError: ema_decay outside [0, 1), ema_every below 1 or no whole number.
      TypeError: a loss that is no callable of three or four arguments, an optimizer that is none of optax.

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
    if not (callable(loss) and takes(loss, 4)):
        check_callable(loss, ("params", "key", "batch"), "loss")
    check_optimizer(optimizer)
    real_number(ema_decay, "ema_decay", "a value in [0, 1)", lambda value: 0 <= value < 1)
    ema_every = whole_number(ema_every, "ema_every", 1)
    if not isinstance(ema_warmup, bool | np.bool_):
        raise ValueError(f"ema_warmup: expected True or False, found {describe(ema_warmup)}")
    if not isinstance(axis_name, str | None):
        raise TypeError(f"axis_name: expected a name or None, found {describe(axis_name)}")
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        arguments = (key, batch) if state.model_state is None else (key, batch, state.model_state)
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params, *arguments)
        metrics, model_state = (aux, None) if state.model_state is None else aux
        if axis_name is not None:
            value, metrics, grads = jax.lax.pmean((value, metrics, grads), axis_name)
            model_state = jax.tree.map(partial(_mean_over, axis_name), model_state)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        with jax.numpy_dtype_promotion("standard"):  # optax takes powers of integer counts
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
        # a bad step changes nothing; cheaper than a choice between two states
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        opt_state, model_state = jax.tree.map(
            partial(jnp.where, finite),
            (opt_state, model_state),
            (state.opt_state, state.model_state),
        )
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
        return TrainState(
            state.step + 1, params, ema_params, opt_state, model_state, state.key
        ), metrics

    return step


def _mean_over(axis_name: str, leaf: Array) -> Array:
    """Return the mean of floats over an axis; counters and keys are the same on all devices."""
    is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.lax.pmean(leaf, axis_name) if is_float else leaf
