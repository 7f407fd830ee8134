"""The optimizer of a config: optax's AdamW or Muon with warm-up, decay, clipping and accumulation."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.tree_util import KeyPath

from vdm_jax.checks import describe
from vdm_jax.specs import choose
from vdm_jax.typing import Array, Params, PyTree, Real


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
      name: a name of `OPTIMIZERS`.
      learning_rate: peak learning rate; traced for the runs of a sweep.
      warmup_steps: number of updates of linear warm-up from 0.
      decay_steps: update at which a cosine decay ends; None for a constant rate. It does not follow the length
        of the run, so that a run can be extended without changing the steps already taken.
      decay_to: final learning rate as a fraction of the peak.
      weight_decay: decoupled, on matrices and kernels only.
      b1, b2: decay rates of Adam's moments; b1 is also Muon's momentum.
      clip_norm: bound on the gradient's global norm, or None.
      accumulate: number of batches averaged for one update.

    Returns:
      (optimizer, rate), where `rate` maps the number of updates to the learning rate.

    Raises:
      ValueError: an unknown name, or a decay that does not end after the warm-up.
    """
    if decay_steps is None:
        rate = optax.constant_schedule(learning_rate)
    elif decay_steps > warmup_steps:
        rate = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps, decay_to)
    else:
        raise ValueError(
            f"decay_steps: expected more than warmup_steps = {warmup_steps}, found {decay_steps}"
        )
    if warmup_steps > 0:  # optax's linear_schedule of 0 steps stays at its initial value, 0
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    factory = choose(OPTIMIZERS, name, "name")
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    # inside of MultiSteps: the clipped gradient is the accumulated one
    optimizer = optax.chain(clip, factory(rate, b1=b1, b2=b2, weight_decay=weight_decay))
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, rate


def adamw(
    rate: optax.Schedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter 2019)."""
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)


def muon(
    rate: optax.Schedule, *, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return Muon (Jordan 2024) for matrices and Flax's kernels, and Nesterov-momentum Adam for the rest.

    A kernel [..., in, out] is a stack of matrices, so that the blocks of a scanned stack are trained like
    unrolled ones. An update is about as large as Adam's at the same rate (Liu et al. 2025).
    """
    direction = optax.contrib.muon(
        1.0,
        beta=b1,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,  # about the RMS of Adam's updates, for any shape of the matrix
        muon_weight_dimension_numbers=_as_matrices,
    )
    # Muon's own weight decay would skip what Adam trains, such as the kernels of other libraries than Flax
    decay = optax.add_decayed_weights(-weight_decay, _is_matrix)
    # at rate 1 the direction already has the sign of a descent, hence the negative decay; the rate scales both
    return optax.chain(direction, decay, optax.scale_by_schedule(rate))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw, "muon": muon}
"""Optimizers by name: (rate, b1=..., b2=..., weight_decay=...) -> transformation."""


def check_optimizer(optimizer: object) -> None:
    """Raise TypeError unless `optimizer` has the two functions of an optax transformation."""
    functions = getattr(optimizer, "init", None), getattr(optimizer, "update", None)
    if not all(map(callable, functions)):
        raise TypeError(
            f"optimizer: expected an optax optimizer such as optax.adam(1e-3), found {describe(optimizer)}"
        )


def _as_matrices(params: Params) -> PyTree:
    """Return the matrix axes of each leaf: of Flax's kernels and of plain matrices; None for other leaves."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)

    def axes_of(path: KeyPath, leaf: Array, is_matrix: bool) -> Any:
        return axes if is_matrix and (_name(path[-1:]) == "kernel" or leaf.ndim == 2) else None

    return jax.tree_util.tree_map_with_path(axes_of, params, _is_matrix(params))


def _is_matrix(params: Params) -> PyTree:
    """Return True for each leaf that is a matrix or a kernel.

    Biases and scales are excluded by name, because those of scanned blocks have an additional axis of blocks.
    """

    def is_matrix(path: KeyPath, leaf: Array) -> bool:
        return leaf.ndim > 1 and _name(path[-1:]) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _name(path: KeyPath) -> str:
    """Return the name of a leaf in the dictionary or named tuple that holds it."""
    return jax.tree_util.keystr(path, simple=True)
