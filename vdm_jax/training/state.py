"""What a run carries from step to step: arrays only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.training.optimizer import is_running, with_running_averages
from vdm_jax.typing import Array, Int, Key, Params, PyTree


class TrainState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from.

    Attributes:
      step: int32 scalar, batches seen.
      params: what is trained.
      ema_params: their exponential moving average, float32; what is evaluated and sampled from.
      opt_state: of the optax optimizer.
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
    key: Key


def step_of(state: TrainState) -> int:
    """Its step; of states side by side, which are at the same one, too."""
    return int(np.asarray(state.step).flat[0])


def init_state(params: Params, optimizer: optax.GradientTransformation, key: Key) -> TrainState:
    """Start from params: their average starts as a copy of them, in float32 at least.

    In that type, too, are running averages among the params, whose steps half precision would round away.

    Examples:
      >>> import optax
      >>> half = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> vdm.init_state(half, optax.sgd(0.1), jax.random.key(0)).ema_params["w"].dtype
      dtype('float32')
    """
    params = jax.tree.map(
        lambda leaf, apart: (_average if apart else _strongly_typed)(leaf),
        params,
        is_running(params),
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(_average, params),
        opt_state=jax.tree.map(_strongly_typed, with_running_averages(optimizer).init(params)),
        key=key,
    )


def _strongly_typed(leaf):
    """A leaf as a step returns it: the first step, given a weak type, would compile for itself alone."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _average(param):
    return jnp.array(param, jnp.promote_types(param.dtype, jnp.float32), copy=True)
