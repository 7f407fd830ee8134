"""Which checkpoints to keep: the newest ones, and the one with the lowest bound."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN


def open_manager(folder: Path, keep: int, bounds: dict[int, float], *, create: bool) -> Any:
    """Open orbax's manager of a folder, which deletes what is not to be kept.

    Args:
      folder: of the checkpoints.
      keep: number of newest steps.
      bounds: of the steps that have one; it is read at every save, and may grow.
      create: True to make the folder.
    """
    options = ocp.CheckpointManagerOptions(
        create=create, preservation_policy=AnyPreservationPolicy([LatestN(keep), _Lowest(bounds)])
    )
    return ocp.CheckpointManager(folder, options=options)


def lowest(bounds: dict[int, float]) -> int | None:
    """Return the step with the lowest bound, the first of several."""
    return min(sorted(bounds), key=bounds.__getitem__, default=None)


class _Lowest:
    """A preservation policy of orbax, whose own knows only the metrics that a step was saved with."""

    def __init__(self, bounds: dict[int, float]):
        self.bounds = bounds

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Keep the one with the lowest of the bounds, which may become known after this."""
        del context
        there = [checkpoint.step for checkpoint in checkpoints]
        best = lowest({step: self.bounds[step] for step in there if step in self.bounds})
        return [step == best for step in there]
