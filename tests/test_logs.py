"""Metrics on disk, through kills and resumes, and the plots."""

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from vdm_jax.effective_weights import effective_weights
from vdm_jax.runs.plots import curves, loss_curve, sample_grid, strips, tile, weight_curves
from vdm_jax.training.evaluation import Evaluation
from vdm_jax.training.logs import MetricsLog, read_metrics


def write(folder, steps, start=0):
    with MetricsLog(folder, start) as log:
        for step in steps:
            log.write(step, {"loss": step / 3, "bits_per_dim": 1 / step})


def test_lines_come_back_exactly(tmp_path):
    write(tmp_path, [1, 2])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows == [{"step": s, "loss": s / 3, "bits_per_dim": 1 / s} for s in (1, 2)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_line_is_on_disk_when_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_resuming_drops_later_lines(tmp_path):
    write(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # a kill while writing
    write(tmp_path, [30, 40], start=20)
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30, 40]
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


class Full:
    """A file whose first writes fail halfway."""

    def __init__(self, file, times):
        self.file, self.times = file, times

    def fileno(self):
        return self.file.fileno()

    def close(self):
        self.file.close()

    def write(self, line):
        if self.times:
            self.times -= 1
            self.file.write(line[:5])
            raise OSError(28, "No space left on device")
        return self.file.write(line)


def test_lines_wait_for_disk_space(tmp_path, capsys):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5})
        log.file = Full(log.file, times=2)
        for step in (2, 3):
            log.write(step, {"loss": 0.5})
            assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
        log.write(4, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.split("; ")[1] for line in warnings] == [
        "1 lines are waiting",
        "2 lines are waiting",
    ]
    assert "metrics.jsonl cannot be written: No space left on device" in warnings[0]


def board(folder):
    """Return (tag, step) -> scalar as TensorBoard shows them: a start event purges all later steps."""
    shown = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length
            if event.HasField("session_log"):
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return shown


def test_tensorboard_shows_the_same_numbers(tmp_path, monkeypatch):
    clock = iter(range(10**9, 2 * 10**9))
    monkeypatch.setattr("time.time", lambda: next(clock))  # files are named by the second
    write(tmp_path, [10, 20, 25, 30])  # of a run that logged more often
    write(tmp_path, [30, 40], start=20)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    shown = board(tmp_path)
    assert shown.keys() == {
        (name, s) for name in ("loss", "bits_per_dim") for s in (10, 20, 30, 40)
    }
    for row in rows:
        for name in ("loss", "bits_per_dim"):
            np.testing.assert_allclose(shown[name, row["step"]], row[name], rtol=1e-6)


# ---------------------------------------------------------------- plots


def test_tile():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 1), np.uint8)
    grid = tile(images, levels=5)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1, 3)  # 2 rows of 3, with gaps
    values = [grid[1 + 3 * (i // 3), 1 + 4 * (i % 3)] for i in range(6)]
    np.testing.assert_allclose(values, [[i / 4] * 3 for i in range(5)] + [[1.0] * 3])
    colours = np.asarray([[[[255, 0, 51]]]], np.uint8)
    np.testing.assert_allclose(tile(colours, levels=256)[1, 1], [1, 0, 0.2])


@pytest.mark.parametrize(
    ("shape", "size"), [((7,), (1, 7)), ((2, 3), (3, 2)), ((2, 3, 2, 2), (12, 2))]
)
def test_tile_of_other_shapes(shape, size):
    width, height = size
    assert tile(np.zeros((1, *shape), np.uint8), levels=2).shape == (height + 2, width + 2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 4, (7, 6, 5, channels), np.uint8)
    path = tmp_path / "samples.png"
    sample_grid(path, images, images[:5], levels=4, samples_title="a", real_title="b")
    with Image.open(path) as picture:
        picture.load()
        assert picture.size == (1000, 540)
        assert len(picture.convert("L").getcolors()) > 3


RESULT = Evaluation(2.0, 0.1, 0.0, 2.0, 0.0, 9, "bound", "data", 300)


@pytest.mark.parametrize("rows", [0, 1, 30])
@pytest.mark.parametrize("test", [RESULT, RESULT._replace(standard_error=float("nan"))])
def test_loss_curve_of_any_length(tmp_path, rows, test):
    lines = [{"step": 10 * i, "bits_per_dim": 4 - i / 20} for i in range(1, rows + 1)]
    loss_curve(tmp_path / "loss.png", lines, test=test, title="vdm")
    with Image.open(tmp_path / "loss.png") as picture:
        picture.load()
        assert picture.size == (700, 420)


def test_other_loss_gets_a_second_panel(tmp_path):
    widths = []
    for weight in (1, 2):
        rows = [{"step": i, "bits_per_dim": 4 / i, "loss": weight * 4 / i} for i in range(1, 30)]
        loss_curve(tmp_path / "loss.png", rows, title="vdm")
        with Image.open(tmp_path / "loss.png") as picture:
            widths.append(picture.width)
    assert widths[1] == 2 * widths[0]


def test_flipped_bits_of_a_line_are_detected(tmp_path, capsys):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2):
            log.write(step, {"loss": 0.5, "kl": 1e-7})
    path = tmp_path / "metrics.jsonl"
    content, rows = path.read_bytes(), read_metrics(path)
    first = content.index(b"\n")
    for bit in range(8 * first):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert read_metrics(path) in (rows, rows[1:])
    warnings = capsys.readouterr().err
    assert warnings.count("1 damaged lines are ignored") > 7 * first


def test_nonfinite_numbers_are_null(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": math.nan, "grad_norm": math.inf})
    path = tmp_path / "metrics.jsonl"
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    (row,) = read_metrics(path)
    assert row["step"] == 1 and math.isnan(row["loss"]) and math.isnan(row["grad_norm"])


IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
ROWS = [{"step": 1, "bits_per_dim": 3.0}, {"step": 2, "bits_per_dim": None}]  # null in the file
PLOTS = {
    "sample_grid": lambda path: sample_grid(
        path, IMAGES, IMAGES, levels=4, samples_title="a", real_title="b"
    ),
    "strips": lambda path: strips(path, IMAGES[None], levels=4, title="a"),
    "loss_curve": lambda path: loss_curve(path, ROWS, test=RESULT),
    "curves": lambda path: curves(
        path, [{"step": 1, "a/bits_per_dim": 3.0}], {"a": ["a"]}, {"a": RESULT}
    ),
    "weight_curves": lambda path: weight_curves(path, {"eps": effective_weights()}),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_plots_follow_no_links(draw, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "picture.png"
    victim.write_text("mine")
    path.symlink_to(victim)
    draw(path)
    assert victim.read_text() == "mine" and not path.is_symlink()
    assert {file.name for file in tmp_path.iterdir()} == {"victim", "picture.png"}
    with Image.open(path) as picture:
        picture.load()


@pytest.mark.parametrize("value", [None, float("nan")])
def test_curves_of_nonfinite_numbers(value, tmp_path):
    rows = [{"step": i, "bits_per_dim": value if i % 3 else 2.0} for i in range(1, 20)]
    for shown in (rows, [row | {"bits_per_dim": value} for row in rows]):
        loss_curve(tmp_path / "loss.png", shown, test=RESULT._replace(bits_per_dim=float("nan")))
        assert (tmp_path / "loss.png").exists()


def test_missing_lines_are_reported(tmp_path, capsys):
    """The number of lines in the checkpoint reveals a file that was cut anywhere."""
    with MetricsLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"loss": 1.0})
        assert log.lines == 5
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    with MetricsLog(tmp_path, 5, 5):
        assert capsys.readouterr().err == ""
    for size, lost in ((0, 5), (len(content) // 2, 3), (len(content) - 2, 1)):
        path.write_bytes(content[:size])
        with MetricsLog(tmp_path, 5, 5) as log:
            assert log.lines == 5 - lost
        assert f"{path}: {lost} lines are damaged or missing" in capsys.readouterr().err
