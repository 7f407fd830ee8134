"""Safe reading of `.npz` files that may be damaged or untrusted; nothing is unpickled."""

import math
import os
import zipfile
from pathlib import Path

import numpy as np

from vdm_jax.runtime.files import open_read

MAX_NPZ_BYTES = 8 * 2**30
"""Largest `.npz` file that is read."""


def read_npz(path: Path, limit: int = MAX_NPZ_BYTES) -> dict[str, np.ndarray]:
    """Read the arrays of a file of `np.savez`; nothing is unpickled.

    The header of a member may declare an array larger than the file. It is checked before memory is allocated.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or not a regular file, or cannot be read.
      ValueError: the file is larger than `limit` bytes, or damaged.
    """
    with open_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} is damaged: it has {size} bytes, expected at most {limit}")
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    _check_member(archive, member, size)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zipfile and NumPy raise a dozen types for damaged archives
            raise ValueError(f"{path} is damaged: {error}") from error


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> None:
    """Check that a member is an uncompressed array of plain numbers, as large as its header declares."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise ValueError(f"{member.filename} is compressed or larger than the file")
    header_readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        if version not in header_readers:
            raise ValueError(f"{member.filename} has format version {version}")
        shape, _, dtype = header_readers[version](content)
        expected = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or expected != member.file_size - content.tell():
            raise ValueError(f"{member.filename} holds no plain array of {expected} bytes")
