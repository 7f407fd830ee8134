"""The meter: spikes and lost runs are reported, and interruptions change nothing."""

import json

import numpy as np
import pytest

from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.meter import MEMORY, Meter


def losses(count, spikes=()):
    values = 2 + 0.1 * np.random.default_rng(0).standard_normal(count)
    values[list(spikes)] = 9.0
    return values


def feed(folder, values, *, step=0, begun=None, names=()):
    """Take losses [n] or [n, R] one at a time; return the meter."""
    with MetricsLog(folder, step) as log:
        meter = Meter(log, every=10, step=step, begun=begun or {}, patience=3, names=names)
        for value in values:
            row = np.asarray(value)[None]
            meter.add({"loss": row, "grad_norm": row, "skipped": np.zeros_like(row)})
    return meter


def test_spikes_are_reported_and_counted(tmp_path, capsys):
    feed(tmp_path, losses(200, spikes=[150, 151]))
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    # the second is within ten deviations of a spread that has seen the first
    assert {step: row["spikes"] for step, row in rows.items() if "spikes" in row} == {160: 1.0}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert line.startswith("loss 9 at step 151 is a spike: about 100 steps before it had 2.0")


def test_the_start_of_a_run_has_no_spikes(tmp_path, capsys):
    """Early losses fall from far above, and their spread is not known yet."""
    feed(tmp_path, np.concatenate([100 / np.arange(1, MEMORY), losses(100)]))
    assert "spike" not in capsys.readouterr().err


def test_spike_names_its_run(tmp_path, capsys):
    values = np.stack([losses(150), losses(150, spikes=[140])], 1)
    feed(tmp_path, values, names=("a", "b"))
    assert "b: loss 9 at step 141 is a spike" in capsys.readouterr().err
    (row,) = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "b/spikes" in row]
    assert row["b/spikes"] == 1 and "a/spikes" not in row and row["step"] == 150


@pytest.mark.parametrize("stop", [120, 145, 151])
def test_interruptions_change_nothing(tmp_path, stop):
    values = losses(200, spikes=[150])
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = feed(tmp_path / "whole", values)
    first = feed(tmp_path / "parts", values[:stop])
    begun = json.loads(json.dumps(first.carried))  # as a checkpoint keeps it
    second = feed(tmp_path / "parts", values[stop:], step=stop, begun=begun)
    assert second.carried == whole.carried
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) == 20


def together(rows, begun=None):
    """Take the losses of "a" and "b" at each step, NaN of a bad one; return the meter."""
    options = {"every": 10, "patience": 3, "names": ("a", "b")}
    meter = Meter(None, step=0, begun=begun or {}, **options)
    for row in rows:
        values = np.asarray([row], np.float64)
        bad = 1.0 - np.isfinite(values)
        meter.add({"loss": values, "grad_norm": values, "skipped": bad})
        if meter.ended is not None:
            break
    return meter


def test_recovered_run_is_not_lost(capsys):
    """Another run may diverge later; new bad steps of the recovered run are reported again."""
    first = [(np.nan, 1.0)] * 4 + [(1.0, 1.0)] * 5
    meter = together([*first, *[(1.0, np.nan)] * 5])
    assert meter.ended is None and meter.step == 14
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("a is lost, the others continue") == 1
    assert lines.count("a continues: the update of step 5 was applied") == 1
    assert lines.count("b is lost, the others continue") == 1
    together([*first, (np.nan, 1.0)])
    assert "a: loss is nan at step 10: update not applied (1 in a row" in capsys.readouterr().err


@pytest.mark.parametrize(("came_back", "step"), [(False, 5), (True, None)])
def test_training_ends_when_every_run_is_lost(came_back, step):
    """A run may recover at the step at which the other one is lost, in either order."""
    for swap in (False, True):
        rows = (
            [(np.nan, 1.0)] * 2 + [(np.nan, np.nan)] * 2 + [(1.0 if came_back else np.nan, np.nan)]
        )
        meter = together([row[::-1] if swap else row for row in rows])
        lost = "a" if swap else "b"
        assert meter.ended == (None if came_back else (f"{lost}: loss is nan", step))


def test_lost_run_stays_lost_after_a_restart():
    first = together([(np.nan, 1.0)] * 5)
    begun = json.loads(json.dumps(first.carried))
    assert together([(np.nan, 1.0)] * 4 + [(np.nan, np.nan)] * 3, begun).ended == (
        "b: loss is nan",
        7,
    )
