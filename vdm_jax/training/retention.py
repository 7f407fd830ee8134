"""Retention of checkpoints: keep the newest ones, and the one with the lowest bound."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN


def open_manager(
    folder: Path, keep: int, bounds: dict[int, float], *, create: bool
) -> ocp.CheckpointManager:
    """Open orbax's manager of a folder, which deletes the steps that are not kept.

    Args:
      folder: the folder of the checkpoints.
      keep: number of newest steps to keep.
      bounds: step -> bound; read at every save, so that the caller may add bounds later.
      create: True to make the folder.
    """
    options = ocp.CheckpointManagerOptions(
        create=create, preservation_policy=AnyPreservationPolicy([LatestN(keep), _Lowest(bounds)])
    )
    return ocp.CheckpointManager(folder, options=options)


def lowest(bounds: dict[int, float]) -> int | None:
    """Return the step with the lowest bound, the earliest of equal ones; None if there are no bounds."""
    return min(sorted(bounds), key=bounds.__getitem__, default=None)  # `min` keeps the first


class _Lowest:
    """Preservation policy that keeps the step with the lowest bound.

    Orbax's own policies use metrics given at the save, but a bound is known only after it.
    """

    def __init__(self, bounds: dict[int, float]):
        self.bounds = bounds

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Return True for the checkpoint with the lowest bound among those that are still on disk."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = lowest({step: self.bounds[step] for step in steps if step in self.bounds})
        return [step == best for step in steps]
