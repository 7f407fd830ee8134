"""The finished part of an evaluation on disk, from which an interrupted evaluation continues."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.elbo import Elbo
from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import make_folder, write_file
from vdm_jax.runtime.npz import read_npz
from vdm_jax.runtime.processes import is_first, on_process_0

Columns = dict[str, np.ndarray]
"""Name -> float64 [n], a value of each of the first n examples of a split."""

IDENTITY = "identity"

NAMES = {
    frozenset(names) | extra
    for names in (Elbo._fields, ("bound",))
    for extra in (frozenset(), frozenset({"discretization"}))
}
"""Sets of columns that an evaluation may have."""


class Progress(NamedTuple):
    """The file of an unfinished evaluation.

    Attributes:
      path: of the file.
      identity: digest of all that determines the values of the examples.
      check_folder: raises OSError if another process has taken the folder; called before a write.
    """

    path: Path
    identity: np.ndarray
    check_folder: Callable[[], None]

    @classmethod
    def of(
        cls, folder: Path, settings: Mapping[str, Any], check_folder: Callable[[], None]
    ) -> "Progress":
        """Return the progress of the evaluation that JSON values determine, in a folder of such files."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        identity = np.frombuffer(digest.digest(), np.uint8)
        return cls(folder / f"{digest.hexdigest()[:16]}.npz", identity, check_folder)

    def load(self, examples: int) -> Columns:
        """Return the values of the finished examples, equal in all processes; {} if there are none.

        A damaged file is reported and ignored.

        Args:
          examples: number of examples of the split.
        """

        def read() -> dict[str, list[float]]:
            try:
                columns = read_npz(self.path)
            except FileNotFoundError:
                return {}
            except (ValueError, OSError) as error:
                warn(f"{error}; the evaluation starts anew")
                return {}
            identity = columns.pop(IDENTITY, np.zeros(0, np.uint8))
            lengths = {column.shape for column in columns.values()}
            floats = all(column.dtype == np.float64 for column in columns.values())
            is_table = floats and len(lengths) == 1 and len(length := next(iter(lengths))) == 1
            is_valid = is_table and 0 < length[0] <= examples and frozenset(columns) in NAMES
            if not is_valid or not np.array_equal(identity, self.identity):
                warn(f"{self.path} is damaged or of another evaluation; the evaluation starts anew")
                return {}
            return {name: column.tolist() for name, column in columns.items()}

        # as JSON to the other processes, which keeps every digit
        return {name: np.asarray(values) for name, values in on_process_0(read).items()}

    def save(self, columns: Columns) -> None:
        """Write the values of the finished examples, in process 0; report a failure and continue."""
        if is_first() and columns:
            arrays: dict[str, Any] = columns | {IDENTITY: self.identity}
            try:
                self.check_folder()
                make_folder(self.path.parent)
                write_file(self.path, lambda file: np.savez(file, **arrays))
            except OSError as error:  # a folder that can only be read can be evaluated
                warn(f"the evaluation cannot be continued after an interruption: {error}")


def remove_progress(folder: Path) -> None:
    """Remove the files of all evaluations in a folder, in process 0, once their results are written."""
    if is_first() and folder.is_dir() and not folder.is_symlink():
        for path in folder.glob("*.npz"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # other files are not ours
            folder.rmdir()
