"""What is seen of each step: spikes far above what came before, whether or not a run was interrupted."""

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


def test_spikes_are_said_and_counted(tmp_path, capsys):
    feed(tmp_path, losses(200, spikes=[150, 151]))
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    # the second is within ten deviations of a spread that has seen the first
    assert {step: row["spikes"] for step, row in rows.items() if "spikes" in row} == {160: 1.0}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert line.startswith("loss 9 at step 151 is a spike: about 100 steps before it had 2.0")


def test_the_start_of_a_run_has_no_spikes(tmp_path, capsys):
    """Losses fall from far above, and nothing is known of their spread yet."""
    feed(tmp_path, np.concatenate([100 / np.arange(1, MEMORY), losses(100)]))
    assert "spike" not in capsys.readouterr().err


def test_of_several_runs_the_one_is_named(tmp_path, capsys):
    values = np.stack([losses(150), losses(150, spikes=[140])], 1)
    feed(tmp_path, values, names=("a", "b"))
    assert "b: loss 9 at step 141 is a spike" in capsys.readouterr().err
    (row,) = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "b/spikes" in row]
    assert row["b/spikes"] == 1 and "a/spikes" not in row and row["step"] == 150


@pytest.mark.parametrize("stop", [120, 145, 151])
def test_nothing_depends_on_where_a_run_stopped(tmp_path, stop):
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
