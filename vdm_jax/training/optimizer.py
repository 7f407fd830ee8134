"""The optimizer of a config: optax's AdamW or Muon with warm-up, decay, clipping and accumulation."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from vdm_jax.checks import describe
from vdm_jax.specs import choose
from vdm_jax.typing import Real


def make_optimizer(
    *,
    name: str = "adamw",
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
    """Build an optimizer and its learning-rate schedule.

    Args:
      name: of `OPTIMIZERS`.
      learning_rate: peak; it may be traced, for runs side by side.
      warmup_steps: updates of linear warm-up from 0.
      decay_steps: update at which a cosine decay ends; None keeps the rate. It is a number of its own,
        not the run's length, so that asking for more steps later changes nothing that was done.
      decay_to: the part of the rate that is left from there on.
      weight_decay: decoupled, on matrices and kernels only.
      b1, b2: decay of Adam's moments; Muon's momentum is b1.
      clip_norm: bound on the gradient's global norm, or None.
      accumulate: batches averaged for one update.

    Raises:
      ValueError: an unknown name, a decay that ends before the warm-up does.

    Returns:
      (optimizer, rate), where rate is a function of the number of updates.
    """
    if decay_steps is None:
        rate = optax.constant_schedule(learning_rate)
    elif decay_steps > warmup_steps:
        rate = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps, decay_to)
    else:
        raise ValueError(
            f"decay_steps: expected more than warmup_steps = {warmup_steps}, found {decay_steps}"
        )
    if warmup_steps > 0:  # optax takes a warm-up of no steps for one that never ends
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    descend = choose(OPTIMIZERS, name, "name")
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, descend(rate, b1=b1, b2=b2, weight_decay=weight_decay))
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, rate


def adamw(
    rate: optax.Schedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019)."""
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)


def muon(
    rate: optax.Schedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for matrices and Flax's kernels, Adam with Nesterov's momentum for all else.

    A kernel [..., in, out] is one matrix for each place of the other axes, so that the blocks of a loop are
    trained as those outside of one. An update is about as large as Adam's at the same rate (Liu et al. 2025).
    """
    direction = optax.contrib.muon(
        1.0,
        beta=b1,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_as_matrices,
    )
    # its own decay would leave out what Adam trains, other libraries' kernels among it
    decay = optax.add_decayed_weights(-weight_decay, _is_matrix)
    return optax.chain(direction, decay, optax.scale_by_schedule(rate))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw, "muon": muon}


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless `optimizer` has the two functions of an optax transformation."""
    parts = getattr(optimizer, "init", None), getattr(optimizer, "update", None)
    if not all(map(callable, parts)):
        raise TypeError(
            f"optimizer: expected an optax optimizer such as optax.adam(1e-3), found {describe(optimizer)}"
        )


def _as_matrices(params):
    """Return the axes of each leaf that holds matrices: Flax's kernels and plain matrices."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)

    def one(path, leaf, matrix):
        return axes if matrix and (_name(path[-1:]) == "kernel" or leaf.ndim == 2) else None

    return jax.tree_util.tree_map_with_path(one, params, _is_matrix(params))


def _is_matrix(params):
    """Biases and scales are none, though those of looped blocks have an axis of blocks."""

    def one(path, leaf):
        return leaf.ndim > 1 and _name(path[-1:]) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(one, params)


def _name(path):
    """Return the name of a part in the dictionary or named tuple that holds it."""
    return jax.tree_util.keystr(path, simple=True)
