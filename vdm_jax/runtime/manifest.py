"""The size and CRC-32 of every file of a finished folder, and annotations that are added later.

    manifest.json     name of the folder; size and CRC-32 of all files but these two
    annotations.json  annotations with a separate checksum; always rewritten completely

CRC-32 detects every single flipped bit and every burst of up to 32 bits, at several GB/s; it detects accidents,
not tampering. The files of a manifest are regular files inside its folder: other names count as damage and are
not opened.
"""

import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vdm_jax.runtime.files import open_read, read_checked, write_checked

MANIFEST = "manifest.json"

ANNOTATIONS = "annotations.json"

UNFINISHED = f"{MANIFEST} is missing"
"""The damage of a folder whose writer was killed before the manifest, which is written last."""

CHUNK = 2**20
"""Bytes read at a time."""


def write_manifest(folder: Path) -> None:
    """Record the size and the CRC-32 of every file below a folder."""
    sizes = {
        name: size for name, size in _sizes(folder).items() if name not in (MANIFEST, ANNOTATIONS)
    }
    files = {name: [size, _crc32(folder / name)] for name, size in sizes.items()}
    write_checked(folder / MANIFEST, {"name": folder.name, "files": files})


def write_annotations(folder: Path, annotations: dict[str, Any]) -> None:
    """Write the annotations of a finished folder, replacing earlier ones."""
    write_checked(folder / ANNOTATIONS, {"annotations": annotations})


def read_annotations(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the annotations of a folder ({} if there are none) and the damage of their file, or None.

    Raises:
      OSError: the file cannot be read, which does not mean that it is damaged.
    """
    try:
        return dict(read_checked(folder / ANNOTATIONS)["annotations"]), None
    except FileNotFoundError:
        return {}, None
    except (ValueError, KeyError, TypeError):
        return {}, f"{ANNOTATIONS} cannot be read or has another checksum"


def verify(folder: Path) -> str | None:
    """Compare a folder with its manifest; return the first difference, or None.

    Raises:
      OSError: a file cannot be read, which does not mean that it is damaged.
    """
    try:
        manifest = read_checked(folder / MANIFEST)
        name, files = manifest["name"], dict(manifest["files"])
        expected = {str(path): (int(size), int(crc)) for path, (size, crc) in files.items()}
    except FileNotFoundError:
        return UNFINISHED
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read or has another checksum"
    if name != folder.name:
        return f"{MANIFEST} is that of {name!r}: the folder was renamed or copied"
    # sizes first: they are cheap, while checksums read every byte
    sizes = _sizes(folder)
    for path, (size, _) in expected.items():
        if path not in sizes:
            return f"{path} is missing"  # or a link, which `_sizes` does not follow
        if sizes[path] != size:
            return f"{path} has {sizes[path]} bytes, expected {size}"
    try:
        # in parallel, because zlib and reads release the interpreter lock
        with ThreadPoolExecutor() as threads:
            checksums = threads.map(lambda path: _crc32(folder / path), expected)
            for (path, (_, crc)), checksum in zip(expected.items(), checksums, strict=True):
                if checksum != crc:
                    return f"{path} has CRC-32 {checksum:08x}, expected {crc:08x}"
    except FileNotFoundError as error:  # deleted meanwhile by a running process
        return f"{Path(error.filename).name} is missing"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of every regular file below a folder, by its relative path; links are not followed."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                sizes[path.relative_to(folder).as_posix()] = status.st_size
    return dict(sorted(sizes.items()))


def _crc32(path: Path) -> int:
    checksum = 0
    with open_read(path) as file:
        while block := file.read(CHUNK):
            checksum = zlib.crc32(block, checksum)
    return checksum
