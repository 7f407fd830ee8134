"""Metrics to JSON lines and to TensorBoard event files (written without TensorFlow)."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class MetricsLog:
    """`metrics.jsonl` and `tensorboard/` in a folder; a context manager.

    Opening it at a step drops the lines after that step, which a resumed run writes again.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        whole = folder / "metrics.jsonl.new"  # renamed when complete: a kill here loses nothing
        whole.write_text("".join(json.dumps(row) + "\n" for row in kept))
        whole.replace(self.path)
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self.board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a line that a killed run left half-written is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
