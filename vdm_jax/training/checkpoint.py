"""Checkpoints: orbax, written in the background, two newest kept."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdm_jax.training.state import TrainState, step_of

LIBRARIES = "vdm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"


def library_versions() -> dict[str, str]:
    """Versions that a checkpoint or a report was made with."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            found[name] = "unknown"
    return found


class CheckpointStore:
    """The checkpoints of one run, in `folder`; a context manager that waits for the last save."""

    def __init__(self, folder: Path | str, keep: int = 2):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.close()

    def latest(self) -> int | None:
        """Number of the newest complete step, or None."""
        return self.manager.latest_step()

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Begin to save a state under its step; returns before it is written."""
        step, plain = step_of(state), _plain(state)
        if step == self.latest():
            return
        more = {"arrays": _arrays(plain), "versions": library_versions()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(plain), about=ocp.args.JsonSave(about | more)
        )
        self.manager.save(step, args=items)

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself: what it was saved with, its arrays, the libraries' versions."""
        items = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self.manager.restore(step, args=items)["about"]

    def restore(
        self, like: TrainState, step: int | None = None, *, shardings: Any = None
    ) -> TrainState:
        """Restore a step (the newest) in the structure, shapes and types of `like`.

        `shardings`, a tree like it, say where its arrays are to lie, wherever they lay when they were saved;
        on the first device by default.

        Raises:
          FileNotFoundError: there is none.
          ValueError: its arrays are not those of `like`, by name, shape and type.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        shapes = jax.eval_shape(_plain, like)
        found, expected = self.about(step)["arrays"], _arrays(shapes)
        for name in [*expected, *found]:  # orbax would convert types without a word
            here, there = expected.get(name, "nothing"), found.get(name, "nothing")
            if here != there:
                raise ValueError(
                    f"checkpoint {step} in {self.folder}: expected {here} at state{name}, found {there}"
                )
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: first, like) if shardings is None else shardings
        target = jax.tree.map(_placed, shapes, places)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        plain = self.manager.restore(step, args=items)["state"]
        return plain._replace(key=jax.random.wrap_key_data(plain.key))


def _plain(state: TrainState) -> TrainState:
    """Typed keys as the integers that can be written."""
    return state._replace(key=jax.random.key_data(state.key))


def _arrays(plain: TrainState) -> dict[str, str]:
    """Name -> type and shape of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
