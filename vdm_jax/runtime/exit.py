"""Leave a command with one line on stderr and an exit status."""

import os
import sys
import time
import warnings
from typing import Any, NoReturn

import jax
from absl import logging

from vdm_jax.runtime.processes import is_first

NO_MEMORY = "RESOURCE_EXHAUSTED", "Out of memory", "out of memory"
"""Substrings of error messages about exhausted memory."""

LOST_PEER = "Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "another task"
"""Substrings of error messages about a collective that lost a process."""


def explanation(error: Exception, batch_size: int) -> str | None:
    """Return a one-line explanation of a device error, or None if the traceback should be shown."""
    line = next(iter(str(error).splitlines()), "").rstrip(".")
    if isinstance(error, MemoryError) or any(word in line for word in NO_MEMORY):
        return (
            f"out of memory with config.train.batch_size = {batch_size}: {line or 'no memory left'}; "
            "give a smaller one, with config.optimizer.accumulate and more config.train.steps for as "
            "many examples per update, or a network with remat = 'full'"
        )
    if jax.process_count() == 1:
        return None
    lost_peer = any(word in line for word in LOST_PEER)
    return f"another process is gone: {line}" if lost_peer else line


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error as one line and exit."""
    leave(f"error: {' '.join(message.split())}", status)


def leave(line: str, status: int) -> NoReturn:
    """Print a line to stderr and exit, even if the streams are closed or other processes wait."""
    for stream, text, number in ((sys.stdout, "", 1), (sys.stderr, f"{line}\n", 2)):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:
            # a closed terminal or pipe: Python's flush at exit would fail and change the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    if jax.distributed.is_initialized():
        # the usual exit waits for the other processes, which may wait for this one. Without process 0 they end
        # at once; the delay lets them print their own line first
        if is_first():
            time.sleep(1)
        os._exit(status)
    sys.exit(status)


def silence_failed_saves() -> None:
    """Silence other reports of a failed save, so that only the training loop reports it, in one line.

    Orbax logs tracebacks, and closes its event loop at the first file that cannot be written. The remaining
    coroutines are then never awaited, and TensorStore's threads print a traceback for every other file, at any
    time until the process ends.
    """
    logging.set_verbosity(logging.FATAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _without_closed_loops


def _without_closed_loops(unraisable: Any) -> None:
    """Report an unraisable exception, unless it is about the closed event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
