"""The optimizer of a config: optax's AdamW with warm-up, decay, clipping and accumulation."""

import jax
import optax

from vdm_jax.typing import Real


def make_optimizer(
    *,
    learning_rate: Real,
    warmup_steps: int,
    decay_steps: int | None,
    decay_to: float,
    weight_decay: float,
    b1: float,
    b2: float,
    clip_norm: float | None,
    accumulate: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build AdamW and its learning-rate schedule.

    Args:
      learning_rate: peak; it may be traced, for runs side by side.
      warmup_steps: updates of linear warm-up from 0.
      decay_steps: update at which a cosine decay ends; None keeps the rate. It is a number of its own,
        not the run's length, so that asking for more steps later changes nothing that was done.
      decay_to: the part of the rate that is left from there on.
      weight_decay: of AdamW, on matrices and kernels only.
      b1, b2: of Adam.
      clip_norm: bound on the gradient's global norm, or None.
      accumulate: batches averaged for one update.

    Raises:
      ValueError: a decay that ends before the warm-up does.

    Returns:
      (optimizer, rate), where rate is a function of the number of updates.
    """
    if decay_steps is None:
        rate = optax.constant_schedule(learning_rate)
    elif decay_steps > warmup_steps:
        rate = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps, decay_to)
    else:
        raise ValueError(
            f"optimizer.decay_steps: expected more than warmup_steps = {warmup_steps}, "
            f"found {decay_steps}"
        )
    if warmup_steps > 0:  # optax takes a warm-up of no steps for one that never ends
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, adamw)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, rate


def _is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)
