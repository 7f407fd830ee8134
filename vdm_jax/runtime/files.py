"""File operations for folders that may be damaged or a stranger's.

Writes go to a new file with a random name, opened exclusively, which then replaces the target: a kill or a full
disk leaves the previous file, and a link under the target's name is replaced, never followed. Reads accept
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
from pathlib import Path
from typing import IO, Any

MAX_JSON_BYTES = 64 * 2**20


CHECKSUM = "checksum"
"""Key of the CRC-32 in a checked file; a CRC-32 finds accidents, not tampering."""


NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # Windows has neither


TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.new")


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file as a whole or not at all.

    Args:
      path: the target; an existing file or link of that name is replaced.
      write: writes the content to an open binary file, such as `lambda file: figure.savefig(file)`.

    Raises:
      OSError: the file cannot be written; the previous one is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a whole or not at all."""
    write_file(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON as a whole or not at all; numbers that are not finite become null."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, **options: Any) -> str:
    """Return strict JSON, in which numbers that are not finite are null."""
    return json.dumps(finite_json(value), allow_nan=False, **options)


def finite_json(value: Any) -> Any:
    """Replace numbers that are not finite by None, which JSON has a word for."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_checked(path: Path, value: dict[str, Any]) -> None:
    """Write strict JSON with a checksum of its own, as a whole or not at all."""
    value = finite_json(value)
    write_json(path, value | {CHECKSUM: crc32(value)})


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote, without the checksum.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or no regular file, or cannot be read.
      ValueError: the file is damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or CHECKSUM not in value:
        raise ValueError(f"{path} is damaged: it has no checksum")
    if value.pop(CHECKSUM) != crc32(value):
        raise ValueError(f"{path} is damaged: it has another checksum")
    return value


def crc32(value: Any) -> int:
    """Return the CRC-32 of a JSON value, whatever the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def open_append(path: Path) -> IO[bytes]:
    """Open a regular file, made if missing, for unbuffered appending.

    Raises:
      OSError: the path is a link or no regular file, or cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | NO_FOLLOW
    return os.fdopen(_regular(os.open(path, flags, 0o666), path), "ab", buffering=0)


def open_read(path: Path) -> IO[bytes]:
    """Open a regular file for unbuffered reading.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or no regular file, or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW  # opening a FIFO would wait for a writer
    return os.fdopen(_regular(os.open(path, flags), path), "rb", buffering=0)


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or no regular file, or cannot be read.
      ValueError: the file is larger.
    """
    with open_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} is damaged: it has {size} bytes, expected at most {limit}")
        return file.readall()  # type: ignore[attr-defined]


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read strict JSON.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or no regular file, or cannot be read.
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
      ValueError: the text is no JSON, holds NaN or Infinity, or is nested too deeply.
    """
    try:
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
    """Refuse links and special files below a folder, which may itself be a link.

    A link would lead reads and writes elsewhere; a FIFO or a device would block them. Files that vanish
    meanwhile are ignored, because a run may be writing.

    Raises:
      OSError: with the path of the first link or special file.
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
    """Remove what killed processes left half-written in a folder (not below it)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder, a file or a link, whichever it is; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _regular(descriptor: int, path: Path) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return descriptor


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
