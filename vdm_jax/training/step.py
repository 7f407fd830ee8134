"""The train step, a pure function, which `vdm_jax.training.dispatch` wraps by jit, vmap, pmap or a mesh."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.checks import check_callable, describe, real_number, takes, whole_number
from vdm_jax.training.optimizer import check_optimizer
from vdm_jax.training.state import TrainState
from vdm_jax.typing import Array, Key, Params, PyTree

Metrics = dict[str, Array]
"""Scalars by name."""

Loss = Callable[[Params, Key, PyTree], tuple[Array, Metrics]]
"""(params, key, batch) -> (scalar, metrics)."""

StatefulLoss = Callable[[Params, Key, PyTree, PyTree], tuple[Array, tuple[Metrics, PyTree]]]
"""(params, key, batch, model_state) -> (scalar, (metrics, next model state))."""

Step = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
"""(state, batch) -> (next state, metrics)."""


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
      loss: (params, key, batch) -> (scalar, metrics). Its key depends on the run and the step only, so that its
        randomness depends neither on the number of steps per dispatch nor on the devices. If the train state
        has a model state, the loss takes it as a fourth argument and returns (scalar, (metrics, next model
        state)). A model with state, such as learned training times, keeps its initial density if the train
        state has none (see `init_state`).
      optimizer: any optax transformation that needs only the gradient and the loss's `value`; a line search,
        which evaluates the loss again, does not work. Clipping and accumulation are part of the optimizer.
      ema_decay: decay of the parameters' moving average, in [0, 1).
      ema_warmup: use min(ema_decay, (1 + n)/(10 + n)) after n updates, so that early averages forget the start.
      ema_every: number of batches per update of the average: those that an optimizer accumulates for an update,
        so that the average equals that of one large batch.
      axis_name: name of a `pmap` or `vmap` axis over which gradients, metrics and the floats of the model state
        are averaged. The parts of a divided batch must be `Batch`es with their indices in the global batch;
        otherwise all parts draw the same noise.

    Returns:
      The step. Its metrics are those of the loss, "loss", "grad_norm", and "skipped": 1 where the loss or the
      gradient was not finite, so that only the step number was changed, else 0.

    Raises:
      ValueError: ema_decay outside [0, 1), ema_every not a whole number of at least 1, or ema_warmup not a
        boolean.
      TypeError: a loss that is not a callable of three or four arguments, an optimizer that is not an optax
        transformation, or an axis_name that is not a string.

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
    ema_step_size = partial(_ema_step_size, ema_decay, ema_warmup, ema_every)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        # a function of the run and the step alone, so that a resumed run draws the same noise
        key = jax.random.fold_in(state.key, state.step)
        arguments = (key, batch) if state.model_state is None else (key, batch, state.model_state)
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params, *arguments)
        metrics, model_state = (aux, None) if state.model_state is None else aux
        if axis_name is not None:
            # means spread a NaN of one device, so that all devices skip the step
            value, metrics, grads = jax.lax.pmean((value, metrics, grads), axis_name)
            model_state = jax.tree.map(partial(_mean_over, axis_name), model_state)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        with jax.numpy_dtype_promotion("standard"):  # optax takes powers of integer counts
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
        # a non-finite step changes nothing; zero updates are cheaper than selecting between old and new
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        # counters of the optimizer stay too: a skipped step does not advance the learning-rate schedule
        opt_state, model_state = jax.tree.map(
            partial(jnp.where, finite),
            (opt_state, model_state),
            (state.opt_state, state.model_state),
        )
        params = optax.apply_updates(state.params, updates)

        step_size = jnp.where(finite, ema_step_size(state, opt_state), 0.0)
        ema_params = optax.incremental_update(params, state.ema_params, step_size)
        metrics = metrics | {"loss": value, "grad_norm": grad_norm}
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        next_state = TrainState(
            state.step + 1, params, ema_params, opt_state, model_state, state.key
        )
        return next_state, metrics

    return step


def _mean_over(axis_name: str, leaf: Array) -> Array:
    """Return the mean of floats over an axis; integers and keys are the same on all devices."""
    is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.lax.pmean(leaf, axis_name) if is_float else leaf


def _ema_step_size(
    ema_decay: float, ema_warmup: bool, ema_every: int, state: TrainState, opt_state: PyTree
) -> Array:
    """Return the fraction by which the average moves to the new parameters, 0 between two updates."""
    updates, remainder = state.step // ema_every, (state.step + 1) % ema_every
    if ema_every > 1:
        # the counters of an accumulating optimizer leave out skipped steps
        updates = optax.tree.get(state.opt_state, "gradient_step", updates)
        remainder = optax.tree.get(opt_state, "mini_step", remainder)
    decay = jnp.asarray(ema_decay, jnp.float32)
    if ema_warmup:
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jnp.where(remainder == 0, 1 - decay, 0.0)
