"""Lines beside the progress bar. A terminal that is gone, or a full disk behind it, ends no run."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from tqdm import tqdm


class Stderr:
    """stderr, whichever it is at the moment; what cannot be written is not."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR = Stderr()
"""The stream of the progress bar and of log lines, which tqdm keeps apart if they share a stream."""


def log(line: str) -> None:
    """Write a line to stderr, if possible."""
    tqdm.write(line, STDERR)


def warn(line: str) -> None:
    """Write a warning to stderr."""
    log(f"warning: {line}")


def end(line: str, status: int) -> NoReturn:
    """Write a line to stderr and end the process at once, from any thread."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(status)
