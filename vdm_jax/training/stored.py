"""The arrays of a train state in a checkpoint: their names and types, and how they are restored."""

import re
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from vdm_jax.runtime.processes import on_process_0
from vdm_jax.training.state import TrainState
from vdm_jax.typing import PyTree

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
    shardings: PyTree,
) -> TrainState:
    """Restore the arrays of a step in the structure, shapes and types of `like`.

    Args:
      manager: orbax's manager of the folder.
      folder: the folder of the checkpoints.
      step: a committed step.
      stored: the `array_types` of the state that was saved.
      like: a train state, or its shapes.
      shardings: a tree like `like`, with the new sharding of each array; None for the first device.

    Raises:
      FileNotFoundError: another process has deleted the step meanwhile.
      ValueError: the arrays cannot be restored, or differ from those of `like` in name, shape or type.
    """
    shapes = jax.eval_shape(plain_keys, like)
    expected = array_types(shapes)
    for name in [*expected, *stored]:  # orbax would silently convert to the expected type
        expected_type = expected.get(name, "nothing")
        stored_type = stored.get(name, "nothing")
        if expected_type != stored_type:
            raise ValueError(
                f"checkpoint {step} in {folder}: expected {expected_type} at state{name}, "
                f"found {stored_type}"
            )
    if shardings is None:
        first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: first_device, like)
    target = jax.tree.map(_placed, shapes, shardings)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
        plain = manager.restore(step, args=items)["state"]
    except RESTORE_ERRORS as error:
        # process 0 looks, so that all processes raise the same error
        if not on_process_0((folder / str(step)).exists):
            raise FileNotFoundError(f"no checkpoint {step} in {folder}") from error
        raise ValueError(
            f"checkpoint {step} in {folder} cannot be restored: {message_of(error)}"
        ) from error
    return plain._replace(key=jax.random.wrap_key_data(plain.key))


def plain_keys(state: TrainState) -> TrainState:
    """Return a state with its typed key replaced by integers, which orbax can write."""
    return state._replace(key=jax.random.key_data(state.key))


def array_types(plain: TrainState) -> dict[str, str]:
    """Return the type and shape of every array of a state, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def message_of(error: BaseException) -> str:
    """Return the operating system's message in an error, which TensorStore wraps, else its first line."""
    text = str(error)
    system_message = re.search(r"\[?(?:OS error|Errno) \d+[^\]\n]*\]?[^\n\[]{0,80}", text)
    if system_message:
        return system_message[0]
    return text.splitlines()[0] if text else type(error).__name__
