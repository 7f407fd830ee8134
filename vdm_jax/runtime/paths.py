"""Paths given by users: expand the home folder, reject addresses of buckets."""

import os
import re
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Start of an address: gs://bucket, or its `Path`, which has one slash; not a drive, C:/, with one letter."""


def local_path(path: object, where: str) -> Path:
    """Return a user's path on this machine, with '~' expanded.

    Args:
      path: a string or `os.PathLike`; it need not exist.
      where: the name of the flag, field or argument, for messages.

    Raises:
      TypeError: neither a string nor a path.
      ValueError: an empty path, a NUL byte, an address such as gs://bucket, an unknown user's home folder.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{where}: expected a path, found {path!r}")
    if not text or "\0" in text:
        raise ValueError(f"{where}: expected a path, found {text!r}")
    if ADDRESS.match(text):
        raise ValueError(
            f"{where}: expected a path on this machine, found {text!r}; buckets and other addresses "
            "are not supported yet"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{where}: {text!r} has no home folder here") from error


def check_workdir(path: object, where: str = "workdir") -> Path:
    """Return the path of a run's folder, which need not exist.

    Raises:
      TypeError, ValueError: see `local_path`.
      NotADirectoryError: the path is a file.
    """
    folder = local_path(path, where)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{where}: expected a folder, found the file {str(folder)!r}")
    return folder


def named_folder(parent: Path, name: str, flag: str) -> Path:
    """Return the path of a folder in `parent`.

    Args:
      parent: an existing or future folder.
      name: a plain file name.
      flag: the name of the flag, for messages.

    Raises:
      ValueError: a name that is not a plain file name, or a link to another place.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{flag}: expected up to 100 letters, digits, '.', '_' and '-', starting with a letter or digit, "
            f"found {name!r}; "
            "other folders are given as --workdir"
        )
    path = parent / name
    if path.resolve().parent != parent.resolve():
        raise ValueError(
            f"{flag}: {name!r} is a link to {path.resolve()}, expected a folder in {parent}/"
        )
    return path
