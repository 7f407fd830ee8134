"""The lock of a folder: one process writes there, and notices if the folder is no longer the same."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vdm_jax.runtime.files import open_append

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None


class FolderLock:
    """The lock of a folder, held until it is closed.

    Args:
      path: the file of the lock in the folder, made if missing.

    Raises:
      OSError: another process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self.file = path, _locked(path)

    def write(self, token: str) -> None:
        """Write a token for other processes of the same run to read."""
        with suppress(OSError):  # of a full disk
            self.file.truncate(0)
            self.file.write(token.encode())

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
          OSError: the folder was deleted, or begun anew by another process.
        """
        mine, folder = os.fstat(self.file.fileno()), self.path.parent
        try:
            there = self.path.lstat()
        except OSError:
            raise OSError(f"{folder} was deleted while the run was writing to it") from None
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise OSError(f"{folder} was begun anew while the run was writing to it")

    def close(self) -> None:
        self.file.close()


def _locked(path: Path) -> Any:
    """Return an open file that no other process has locked."""
    file = open_append(path)
    try:
        if os.fstat(file.fileno()).st_nlink > 1:  # its content would be overwritten elsewhere
            raise OSError(f"{path} has another name too, expected a file of this folder alone")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"{path.parent}: another process is training there") from error
    except OSError as error:
        if error.errno is None:
            file.close()
            raise
        # otherwise a file system without locks
    return file
