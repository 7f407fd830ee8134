"""What a run carries from step to step: arrays only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vdm_jax.typing import Array, Int, Key, Params, PyTree


class TrainState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from.

    Attributes:
      step: int32 scalar, batches seen.
      params: what is trained.
      ema_params: their exponential moving average, float32; what is evaluated and sampled from.
      opt_state: of the optax optimizer.
      key: of the run; never used up, each step folds its number in.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: PyTree
    key: Key


def init_state(params: Params, optimizer: optax.GradientTransformation, key: Key) -> TrainState:
    """Start from params: the average starts as a copy of them."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
    )
