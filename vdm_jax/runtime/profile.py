"""Traces of training steps, for TensorBoard's profiler and for Perfetto."""

import re
from pathlib import Path

import jax

from vdm_jax.runtime.processes import all_gather_json, is_first
from vdm_jax.typing import PyTree


def parse_steps(text: str) -> tuple[int, int]:
    """Parse "first:last", a range of steps counted from 0, without the last one.

    Raises:
      ValueError: other text, or an empty range.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--profile: expected a range of steps such as 100:120, found {text!r}")
    return int(match[1]), int(match[2])


class Profiler:
    """Profiler of the dispatches that contain steps [first, last), into `folder`; a context manager.

    Process 0 traces; the others wait until it has written the trace.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self.steps, self.folder, self.running = steps, folder, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def before(self, start: int, stop: int) -> None:
        """Start the trace if the next dispatch, of steps [start, stop), is the first with steps to trace."""
        if self.steps and not self.running and start < self.steps[1] and stop > self.steps[0]:
            if is_first():
                jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.running = True

    def after(self, stop: int, result: PyTree) -> None:
        """Stop the trace if the last dispatch, of steps before `stop`, was the last to trace.

        Args:
          stop: the step after the dispatch.
          result: arrays of the dispatch, which are waited for first, because dispatch is asynchronous.
        """
        if self.steps and self.running and stop >= self.steps[1]:
            jax.block_until_ready(result)
            self.stop()
            self.steps = None
            all_gather_json("traced")  # writing may take longer than the limit of the next wait

    def stop(self) -> None:
        """Write the trace, if one is running."""
        if self.running and is_first():
            jax.profiler.stop_trace()
        self.running = False
