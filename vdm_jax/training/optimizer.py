"""The optimizer of a config: optax's AdamW with warm-up, decay, clipping and accumulation."""

import jax
import optax


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int | None,
    weight_decay: float,
    b1: float,
    b2: float,
    clip_norm: float | None,
    accumulate: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build AdamW and its learning-rate schedule.

    Args:
      learning_rate: peak.
      warmup_steps: updates of linear warm-up from 0.
      decay_steps: update at which a cosine decay reaches 0; None keeps the rate. It is a number of its own,
        not the run's length, so that asking for more steps later changes nothing that was done.
      weight_decay: of AdamW, on matrices and kernels only.
      b1, b2: of Adam.
      clip_norm: bound on the gradient's global norm, or None.
      accumulate: batches averaged for one update.

    Returns:
      (optimizer, schedule), where schedule is a function of the number of updates.
    """
    if decay_steps is None:
        schedule = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    else:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup_steps, max(decay_steps, warmup_steps + 1)
        )
    adamw = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, adamw)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, schedule


def _is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)
