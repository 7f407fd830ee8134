"""The finished part of an evaluation on disk, from which an interrupted evaluation continues."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import make_folder, write_file
from vdm_jax.runtime.npz import read_npz
from vdm_jax.runtime.processes import is_first, on_process_0

Columns = dict[str, np.ndarray]
"""Name -> float64 [n], a value of each of the first n examples of a split."""

IDENTITY = "identity"


class Progress(NamedTuple):
    """The file of an unfinished evaluation.

    Attributes:
      path: of the file.
      identity: digest of what determines the values of the examples.
    """

    path: Path
    identity: np.ndarray

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any]) -> "Progress":
        """Return the progress of the evaluation that JSON values determine, in a folder of such files."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        identity = np.frombuffer(digest.digest(), np.uint8)
        return cls(folder / f"{digest.hexdigest()[:16]}.npz", identity)

    def load(self) -> Columns:
        """Return the values of the finished examples, equal in all processes; {} if there are none.

        A damaged file is reported and ignored.
        """

        def read() -> dict[str, list[float]]:
            try:
                columns = read_npz(self.path)
            except FileNotFoundError:
                return {}
            except ValueError as error:
                warn(f"{error}; the evaluation starts anew")
                return {}
            identity = columns.pop(IDENTITY, np.zeros(0, np.uint8))
            lengths = {column.shape for column in columns.values()}
            floats = all(column.dtype == np.float64 for column in columns.values())
            is_valid = floats and len(lengths) == 1 and len(next(iter(lengths))) == 1
            if not is_valid or not np.array_equal(identity, self.identity):
                warn(f"{self.path} is of another evaluation; the evaluation starts anew")
                return {}
            return {name: column.tolist() for name, column in columns.items()}

        # as JSON to the other processes, which keeps every digit
        return {name: np.asarray(values) for name, values in on_process_0(read).items()}

    def save(self, columns: Columns) -> None:
        """Write the values of the finished examples, in process 0.

        Raises:
          OSError: the file cannot be written.
        """
        if is_first() and columns:
            make_folder(self.path.parent)
            arrays: dict[str, Any] = columns | {IDENTITY: self.identity}
            write_file(self.path, lambda file: np.savez(file, **arrays))

    def remove(self) -> None:
        """Remove the file of a finished evaluation, in process 0."""
        if is_first():
            self.path.unlink(missing_ok=True)
