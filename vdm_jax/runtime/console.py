"""Log lines that do not disturb the progress bar. Failed writes are dropped, so that they never end a run."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from tqdm import tqdm


class Stderr:
    """Stream that writes to the current `sys.stderr` and drops text that cannot be written."""

    def write(self, text: str) -> int:
        # OSError: a full disk or a closed terminal; ValueError: a closed Python stream
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR = Stderr()
"""The stream of the progress bar and of log lines; tqdm moves the bar out of the way on a shared stream."""


def log(line: str) -> None:
    """Write a line to stderr, if possible."""
    tqdm.write(line, STDERR)


def warn(line: str) -> None:
    """Write a warning to stderr."""
    log(f"warning: {line}")


def end(line: str, status: int) -> NoReturn:
    """Write a line to stderr and end the process immediately, from any thread."""
    # sys.exit would end the calling thread only; os._exit does not flush
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(status)
