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
"""Of the bar and of the lines: tqdm keeps those apart that go to the same file."""


def say(line: str) -> None:
    """Say a line on stderr, if it can be said."""
    tqdm.write(line, STDERR)


def warn(line: str) -> None:
    """Say a warning on stderr."""
    say(f"warning: {line}")


def end(line: str, status: int) -> NoReturn:
    """End the process at once, from any thread, having said a line."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(status)
