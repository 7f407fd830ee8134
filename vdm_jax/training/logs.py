"""Metrics as JSON lines and as TensorBoard event files (written without TensorFlow)."""

import json
import math
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import (
    make_folder,
    open_append,
    parse_json,
    read_bytes,
    to_json,
    write_file,
)

PROTO: Any = event_pb2  # type checkers do not see its classes, which are created at import

CHECKSUM = "crc32"
"""Last key of a line: the CRC-32 of the line without this key."""

MAX_BYTES = 2**30
"""Largest `metrics.jsonl` that is read."""


class MetricsLog:
    """Writer of `metrics.jsonl` and `tensorboard/` in a folder; a context manager.

    Opening the log at a step drops the lines after that step, which a resumed run writes again. Unwritable
    lines are reported and retried. Non-finite numbers are written as null.

    Args:
      folder: the folder of the run.
      step: the step from which the run continues.
      lines: number of lines that the checkpoint of that step expects; fewer are reported.

    Attributes:
      lines: number of lines of the file, including those that are still unwritten.
    """

    def __init__(self, folder: Path, step: int = 0, lines: int = 0):
        self.path = folder / "metrics.jsonl"
        rows, damaged = _read(self.path)
        kept = [_line(row) for row in rows if row["step"] <= step]
        if lost := max(damaged, lines - len(kept)):
            warn(f"{self.path}: {lost} lines are damaged or missing")
        write_file(self.path, lambda file: file.write(b"".join(kept)))
        self.lines = len(kept)
        self.file = open_append(self.path)
        self.unwritten: list[bytes] = []
        board = folder / "tensorboard"
        make_folder(board)
        # not tensorboardX's SummaryWriter: it writes in a thread, and blocks for ever after that has failed
        self.board = EventsWriter(str(board / "events"))
        # a start event makes TensorBoard drop what a killed run wrote after the step
        start = PROTO.SessionLog(status=PROTO.SessionLog.START)
        self.board.write_event(PROTO.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._write_lines()
        if self.unwritten:
            warn(f"{self.path}: {len(self.unwritten)} lines are lost")
        self.file.close()
        with suppress(OSError):  # `metrics.jsonl` has the same numbers
            self.board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        self.unwritten.append(_line({"step": step, **metrics}))
        self.lines += 1
        self._write_lines()
        with suppress(OSError):  # the same failure is reported for the lines
            for name, value in metrics.items():
                event = {"step": step, "summary": scalar(name, value)}
                self.board.write_event(PROTO.Event(wall_time=time.time(), **event))
            self.board.flush()

    def _write_lines(self) -> None:
        """Append the unwritten lines to the file, each completely or not at all."""
        while self.unwritten:
            line, size = self.unwritten[0], None
            try:
                size = os.fstat(self.file.fileno()).st_size
                if self.file.write(line) < len(line):  # a full disk may take a part of it
                    raise OSError("no space left")
            except OSError as error:
                if size is not None:
                    with suppress(OSError):
                        os.ftruncate(self.file.fileno(), size)
                reason = f"{self.path} cannot be written: {error.strerror or error}"
                warn(f"{reason}; {len(self.unwritten)} lines are waiting")
                return
            del self.unwritten[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, with NaN for null and without their checksums.

    An incomplete last line, which a killed run may leave, is ignored; other damaged lines are dropped with a
    warning.

    Raises:
      OSError: the path is a link or not a regular file, or cannot be read.
    """
    rows, damaged = _read(path)
    if damaged:
        warn(f"{path}: {damaged} damaged lines are ignored")
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _line(row: dict[str, Any]) -> bytes:
    """Return the line of a row, with the checksum as its last key."""
    text = to_json(row)
    return f'{text[:-1]}, "{CHECKSUM}": {zlib.crc32(text.encode())}}}\n'.encode()


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a file and the number of damaged lines; an incomplete last line is not counted."""
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        return [], 0
    rows, damaged = [], 0
    for line in content.splitlines(keepends=True):
        try:
            row = parse_json(line)
            checksum = row.pop(CHECKSUM)
            if not isinstance(row["step"], int) or checksum != zlib.crc32(json.dumps(row).encode()):
                raise ValueError(row)
            rows.append(row)
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged += line.endswith(b"\n")
    return rows, damaged
