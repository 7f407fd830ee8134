"""The arithmetic of experiments/time_to_bound.py, on curves that are known."""

import importlib
import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("time_to_bound")


def runs(bounds, steps=(10, 100, 1000)):
    shared = {"steps": list(steps), "parameters": 7, "batch_size": 4}
    return {seed: shared | {"bits_per_dim": list(values)} for seed, values in enumerate(bounds)}


CURVES = {
    "shipped": runs([(3.0, 2.0, 1.0), (3.0, 2.2, 1.2)]),
    "paper": runs([(9.0, 5.0, 2.6), (9.0, 5.0, 2.6)], (10, 100, 2000)),
}
# of three processes, two turns each
MEASURED = {
    "shipped": [[0.5, 0.5], [0.5, 0.5], [0.8, 1.2]],
    "paper": [[1.0, 1.0], [0.6, 0.6], [1.0, 1.0]],
}
SECONDS = {"shipped": 0.5, "paper": 1.0, "paper, last weights": 1.0}


def test_evaluations_are_spaced_evenly_in_the_logarithm_and_end_at_the_end(script):
    found = script.marks(1500)
    assert found[0] == 25 and found[-1] == 1500 and found == sorted(set(found))
    assert np.all(np.diff(np.log(found)) < 1.1 * math.log(script.GROWTH))
    assert script.marks(3) == [3]


@pytest.mark.parametrize(
    ("name", "bound", "expected"),
    [
        ("shipped", 3.5, 5.0),  # there at the first look
        ("shipped", 2.1, 50.0),
        ("shipped", 2.55, 0.5 * 10**1.5),  # half way between looks in log time
        ("shipped", 0.9, math.inf),
        ("paper", 2.6, 2000.0),
    ],
)
def test_seconds_to_a_bound_are_those_of_the_mean_over_seeds(script, name, bound, expected):
    curves = CURVES | {"other": runs([(bound + 1e-9,), (bound - 0.1,)], (10,))}
    found = script.seconds_to(curves, name, "other", 0.05, SECONDS)
    assert found == pytest.approx(expected, rel=1e-6)


def test_only_seeds_that_both_have_are_compared(script):
    curves = CURVES | {"other": {1: CURVES["shipped"][0]}}
    # seed 1 of `shipped` goes through 2.2 at 100 steps; `other`, its seed 1, ends at 1
    assert script.seconds_to(curves, "shipped", "other", 1.2, SECONDS) == pytest.approx(50.0)
    curves["other"] = {7: CURVES["shipped"][0]}
    assert script.seconds_to(curves, "shipped", "other", 1.2, SECONDS) is None


def test_a_step_takes_the_median_of_all_processes(script):
    assert script.medians(MEASURED) == SECONDS


def test_the_table_has_times_in_units_of_the_other_row(script):
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[2:]
        for line in script.table(CURVES, MEASURED, "data").splitlines()[2:4]
    }
    part = 0.5 * 10 ** (1 + 0.5) / 2000  # 2.55 would be half way; 2.6 is a little before
    own = rows["shipped"]
    assert own[:4] == ["1.00 (1.00 to 1.00)", "1,000", "2", "1.100 (1.000 to 1.200)"]
    assert float(own[4].removeprefix("× ")) == pytest.approx(part, rel=0.15) and own[5] == ""
    paper = rows["paper"]
    assert (paper[0], paper[4], paper[6]) == ("2.00 (1.00 to 2.00)", "× 1", "never")


def test_runs_that_are_there_are_read_if_their_steps_were_timed(script, tmp_path):
    options = Namespace(data="digits", seeds=3, out=tmp_path)
    (tmp_path / "curves").mkdir()
    for name, seeds in {
        "shipped": (0, 2),
        "paper, last weights": (1,),
        "unscaled output": (0,),
    }.items():
        for seed in seeds:
            path = script.path_of(options, name, seed)
            path.write_text(json.dumps(runs([(seed, 0, 0)])[0]))
    found = script.read(options, MEASURED)
    first = {n: {s: run["bits_per_dim"][0] for s, run in of.items()} for n, of in found.items()}
    assert first == {"shipped": {0: 0, 2: 2}, "paper, last weights": {1: 1}}
    longer = runs([(1, 0, 0)], (10, 100, 2000))[0]
    script.path_of(options, "shipped", 1).write_text(json.dumps(longer))
    with pytest.raises(SystemExit, match=r"shipped: expected runs of one length, found \{'seed 0'"):
        script.read(options, MEASURED)


def test_a_run_that_is_there_is_of_this_config_and_length(script, tmp_path):
    path = tmp_path / "run.json"
    config = {"train": {"steps": 1000, "sizes": [1, 2]}}
    assert not script.there(path, config, 1000)
    path.write_text(json.dumps(runs([(1, 1, 1)])[0] | {"config": config}))
    assert script.there(path, config, 1050) and script.there(path, config)
    for other, stop in [(config, 1500), (config | {"seed": 1}, 1000)]:
        with pytest.raises(SystemExit, match=r"run\.json: expected this config and"):
            script.there(path, other, stop)


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_every_variant_is_a_config_that_differs_from_all_others(script, data):
    options = Namespace(data=data, quick=False)
    configs = [script.config_of(name, options) for name in script.VARIANTS[data]]
    assert len({json.dumps(config, default=str) for config in configs}) == len(configs) > 10


def test_ingredients_on_mnist_have_as_many_steps_as_what_they_are_compared_with(script):
    options = Namespace(data="mnist", quick=False)
    found = {name: script.config_of(name, options) for name in script.VARIANTS["mnist"]}
    steps = {name: config["train"]["steps"] for name, config in found.items()}
    whole = [name for name, n in steps.items() if n == steps["shipped"]]
    assert whole == ["shipped", "paper"]
    assert {n for name, n in steps.items() if name not in whole} == {steps[script.SHORT]}
    curves = {name: runs([(2.0, 1.5, 1.0)]) for name in ("shipped", "paper", script.SHORT)}
    measured = {name: [[1.0]] for name in curves}
    table = script.table(curves, measured, "data")
    assert f"until {script.SHORT}'s end + 0.02" in table
    del curves[script.SHORT]
    assert "until shipped's end + 0.02" in script.table(curves, measured, "data")


def test_rows_of_other_data_are_refused(script, monkeypatch, capsys):
    asked = ["--data", "digits", "--variants", "shipped", script.SHORT]
    monkeypatch.setattr("sys.argv", ["time_to_bound.py", *asked])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert f"found ['{script.SHORT}']" in capsys.readouterr().err
