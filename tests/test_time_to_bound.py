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
    return [shared | {"bits_per_dim": list(values)} for values in bounds]


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
    found = script.seconds_to(CURVES, name, bound, SECONDS)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_step_takes_the_median_of_all_processes(script):
    assert script.medians(MEASURED) == SECONDS


def test_the_table_has_times_in_units_of_the_other_row(script):
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[2:]
        for line in script.table(CURVES, MEASURED, "data").splitlines()[2:4]
    }
    part = 0.5 * 10 ** (1 + 0.5) / 2000  # 2.55 would be half way; 2.6 is a little before
    own = rows["shipped"]
    assert own[:3] == ["1.00 (1.00 to 1.00)", "1,000", "1.100 (1.000 to 1.200)"]
    assert float(own[3].removeprefix("× ")) == pytest.approx(part, rel=0.15) and own[4] == ""
    paper = rows["paper"]
    assert (paper[0], paper[3], paper[5]) == ("2.00 (1.00 to 2.00)", "× 1", "never")


def test_a_run_that_is_there_is_of_this_config_and_length(script, tmp_path):
    path = tmp_path / "run.json"
    config = {"train": {"steps": 1000, "sizes": (1, 2)}}
    assert not script.there(path, config, 1000)
    path.write_text(json.dumps(runs([(1, 1, 1)])[0] | {"config": config}))
    assert script.there(path, config, 1050) and script.there(path, config, 800)
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
