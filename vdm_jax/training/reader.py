"""Verified reading of a run's checkpoints, while another process may be writing them.

`vdm_jax.training.checkpoint` describes the files of the folder.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vdm_jax.runtime.console import warn
from vdm_jax.runtime.processes import on_process_0
from vdm_jax.training.recovery import (
    RETRIES,
    annotations_by_step,
    committed,
    damage,
    find_newest,
    read_about,
    whole_steps,
)
from vdm_jax.training.retention import lowest, open_manager
from vdm_jax.training.state import TrainState
from vdm_jax.training.stored import restore_arrays
from vdm_jax.typing import PyTree


class CheckpointReader:
    """The checkpoints of a run, in `folder`, for reading only; a context manager.

    Opening a reader finds the newest intact step.

    Args:
      folder: the folder `checkpoints` of a run.
      log: called with each warning, in process 0.

    Raises:
      ValueError: all steps are damaged.
      OSError: the folder holds links or special files, or cannot be read.

    Attributes:
      newest: the newest intact step, found at opening or saved since; None if there is none.
    """

    newest: int | None
    retries = RETRIES

    def __init__(self, folder: Path | str, *, log: Callable[[str], None] = warn):
        self.folder, self.log = Path(folder).absolute(), log
        self._abouts: dict[int, dict[str, Any]] = {}
        self._open()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_manager()

    def _open(self) -> None:
        """Find the newest intact step, read the annotations and open orbax's manager."""
        self.newest = on_process_0(partial(find_newest, self.folder, self.log))
        self.annotations = self._read_annotations()
        self.manager = open_manager(self.folder, keep=1, bounds={}, create=False)

    def steps(self) -> list[int]:
        """Return the committed steps, oldest first."""
        return committed(self.folder)

    def whole(self) -> list[int]:
        """Return the intact steps, oldest first; report the damage of the others."""
        return on_process_0(partial(whole_steps, self.folder, self.log))

    def best(self) -> int | None:
        """Return the step with the lowest bound, or None if no step has one; report damaged steps."""
        return lowest(self._bounds(self.whole()))

    def about(self, step: int) -> dict[str, Any]:
        """Return the `about` of a checkpoint, overridden by its annotations."""
        if step not in self._abouts:
            self._abouts[step] = on_process_0(partial(read_about, self.folder, step))
        return self._abouts[step] | self.annotations.get(step, {})

    def restore(
        self, like: TrainState, step: int | None = None, *, shardings: PyTree = None
    ) -> TrainState:
        """Restore a checkpoint in the structure, shapes and types of `like`.

        Args:
          like: a train state, or its shapes.
          step: the step to restore; the newest intact one by default.
          shardings: a tree like `like`, with the new sharding of each array; by default all arrays are put on
            the first device. The shardings at the time of the save do not matter.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it is damaged, or its arrays differ from those of `like` in name, shape or type.
        """
        if step is not None:
            steps = self.steps()
            if step not in steps:
                raise FileNotFoundError(f"no checkpoint {step} in {self.folder}, found {steps}")
            if fault := on_process_0(partial(damage, self.folder, step)):
                raise ValueError(f"checkpoint {step} in {self.folder} is damaged: {fault}")
            return self._arrays(step, like, shardings)
        for attempt in range(1, self.retries + 1):
            if self.newest is None:
                break
            try:
                return self._arrays(self.newest, like, shardings)
            except FileNotFoundError:  # deleted by a running process, which has saved newer ones
                if attempt == self.retries:
                    raise
                self._reopen()
        raise FileNotFoundError(f"no checkpoint in {self.folder}")

    def restore_best(self, like: TrainState, *, shardings: PyTree = None) -> TrainState:
        """Restore the step with the lowest bound.

        Raises:
          FileNotFoundError: no step has a bound.
          ValueError: its arrays differ from those of `like`.
        """
        for attempt in range(1, self.retries + 1):
            step = self.best()
            if step is None:
                break
            try:
                return self.restore(like, step, shardings=shardings)
            except FileNotFoundError:  # deleted by a running process, which has found a better one
                if attempt == self.retries:
                    raise
                self._reopen()
        raise FileNotFoundError(
            f"no best checkpoint in {self.folder}: config.train.evaluate_every evaluated none"
        )

    def _arrays(self, step: int, like: TrainState, shardings: PyTree) -> TrainState:
        stored = self.about(step)["arrays"]
        return restore_arrays(self.manager, self.folder, step, stored, like, shardings)

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _reopen(self) -> None:
        self._close_manager()
        self._open()

    def _bounds(self, steps: list[int]) -> dict[int, float]:
        """Return the bounds of the steps that have one."""
        bounds = {step: self.about(step).get("bound") for step in steps}
        return {step: bound for step, bound in bounds.items() if isinstance(bound, int | float)}

    def _read_annotations(self) -> dict[int, dict[str, Any]]:
        # pairs, because the result is sent to the other processes as JSON, which has no integer keys
        pairs = on_process_0(lambda: [*annotations_by_step(self.folder, self.log).items()])
        return dict(pairs)

    def _close_manager(self) -> None:
        """Close orbax's manager, which after a failed save raises once before it closes anything."""
        for _ in range(2):
            with suppress(Exception):
                self.manager.close()
                return
