"""The lock of a folder: a single process writes there, and detects that the folder was replaced."""

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from vdm_jax.runtime.files import open_append

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None


class FolderLock:
    """Lock of a folder, held until it is closed.

    Args:
      path: the lock file in the folder, created if missing.

    Raises:
      OSError: another process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self.file = path, _locked(path)

    def write(self, token: str) -> None:
        """Write a token for other processes of the same run to read."""
        with suppress(OSError):  # a full disk; the lock itself needs no content
            self.file.truncate(0)
            self.file.write(token.encode())

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
          OSError: the folder was deleted, or another process has replaced it.
        """
        folder, locked = self.path.parent, os.fstat(self.file.fileno())
        try:
            current = self.path.lstat()
        except OSError:
            raise OSError(f"{folder} was deleted while the run was writing to it") from None
        if (current.st_dev, current.st_ino) != (locked.st_dev, locked.st_ino):
            raise OSError(f"{folder} was replaced while the run was writing to it")

    def close(self) -> None:
        self.file.close()


def _locked(path: Path) -> FileIO:
    """Open and lock a file.

    Raises:
      OSError: another process holds the lock, or the file cannot be written.
    """
    file = open_append(path)
    try:
        if os.fstat(file.fileno()).st_nlink > 1:
            # writing the token would overwrite a file elsewhere
            raise OSError(f"{path} has a second hard link, expected a file of this folder alone")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"{path.parent}: another process is training there") from error
    except OSError as error:
        if error.errno is None:  # raised above
            file.close()
            raise
        # otherwise the file system has no locks: continue without one
    return file
