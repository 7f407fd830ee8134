"""The arrays of a train state as a checkpoint stores them: named, typed, and restored where they are wanted."""

import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdm_jax.runtime.processes import on_process_0
from vdm_jax.training.state import TrainState

SAVE_ERRORS = OSError, ValueError, RuntimeError
"""Errors of orbax and TensorStore when something cannot be written."""

RESTORE_ERRORS = *SAVE_ERRORS, TypeError, KeyError, AttributeError, IndexError
"""Errors of orbax and TensorStore when the files of a step are not as expected."""


def restore_arrays(
    manager: ocp.CheckpointManager,
    folder: Path,
    step: int,
    stored: dict[str, str],
    like: TrainState,
    shardings: Any,
) -> TrainState:
    """Restore the arrays of a step in the structure, shapes and types of `like`.

    Args:
      manager: of orbax, of the folder.
      folder: of the checkpoints.
      step: a committed one.
      stored: what `array_types` returned when the step was saved.
      like: a train state, or its shapes.
      shardings: a tree like it, where the arrays are to lie; None for the first device.

    Raises:
      FileNotFoundError: the step was deleted meanwhile.
      ValueError: the arrays cannot be restored, or are not those of `like`, by name, shape and type.
    """
    shapes = jax.eval_shape(plain_keys, like)
    expected = array_types(shapes)
    for name in [*expected, *stored]:  # orbax would convert types without a word
        here, there = expected.get(name, "nothing"), stored.get(name, "nothing")
        if here != there:
            raise ValueError(
                f"checkpoint {step} in {folder}: expected {here} at state{name}, found {there}"
            )
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: first, like) if shardings is None else shardings
    target = jax.tree.map(_placed, shapes, places)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
        plain = manager.restore(step, args=items)["state"]
    except RESTORE_ERRORS as error:
        if not on_process_0((folder / str(step)).exists):
            raise FileNotFoundError(f"no checkpoint {step} in {folder}") from error
        raise ValueError(
            f"checkpoint {step} in {folder} cannot be restored: {message_of(error)}"
        ) from error
    return plain._replace(key=jax.random.wrap_key_data(plain.key))


def plain_keys(state: TrainState) -> TrainState:
    """Return a state whose typed key is integers, which can be written."""
    return state._replace(key=jax.random.key_data(state.key))


def array_types(plain: TrainState) -> dict[str, str]:
    """Return the type and shape of every array of a state, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def message_of(error: BaseException) -> str:
    """Return the message of the system, if there is one, else the first line."""
    text = str(error)
    of_system = re.search(r"\[?(?:OS error|Errno) \d+[^\]\n]*\]?[^\n\[]{0,80}", text)
    return of_system[0] if of_system else (text.splitlines() or [type(error).__name__])[0]
