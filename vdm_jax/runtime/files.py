"""File operations that are safe in damaged or untrusted folders.

Writes go to a new file with a random name, opened exclusively, which then replaces the target: a kill or a full
disk leaves the previous file, and a link with the target's name is replaced, never followed. Reads accept
regular files of bounded size only, so that neither a FIFO nor a device nor a huge file stops the process.
"""

import json
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON file that is read."""

CHECKSUM = "checksum"
"""Key of the CRC-32 in a checked file. A CRC-32 detects accidents, not tampering."""

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # Windows has neither

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.new")
"""Names of the temporary files of `write_file`."""


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: completely, or not at all.

    Args:
      path: the target; an existing file or link of that name is replaced.
      write: writes the content to an open binary file, such as `lambda file: figure.savefig(file)`.

    Raises:
      OSError: the file cannot be written; the previous file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:  # a signal too must not leave a temporary file
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_file(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """Write strict JSON atomically, with null for non-finite numbers."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return a value as strict JSON, with null for non-finite numbers."""
    return json.dumps(finite_json(value), allow_nan=False, indent=indent)


def finite_json(value: object) -> Any:
    """Return a copy with None for non-finite numbers, which strict JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_checked(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    value = finite_json(value)
    write_json(path, value | {CHECKSUM: crc32(value)})


def read_checked(path: Path) -> dict[str, Any]:
    """Read a file of `write_checked`; the result does not contain the checksum.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or not a regular file, or cannot be read.
      ValueError: the file is damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or CHECKSUM not in value:
        raise ValueError(f"{path} is damaged: it has no checksum")
    if value.pop(CHECKSUM) != crc32(value):
        raise ValueError(f"{path} is damaged: it has another checksum")
    return value


def crc32(value: object) -> int:
    """Return the CRC-32 of a JSON value, which does not depend on the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def open_append(path: Path) -> FileIO:
    """Open a regular file, created if missing, for unbuffered appending.

    Raises:
      OSError: the path is a link or not a regular file, or cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | NO_FOLLOW
    return os.fdopen(_regular(os.open(path, flags, 0o666), path), "ab", buffering=0)


def open_read(path: Path) -> FileIO:
    """Open a regular file for unbuffered reading.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or not a regular file, or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW  # opening a FIFO would wait for a writer
    return os.fdopen(_regular(os.open(path, flags), path), "rb", buffering=0)


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or not a regular file, or cannot be read.
      ValueError: the file is larger.
    """
    with open_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} is damaged: it has {size} bytes, expected at most {limit}")
        return file.readall()


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read strict JSON.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or not a regular file, or cannot be read.
      ValueError: the file is larger than `limit` bytes, or damaged.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def parse_json(content: bytes | str) -> Any:
    """Parse strict JSON.

    Raises:
      ValueError: the text is not JSON, contains NaN or Infinity, or is nested too deeply.
    """
    try:
        # Python's parser accepts NaN and Infinity by default
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
      OSError: the path is a link or a file, or cannot be made.
    """
    if path.is_symlink():
        raise OSError(f"{path} is a link, expected a folder")
    path.mkdir(parents=True, exist_ok=True)


def check_tree(folder: Path) -> None:
    """Check that a folder, which may itself be a link, contains only regular files and folders.

    A link would redirect reads and writes; a FIFO or a device would block them. Files that vanish meanwhile are
    ignored, because a run may be writing.

    Raises:
      OSError: there is a link or a special file; the message has its path.
    """
    folders = [folder]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            with suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append(Path(entry.path))
                elif not stat.S_ISREG(mode):
                    kind = "a link" if stat.S_ISLNK(mode) else "a special file"
                    raise OSError(
                        f"{entry.path} is {kind}, expected only files and folders in {folder}"
                    )


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder (not in its subfolders)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder, a file or a link; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _regular(descriptor: int, path: Path) -> int:
    """Check that a file is regular: after opening it, because a path may be replaced after a check."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return descriptor


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
