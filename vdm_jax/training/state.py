"""The train state: a pytree of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from vdm_jax.checks import check_floats, check_key
from vdm_jax.training.optimizer import check_optimizer
from vdm_jax.typing import Array, Int, Key, Params, PyTree


class TrainState(NamedTuple):
    """Train state: a pytree of all arrays that a step changes, and the key of the run.

    Attributes:
      step: int32 scalar, number of batches seen.
      params: the trained parameters.
      ema_params: their exponential moving average, float32 or wider; used for evaluation and sampling.
      opt_state: state of the optax optimizer.
      model_state: state that the loss updates, such as running averages; None for a loss without state.
      key: key of the run. It never changes: each step folds its number into it.

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
    """Return the step of a state; the runs of a sweep are all at the same step."""
    return int(np.asarray(state.step).flat[0])


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    model_state: PyTree = None,
) -> TrainState:
    """Return the initial train state.

    Args:
      params: a tree of floats. Their average starts as a copy of them, in float32 at least.
      optimizer: any optax transformation.
      key: key of the run.
      model_state: initial state of the loss, if it has one (`Model.init_model_state`), or None.

    Raises:
      TypeError: params that are not a tree of floats, an optimizer that is not an optax transformation, or a
        key that is not a typed key.

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


def _strongly_typed(leaf: ArrayLike) -> Array:
    """Return a leaf without a weak type, as steps return it; otherwise the second step would compile again."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _average(param: Array) -> Array:
    """Return the initial average of a parameter: a copy, because no buffer may be donated twice."""
    return jnp.array(param, jnp.promote_types(param.dtype, jnp.float32), copy=True)
