"""Train state: a pytree of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.checks import check_floats, check_key
from vdm_jax.training.optimizer import check_optimizer
from vdm_jax.typing import Array, Int, Key, Params, PyTree


class TrainState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from.

    Attributes:
      step: int32 scalar, batches seen.
      params: what is trained.
      ema_params: their exponential moving average, float32; what is evaluated and sampled from.
      opt_state: of the optax optimizer.
      model_state: what else the loss changes, such as running averages; None for a loss without state.
      key: of the run; never used up, each step folds its number in.

    Examples:
      >>> import optax
      >>> state = vdm.init_state({"w": jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
      >>> int(state.step), state.ema_params["w"].tolist()
      (0, [1.0, 1.0])
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: PyTree
    model_state: PyTree
    key: Key


def step_of(state: TrainState) -> int:
    """Its step; of states side by side, which are at the same one, too."""
    return int(np.asarray(state.step).flat[0])


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    model_state: PyTree = None,
) -> TrainState:
    """Return the train state that training starts from.

    Args:
      params: trees of floats. Their average starts as a copy of them, in float32 at least.
      optimizer: any optax transformation.
      key: of the run.
      model_state: of a loss that has one (`Model.init_model_state`), or None.

    Raises:
      TypeError: params that are no tree of floats, an optimizer that is none of optax, no typed key.

    Examples:
      >>> import optax
      >>> half = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> vdm.init_state(half, optax.sgd(0.1), jax.random.key(0)).ema_params["w"].dtype
      dtype('float32')
    """
    _check_params(params)
    check_optimizer(optimizer)
    check_key(key)
    params = jax.tree.map(_strongly_typed, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(_average, params),
        opt_state=jax.tree.map(_strongly_typed, optimizer.init(params)),
        model_state=jax.tree.map(_strongly_typed, model_state),
        key=key,
    )


def _check_params(params: Params) -> None:
    if params is None:
        raise TypeError("params: expected a tree of float arrays, found None")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        check_floats(leaf, f"params{jax.tree_util.keystr(path)}")


def _strongly_typed(leaf):
    """A leaf as a step returns it: the first step, given a weak type, would compile for itself alone."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _average(param):
    return jnp.array(param, jnp.promote_types(param.dtype, jnp.float32), copy=True)
