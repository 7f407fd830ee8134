"""Nonfinite losses and gradients: their updates are not applied, and three in a row end the run."""

import json

import numpy as np
import pytest
from harness import CONFIG, UNREPORTED, arrays, steps
from thinned import weekly_except

EVERY_STEP = [
    "--config.train.steps=12",
    "--config.train.steps_per_dispatch=1",
    "--config.train.checkpoint_every=1",
    "--config.train.keep_checkpoints=12",
    "--config.train.log_every=1",
]
WHEN = {"early": 1, "middle": 6, "late": 12}


def changing(run, step):
    """Return the arrays of a step that training changes, except its number."""
    return {
        name: value
        for name, value in arrays(run, step).items()
        if name not in ("['step']", "['key']")
    }


@pytest.mark.faults
@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("value", weekly_except(["nan"], ["nan", "inf"]))
def test_a_bad_update_is_not_applied(forks, tmp_path, note, poison, when, value):
    bad = WHEN[when]
    fault = {"poison": poison, "value": value, "steps": [bad]} | UNREPORTED
    outcome = forks(tmp_path, CONFIG, "--workdir=run", *EVERY_STEP, fault=fault)
    assert outcome.status == 0, outcome.err
    assert f"at step {bad}: update not applied (1 in a row, the run ends at 3)" in outcome.err
    run = tmp_path / "run"
    assert steps(run) == list(range(1, 13))
    before = None
    for step in steps(run):
        here = changing(run, step)
        assert all(np.all(np.isfinite(leaf)) for leaf in here.values())
        if before is not None:
            same = all(np.array_equal(here[name], before[name]) for name in here)
            assert same == (step == bad)
        before = here
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["skipped"]] == [bad]
    note("NaN or Inf", of=poison, value=value, when=when, bad_updates=0, newest_finite=True)


@pytest.mark.faults
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_three_in_a_row_end_the_run(forks, tmp_path, note, poison):
    fault = {"poison": poison, "value": "nan", "steps": [9, 10, 11]}
    outcome = forks(tmp_path, CONFIG, "--workdir=run", fault=fault)
    assert outcome.status == 1
    name = {"loss": "loss", "gradient": "grad_norm"}[poison]
    batch = "run/nonfinite/step_11.npz"
    assert outcome.last == (
        f"error: {name} is nan at step 11: training stopped; last good checkpoint: step 8, "
        f"in {tmp_path}/run/checkpoints; its batch: {batch}"
    )
    with np.load(tmp_path / batch) as written:
        assert written["x"].shape == (16, 8, 8, 1) and written["step"] == 11
    assert all(
        np.all(np.isfinite(v)) for v in arrays(tmp_path / "run").values() if v.dtype.kind == "f"
    )
    # without the fault, the same command continues from there
    assert forks(tmp_path, CONFIG, "--workdir=run").status == 0
    note("NaN in three steps in a row", of=poison, status=1, newest=8, batch=batch)
