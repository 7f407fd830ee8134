"""A trace of some steps, for TensorBoard's profiler and for Perfetto."""

import re
from pathlib import Path
from typing import Any

import jax

from vdm_jax.runtime.processes import all_gather_json, is_first


def parse_steps(text: str) -> tuple[int, int]:
    """Read "first:last", steps counted from 0, the last one not included.

    Raises:
      ValueError: anything else, or an empty range.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--profile: expected a range of steps such as 100:120, found {text!r}")
    return int(match[1]), int(match[2])


class Profiler:
    """Traces the dispatches that hold steps [first, last), into `folder`; a context manager.

    Process 0 traces; the others wait until it has written.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self.steps, self.folder, self.running = steps, folder, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def before(self, start: int, stop: int) -> None:
        """Begin, if steps [start, stop), dispatched next, are to be traced."""
        if self.steps and not self.running and start < self.steps[1] and stop > self.steps[0]:
            if is_first():
                jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.running = True

    def after(self, stop: int, result: Any) -> None:
        """End, once the result of the steps before `stop` is there, if they were the last."""
        if self.steps and self.running and stop >= self.steps[1]:
            jax.block_until_ready(result)
            self.stop()
            self.steps = None
            all_gather_json("traced")

    def stop(self) -> None:
        """Write what was traced, if anything."""
        if self.running and is_first():
            jax.profiler.stop_trace()
        self.running = False
