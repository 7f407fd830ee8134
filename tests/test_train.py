"""A run: its folder, its resumption bit for bit, and the replay of its steps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
from PIL import Image
from tiny_runs import SAVE, STACK, STEPS, assert_same, contents, silent, tiny

import vdm_jax as vdm
from vdm_jax.config import resolve, to_dict
from vdm_jax.runs import folder as run_folder
from vdm_jax.runs import report, sweep, train
from vdm_jax.runs import trained as runs
from vdm_jax.runs.load import load
from vdm_jax.runs.replay import replay
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.loop import NonFinite

compiled_quickly = tiny_runs.compiled_quickly  # a fixture of every test below
HOMES = {"draw_samples": report, "evaluate": runs, "loss_curve": report}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Train a run; return it and its log."""
    lines = []
    trained = vdm.train(tiny(), tmp_path_factory.mktemp("runs") / "some" / "run", log=lines.append)
    return trained, lines


# --- folder ------------------------------------------------------------------------------------------


def test_files_and_lines_of_a_run(unbroken):
    trained, lines = unbroken
    folder = trained.workdir
    names = {"config.json", "statistics.npz", "checkpoints", "metrics.jsonl", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == names | {
        "evaluation.json",
        "samples.png",
        "loss.png",
    }
    assert json.loads((folder / "config.json").read_text()) == to_dict(tiny()) == trained.config
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["16", "8", "lock"]
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == [3, 6, 9, 12, 15]
    assert lines[0].startswith(f"test: {trained.evaluate().bits_per_dim:.4f} ± ")
    paths = [Path(line.split()[-1]) for line in lines[1:]]
    expected = ["evaluation.json", "samples.png", "loss.png", "config.json", "checkpoints/16"]
    assert paths == [folder / name for name in expected] and all(path.exists() for path in paths)
    for name, size in {"samples.png": (1000, 540), "loss.png": (700, 420)}.items():
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.size == size


def test_saved_evaluation_equals_that_of_the_run(unbroken):
    trained, _ = unbroken
    saved = json.loads((trained.workdir / "evaluation.json").read_text())
    assert saved["test"] == trained.evaluate("test")._asdict()
    assert saved["step"] == saved["test"]["step"] == STEPS and saved["test"]["examples"] == 297
    assert saved["evaluate"] == trained.config["evaluate"]
    assert saved["test"]["bits_per_dim"] == trained.bits_per_dim()
    text = str(trained.evaluate())
    for part in (
        "diffusion ELBO, continuous time, 2 draws per example",
        "vdm: mlp, linear, eps, base histogram, output scale unit_variance, weighting elbo, likelihood softmax",
        "digits scikit-learn",
        "split test[permutation 0, 1500:], 297 examples",
        "EMA weights of step 16",
    ):
        assert part in text


def test_training_split_is_evaluated(unbroken):
    result = unbroken[0].evaluate("train", draws=1, batch_size=297)
    assert result.examples == 1500 and "split train[permutation 0, :1500]" in result.data
    assert "1 draw per example" in result.estimator and 1 < result.bits_per_dim < 3


def test_evaluate_refuses(unbroken):
    trained, _ = unbroken
    with pytest.raises(ValueError, match="split: unknown name 'tset'; did you mean 'test'"):
        trained.evaluate("tset")
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 1, found 0"):
        trained.evaluate(draws=0)
    with pytest.raises(
        ValueError, match="batch_size: expected a whole number of at least 1, found 0"
    ):
        trained.evaluate(batch_size=0)


def test_sample(unbroken):
    trained, _ = unbroken
    key = jax.random.key(5)
    images = trained.sample(key, 3)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8 and images.max() <= 16
    assert len(np.unique(images)) > 3
    np.testing.assert_array_equal(trained.sample(key, 3), images)
    assert np.any(np.asarray(trained.sample(jax.random.key(6), 3)) != images)
    assert np.any(np.asarray(trained.sample(key, 3, sampler="ddim")) != images)
    with pytest.raises(
        ValueError, match=r"sample\.sampler: unknown name 'dim'; did you mean 'ddim'"
    ):
        trained.sample(key, 3, sampler="dim")


def test_load(unbroken):
    trained, _ = unbroken
    loaded = load(trained.workdir)
    assert_same(loaded.state, trained.state)
    assert loaded.config == trained.config and loaded.workdir == trained.workdir
    assert loaded.bits_per_dim() == trained.bits_per_dim()


def test_load_of_incomplete_folders(tmp_path, unbroken):
    with pytest.raises(FileNotFoundError, match=f"no run to load in {tmp_path}: config.json"):
        load(tmp_path)
    for name in ("config.json", "statistics.npz"):
        (tmp_path / name).write_bytes((unbroken[0].workdir / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: checkpoints is missing"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}/checkpoints"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(ValueError, match=r"config\.json is damaged: "):
        load(tmp_path)


def test_folder_of_another_run_is_unchanged(unbroken):
    trained, _ = unbroken
    before = contents(trained.workdir)
    message = (
        f"{trained.workdir} holds a run of another config .config.json.; .*undo: "
        r"config\.model\.output_scale: 'unit_variance' there, 'none' here; config\.seed: 0 there, 3 here$"
    )
    with pytest.raises(ValueError, match=message):
        vdm.train(tiny(**{"model.output_scale": "none", "seed": 3}), trained.workdir, log=silent)
    assert contents(trained.workdir) == before


# --- resumption --------------------------------------------------------------------------------------


def test_finished_run_repeats_nothing(unbroken, monkeypatch):
    trained, report_lines = unbroken
    before = contents(trained.workdir)

    def refuse(*args, **kwargs):
        raise AssertionError("repeated")

    for name, home in {**HOMES, "fit": train, "save_statistics": run_folder}.items():
        monkeypatch.setattr(home, name, refuse)
    lines = []
    again = vdm.train(tiny(**{"train.steps": 5}), trained.workdir, log=lines.append)
    assert_same(again.state, trained.state)
    assert lines == [
        f"already trained: {trained.workdir} is at step 16, 5 asked for",
        *report_lines,
    ]
    after = contents(trained.workdir)
    config, annotations = (
        trained.workdir / "config.json",
        trained.workdir / "checkpoints/16/annotations.json",
    )
    changed_files = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed_files == {config, annotations}
    config.write_bytes(before[config])
    annotations.unlink()


def test_changed_settings_repeat_their_reports(unbroken, monkeypatch):
    trained, _ = unbroken
    calls = []

    def record(name, function):
        def recorded(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(HOMES[name], name, recorded)

    for name, home in HOMES.items():
        record(name, getattr(home, name))

    def reported(**changes):
        calls.clear()
        report.report(replace(trained, settings=resolve(tiny(**changes))), silent)
        return calls

    assert reported(**{"sample.count": 2}) == ["draw_samples"]
    assert reported(**{"sample.count": 2, "evaluate.draws": 1}) == ["evaluate", "loss_curve"]
    assert reported() == ["evaluate", "draw_samples", "loss_curve"]
    assert reported() == []
    (trained.workdir / "samples.png").unlink()
    assert reported() == ["draw_samples"]


@pytest.fixture
def unreported(monkeypatch):
    monkeypatch.setattr(train, "report", lambda trained, log: None)


def interrupted(monkeypatch, workdir, after):
    """Train until the data break off, as in a killed run."""
    whole = sweep.train_batches

    def broken(*args, **kwargs):
        for i, stack in enumerate(whole(*args, **kwargs)):
            if i == after:
                raise KeyboardInterrupt
            yield stack

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "train_batches", broken)
        with pytest.raises(KeyboardInterrupt):
            vdm.train(tiny(), workdir, log=silent)


@pytest.mark.parametrize(
    "stop", ["at a checkpoint", "nowhere in particular", "killed", "killed early"]
)
def test_a_resumed_run_is_the_unbroken_one(unbroken, unreported, monkeypatch, tmp_path, stop):
    """Parameters, average, optimizer state, key and log are equal bit for bit."""
    if stop == "killed":
        interrupted(monkeypatch, tmp_path, after=3)  # at step 12, four after the checkpoint
    elif stop == "killed early":
        interrupted(monkeypatch, tmp_path, after=1)
    else:
        first = {"at a checkpoint": SAVE, "nowhere in particular": 5}[stop]
        partial = vdm.train(tiny(**{"train.steps": first}), tmp_path, log=silent)
        assert int(partial.state.step) == first
    lines = []
    resumed = vdm.train(tiny(), tmp_path, log=lines.append)
    where = {"at a checkpoint": SAVE, "nowhere in particular": 5, "killed": SAVE}.get(stop)
    assert lines == ([f"continuing from step {where} in {tmp_path}"] if where else [])
    expected, _ = unbroken
    assert_same(resumed.state, expected.state)
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, expected.workdir)]
    assert rows[0] == rows[1]


def test_another_seed_gives_another_run(unbroken, tmp_path):
    changes = {"seed": 1, "train.steps": STACK, "train.log_every": STACK + 1}
    other = vdm.train(tiny(**changes), tmp_path, log=silent)
    assert int(other.state.step) == STACK
    pairs = zip(*(jax.tree.leaves(t.state.params) for t in (other, unbroken[0])), strict=True)
    assert all(np.any(a != b) for a, b in pairs if a.size > 1)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert (tmp_path / "loss.png").exists()


# --- divergence and replay ---------------------------------------------------------------------------


@pytest.mark.slow
def test_divergence_can_be_replayed(tmp_path):
    """The first update has a learning rate of 0, the second ruins the parameters, the third loss shows it."""
    config = tiny(**{"optimizer.learning_rate": 1e30, "train.checkpoint_every": 2})
    config.train.steps_per_dispatch = 1
    message = (
        rf"loss is nan at step 5: training stopped; last good checkpoint: step 4, in {tmp_path}/checkpoints; "
        rf"its batch: {tmp_path}/nonfinite/step_5\.npz"
    )
    with pytest.raises(NonFinite, match=message):
        vdm.train(config, tmp_path, log=silent)
    loaded = load(tmp_path)
    assert int(loaded.state.step) == 4
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(loaded.state.params))
    trained, key, batch = replay(tmp_path, 5)
    assert_same(trained.state, loaded.state)
    with np.load(tmp_path / "nonfinite" / "step_5.npz") as written:
        for name, value in batch._asdict().items():
            np.testing.assert_array_equal(written[name], value)
    value, _ = trained.model.loss(trained.state.params, key, batch)
    assert np.isnan(value)


@pytest.mark.slow
def test_any_step_can_be_replayed(unbroken, tmp_path):
    """A replay starts from an earlier checkpoint or from step 0, and changes no file."""
    folder = tmp_path / "copy"
    shutil.copytree(unbroken[0].workdir, folder)
    before = contents(folder)
    for step, start in ((12, 8), (3, 0)):
        trained, key, batch = replay(folder, step)
        assert int(trained.state.step) == step - 1 and step > start
        loss, _ = trained.model.loss(trained.state.params, key, batch)
        assert np.isfinite(loss) and batch.x.shape == (16, 8, 8, 1)
    assert contents(folder) == before
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"step: expected a whole number in \[1, 16\], found 17"
        ):
            vdm.replay(folder, 17)  # and not the module of that name
    (folder / "checkpoints" / "8" / "about" / "metadata").write_text("{}")
    again, _, _ = replay(folder, 12)  # from the start then
    assert_same(again.state, replay(unbroken[0].workdir, 12)[0].state)
