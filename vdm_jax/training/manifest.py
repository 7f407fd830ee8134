"""What a folder held when it was complete: size and CRC-32 of every file, and whether they still are so.

    manifest.json    of all files but these two
    noted.json       what became known of the folder afterwards, with a CRC-32 of its own; can be replaced

CRC-32 finds every single flipped bit and every burst of up to 32, at several GB/s; it finds accidents, not
tampering.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

NOTED = "noted.json"

UNFINISHED = f"{MANIFEST} is missing"

CHUNK = 2**20


def write_manifest(folder: Path) -> None:
    """Note the size and the CRC-32 of every file below a folder; whole or not at all."""
    own = MANIFEST, NOTED
    files = {name: _fingerprint(folder / name) for name in _files(folder) if name not in own}
    _replace(folder / MANIFEST, {"files": files, "checksum": _checksum(files)})


def write_noted(folder: Path, noted: dict[str, Any]) -> None:
    """Note what became known of a complete folder, instead of what was noted before; whole or not at all."""
    _replace(folder / NOTED, {"noted": noted, "checksum": _checksum(noted)})


def read_noted(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What was noted of a folder, {} if nothing was; what is wrong with it, or None.

    Raises:
      OSError: it is there and cannot be read, which says nothing of what is in it.
    """
    try:
        found = json.loads((folder / NOTED).read_bytes())
        if _checksum(noted := dict(found["noted"])) != found["checksum"]:
            return {}, f"{NOTED} has another checksum"
    except FileNotFoundError:
        return {}, None
    except (ValueError, KeyError, TypeError):
        return {}, f"{NOTED} cannot be read"
    return noted, None


def verify(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, or None.

    Raises:
      OSError: a file is there and cannot be read, which says nothing of what is in it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = manifest["files"]
        if _checksum(files) != manifest["checksum"]:
            return f"{MANIFEST} has another checksum"
    except FileNotFoundError:
        return UNFINISHED
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: _fingerprint(folder / name), files)
        for (name, (size, checksum)), there in zip(files.items(), found, strict=True):
            if there is None:
                return f"{name} is missing"
            if there[0] != size:
                return f"{name} has {there[0]} bytes, expected {size}"
            if there[1] != checksum:
                return f"{name} has CRC-32 {there[1]:08x}, expected {checksum:08x}"
    return None


def _fingerprint(path: Path) -> list[int] | None:
    size = checksum = 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(CHUNK):
                size, checksum = size + len(block), zlib.crc32(block, checksum)
    except FileNotFoundError:
        return None
    return [size, checksum]


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write a file under another name first: a kill or a full disk leaves the one before."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(json.dumps(content))
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _files(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found)
