"""Metrics to JSON lines and to TensorBoard event files (written without TensorFlow)."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from vdm_jax.training.console import warn

PROTO: Any = event_pb2  # its classes are made when it is imported, unseen by type checkers


class MetricsLog:
    """`metrics.jsonl` and `tensorboard/` in a folder; a context manager.

    Opening it at a step drops the lines after that step, which a resumed run writes again. Lines that cannot be
    written, for the disk is full, are said and kept until they can.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.path = folder / "metrics.jsonl"
        rows, damaged = _read(self.path)
        if damaged:
            warn(f"{self.path}: {damaged} damaged lines are left out")
        kept = [row for row in rows if row["step"] <= step]
        whole = folder / "metrics.jsonl.new"  # renamed when complete: a kill here loses nothing
        whole.write_text("".join(json.dumps(row) + "\n" for row in kept))
        whole.replace(self.path)
        self.file = self.path.open("ab", buffering=0)
        self.waiting: list[bytes] = []
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        # tensorboardX's own SummaryWriter writes in a thread; when that fails, it blocks for ever
        self.board = EventsWriter(str(board / "events"))
        start = PROTO.SessionLog(status=PROTO.SessionLog.START)
        self.board.write_event(PROTO.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self._write()
        if self.waiting:
            warn(f"{self.path}: {len(self.waiting)} lines are lost")
        self.file.close()
        with suppress(OSError):  # its lines are in the other file too
            self.board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        self.waiting.append((json.dumps({"step": step, **metrics}) + "\n").encode())
        self._write()
        with suppress(OSError):  # said of the lines, which hold the same
            for name, value in metrics.items():
                what = {"step": step, "summary": scalar(name, value)}
                self.board.write_event(PROTO.Event(wall_time=time.time(), **what))
            self.board.flush()

    def _write(self) -> None:
        """Write what is waiting, each line whole or not at all."""
        while self.waiting:
            line, end = self.waiting[0], None
            try:
                end = os.fstat(self.file.fileno()).st_size
                if self.file.write(line) < len(line):
                    raise OSError("no space left")
            except OSError as error:
                if end is not None:
                    with suppress(OSError):
                        os.ftruncate(self.file.fileno(), end)
                words = f"{self.path} cannot be written: {error.strerror or error}"
                warn(f"{words}; {len(self.waiting)} lines are waiting")
                return
            del self.waiting[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a line that a killed run left half-written is passed over."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many whole lines are none."""
    rows, damaged = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError(row)
            rows.append(row)
        except (ValueError, TypeError, KeyError):
            damaged += line.endswith(b"\n")
    return rows, damaged
