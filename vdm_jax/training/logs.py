"""Metrics to JSON lines and to TensorBoard event files (written without TensorFlow)."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar
from tqdm import tqdm

PROTO: Any = event_pb2  # its classes are made when it is imported, unseen by type checkers


class MetricsLog:
    """`metrics.jsonl` and `tensorboard/` in a folder; a context manager.

    Opening it at a step drops the lines after that step, which a resumed run writes again. Lines that cannot be
    written, for the disk is full, are said and kept until they can.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
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
        self.file.close()
        try:
            self.board.close()
        except OSError as error:
            tqdm.write(f"warning: {self.path.parent / 'tensorboard'}: {error}", sys.stderr)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        self.waiting.append((json.dumps({"step": step, **metrics}) + "\n").encode())
        self._write()
        try:
            for name, value in metrics.items():
                what = {"step": step, "summary": scalar(name, value)}
                self.board.write_event(PROTO.Event(wall_time=time.time(), **what))
            self.board.flush()
        except OSError:  # said of the lines, which hold the same
            pass

    def _write(self) -> None:
        """Write what is waiting, each line whole or not at all."""
        while self.waiting:
            line, end = self.waiting[0], os.fstat(self.file.fileno()).st_size
            try:
                if self.file.write(line) < len(line):
                    raise OSError("no space left")
            except OSError as error:
                os.ftruncate(self.file.fileno(), end)
                words = f"{self.path} cannot be written: {error.strerror or error}"
                tqdm.write(f"warning: {words}; {len(self.waiting)} lines are waiting", sys.stderr)
                return
            del self.waiting[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a line that a killed run left half-written is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
