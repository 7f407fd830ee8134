"""The arithmetic and the stored curves of experiments/time_to_bound.py."""

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


def test_evaluations_are_evenly_spaced_in_log_steps(script):
    steps = script.evaluation_steps(1500)
    assert steps[0] == 25 and steps[-1] == 1500 and steps == sorted(set(steps))
    assert np.all(np.diff(np.log(steps)) < 1.1 * math.log(script.GROWTH))
    assert script.evaluation_steps(3) == [3]


@pytest.mark.parametrize(
    ("name", "bound", "expected"),
    [
        ("shipped", 3.5, 5.0),  # reached at the first evaluation
        ("shipped", 2.1, 50.0),
        ("shipped", 2.55, 0.5 * 10**1.5),  # half way between evaluations in log time
        ("shipped", 0.9, math.inf),
        ("paper", 2.6, 2000.0),
    ],
)
def test_seconds_to_the_bound_of_the_mean_over_seeds(script, name, bound, expected):
    curves = CURVES | {"other": runs([(bound + 1e-9,), (bound - 0.1,)], (10,))}
    seconds = script.seconds_to(curves, name, "other", 0.05, SECONDS)
    assert seconds == pytest.approx(expected, rel=1e-6)


def test_only_common_seeds_are_compared(script):
    curves = CURVES | {"other": {1: CURVES["shipped"][0]}}
    # seed 1 of `shipped` passes 2.2 at 100 steps; seed 1 of `other` ends at 1
    assert script.seconds_to(curves, "shipped", "other", 1.2, SECONDS) == pytest.approx(50.0)
    curves["other"] = {7: CURVES["shipped"][0]}
    assert script.seconds_to(curves, "shipped", "other", 1.2, SECONDS) is None


def test_step_time_is_the_median_of_all_processes(script):
    assert script.medians(MEASURED) == SECONDS


def test_table_has_times_in_units_of_the_reference(script):
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[2:]
        for line in script.table(CURVES, MEASURED, "data").splitlines()[2:4]
    }
    share = 0.5 * 10 ** (1 + 0.5) / 2000  # for a bound of 2.55; 2.6 is reached a little earlier
    shipped, paper = rows["shipped"], rows["paper"]
    assert shipped[:4] == ["1.00 (1.00 to 1.00)", "1,000", "2", "1.100 (1.000 to 1.200)"]
    assert float(shipped[4].removeprefix("× ")) == pytest.approx(share, rel=0.15)
    assert shipped[5] == ""
    assert (paper[0], paper[4], paper[6]) == ("2.00 (1.00 to 2.00)", "× 1", "never")


def test_stored_curves_are_read_back_and_sorted(script, tmp_path):
    path = tmp_path / "curves.jsonl"
    assert script.read_curves(path) == {}
    for name, seed in [("shipped", 1), ("paper", 0), ("shipped", 0)]:
        script.store_curves(path, seed, {name: CURVES[name][seed]})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [[*line][:2] for line in lines] == [["variant", "seed"]] * 3
    keys = [(line["variant"], line["seed"]) for line in lines]
    assert keys == [("paper", 0), ("shipped", 0), ("shipped", 1)]
    assert script.read_curves(path) == CURVES | {"paper": {0: CURVES["paper"][0]}}


def test_a_cut_last_line_loses_no_other(script, tmp_path, capsys):
    path = tmp_path / "curves.jsonl"
    for seed in (0, 1):
        script.store_curves(path, seed, {"shipped": CURVES["shipped"][seed]})
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert script.read_curves(path) == {"shipped": {0: CURVES["shipped"][0]}}
    assert "ignored the last line" in capsys.readouterr().err
    script.store_curves(path, 1, {"shipped": CURVES["shipped"][1]})
    assert path.read_text() == whole
    path.write_text("{\n" + whole)
    with pytest.raises(SystemExit, match=r"curves\.jsonl, line 1: "):
        script.read_curves(path)


def test_curves_with_timed_steps_are_shown(script):
    options = Namespace(data="digits", seeds=3)
    three = runs([(seed, 0, 0) for seed in range(4)])
    stored = {
        "unscaled output": three,  # not timed
        "paper, last weights": {1: three[1]},
        "shipped": {0: three[0], 2: three[2], 3: three[3]},
    }
    shown = script.shown_curves(stored, options, MEASURED)
    assert [*shown.items()] == [
        ("shipped", {0: three[0], 2: three[2]}),
        ("paper, last weights", {1: three[1]}),
    ]
    stored["shipped"][1] = runs([(1, 0, 0)], (10, 100, 2000))[0]
    with pytest.raises(SystemExit, match=r"shipped: expected runs of one length, found \{'seed 0'"):
        script.shown_curves(stored, options, MEASURED)


def test_a_stored_run_has_this_config_and_length(script, tmp_path):
    path = tmp_path / "curves.jsonl"
    config = {"train": {"steps": 1000, "sizes": [1, 2]}}
    curve = CURVES["shipped"][0] | {"config": config}
    assert not script.is_stored(path, "shipped", 0, config, 1000)
    script.store_curves(path, 0, {"shipped": curve, "paper": curve})
    assert script.is_stored(path, "shipped", 0, config, 1050)
    assert script.is_stored(path, "shipped", 0, config)
    assert not script.is_stored(path, "shipped", 1, config)
    for other, stop in [(config, 1500), (config | {"seed": 1}, 1000)]:
        with pytest.raises(SystemExit, match=r"jsonl: shipped, seed 0: expected this config and"):
            script.is_stored(path, "shipped", 0, other, stop)
    assert not script.is_stored(path, "paper", 0, config)  # without the curve of its last weights
    script.store_curves(path, 0, {script.LAST: curve})
    assert script.is_stored(path, "paper", 0, config)


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_committed_curves_give_the_committed_table(script, data):
    folder = FOLDER / "results" / "time_to_bound" / data
    stored = script.read_curves(folder / "curves.jsonl")
    assert {*stored} <= {*script.VARIANTS[data], script.LAST}
    assert all({*stored[name]} == {0, 1, 2} for name in stored)
    measured = json.loads((folder / "steps.json").read_text())["seconds"]
    shown = script.shown_curves(stored, Namespace(data=data, seeds=3), measured)
    rows = script.table(shown, measured, "").splitlines()[:-1]
    assert rows == (folder / "table.md").read_text().splitlines()[:-1]


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_every_variant_has_another_config(script, data):
    options = Namespace(data=data, quick=False)
    configs = [script.config_of(name, options) for name in script.VARIANTS[data]]
    assert len({json.dumps(config, default=str) for config in configs}) == len(configs) > 10


def test_replacements_on_mnist_have_the_steps_of_the_short_reference(script):
    options = Namespace(data="mnist", quick=False)
    configs = {name: script.config_of(name, options) for name in script.VARIANTS["mnist"]}
    steps = {name: config["train"]["steps"] for name, config in configs.items()}
    full = [name for name, n in steps.items() if n == steps["shipped"]]
    assert full == ["shipped", "paper"]
    assert {n for name, n in steps.items() if name not in full} == {steps[script.SHORT]}
    curves = {name: runs([(2.0, 1.5, 1.0)]) for name in ("shipped", "paper", script.SHORT)}
    measured = {name: [[1.0]] for name in curves}
    table = script.table(curves, measured, "data")
    assert f"until {script.SHORT}'s end + 0.02" in table
    del curves[script.SHORT]
    assert "until shipped's end + 0.02" in script.table(curves, measured, "data")


def test_rows_of_other_data_are_refused(script, monkeypatch, capsys):
    arguments = ["--data", "digits", "--variants", "shipped", script.SHORT]
    monkeypatch.setattr("sys.argv", ["time_to_bound.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert f"found ['{script.SHORT}']" in capsys.readouterr().err
