"""The identity of a run: its data, config and step are checked wherever its folder is read."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from small import register, small_config

import vdm_jax as vdm
from vdm_jax.runs import train
from vdm_jax.runtime.files import read_checked, write_checked

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).binomial(3, 0.2, (40, 2, 2, 1)).astype(np.uint8)
OTHERS = {
    "inverted": (3 - IMAGES, 4),
    "one test pixel": (
        np.where(
            np.arange(IMAGES.size).reshape(IMAGES.shape) < IMAGES.size - 1, IMAGES, 3 - IMAGES
        ),
        4,
    ),
    "order": (IMAGES[::-1].copy(), 4),
    "levels": (IMAGES, 8),
}


def silent(line):
    del line


@pytest.fixture(autouse=True)
def data():
    register(IMAGES, 4)
    yield
    vdm.data.DATASETS.pop("own")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Train a run, a sweep and a run with another seed; return their folder."""
    folder = tmp_path_factory.mktemp("runs")
    register(IMAGES, 4)
    vdm.train(small_config(), folder / "run", log=silent)
    vdm.train(small_config(seed=1), folder / "other", log=silent)
    vdm.train_sweep(small_config(runs={"seeds": (0, 1)}), folder / "sweep", log=silent)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


DOORS = {
    "train": ("run", lambda f: vdm.train(small_config(steps=4), f, log=silent)),
    "evaluate": ("run", lambda f: vdm.load(f).evaluate("test")),
    "dataset": ("run", lambda f: vdm.load(f).dataset),
    "replay": ("run", lambda f: vdm.replay(f, 1)),
    "sweep": ("sweep", lambda f: vdm.load_sweep(f)["seed1"].evaluate("test")),
    "train sweep": (
        "sweep",
        lambda f: vdm.train_sweep(small_config(runs={"seeds": (0, 1)}), f, log=silent),
    ),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_other_images_are_refused(copied, door, other):
    name, enter = door
    register(*other)
    with pytest.raises(ValueError, match=r"has other images than those that .* was trained on"):
        enter(copied / name)


LOADERS = "evaluate", "dataset", "replay", "train"


@pytest.mark.parametrize("file", ["config.json", "statistics.npz"])
@pytest.mark.parametrize("door", LOADERS)
def test_file_of_another_run_is_refused(copied, door, file, capsys):
    if file == "statistics.npz":  # those of other seeds are the same
        register(OTHERS["inverted"][0], 4)
        vdm.train(small_config(), copied / "inverted", log=silent)
        register(IMAGES, 4)
        shutil.copy(copied / "inverted" / file, copied / "run" / file)
    else:
        shutil.copy(copied / "other" / file, copied / "run" / file)
    name, enter = DOORS[door]
    if (door, file) == ("train", "statistics.npz"):  # repaired, because the data are there
        enter(copied / name)
        assert "statistics.npz is that of another run; written again" in capsys.readouterr().err
        return
    with pytest.raises(ValueError, match=f"{file} is that of another run|another config"):
        enter(copied / name)


def test_changed_settings_of_the_config_are_reported(copied, capsys):
    path = copied / "run" / "config.json"
    config = json.loads(path.read_text())
    config["evaluate"]["draws"] = 2
    path.write_text(json.dumps(config))
    assert vdm.load(copied / "run").config["evaluate"]["draws"] == 2
    assert "config.evaluate.draws: 1 there, 2 here" in capsys.readouterr().err
    # a command with these settings stores them in the run
    vdm.train(small_config(draws=2), copied / "run", log=silent)
    assert vdm.load(copied / "run").config["evaluate"]["draws"] == 2
    assert "here" not in capsys.readouterr().err


def test_checkpoints_of_another_run_are_refused(copied):
    shutil.rmtree(copied / "run" / "checkpoints")
    shutil.copytree(copied / "other" / "checkpoints", copied / "run" / "checkpoints")
    for door in LOADERS:
        with pytest.raises(ValueError, match=r"config\.seed: 1 there, 0 here"):
            DOORS[door][1](copied / "run")


@pytest.mark.parametrize("left", ["checkpoints moved away", "killed before the first"])
def test_run_restarted_on_other_data(copied, tmp_path, left):
    """Statistics and reported bound do not depend on the old data."""
    images = OTHERS["inverted"][0]
    if left == "checkpoints moved away":
        shutil.rmtree(copied / "run" / "checkpoints")
    else:
        shutil.rmtree(copied / "run" / "checkpoints")
        for name in ("evaluation.json", "samples.png", "loss.png"):
            (copied / "run" / name).unlink()
    register(images, 4)
    lines, clean_lines = [], []
    again = vdm.train(small_config(), copied / "run", log=lines.append)
    clean = vdm.train(small_config(), tmp_path / "clean", log=clean_lines.append)
    assert lines[0] == clean_lines[0] and lines[0].startswith("test: ")
    for a, b in zip(
        jax.tree.leaves(again.statistics), jax.tree.leaves(clean.statistics), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def evaluation(folder):
    return read_checked(folder / "evaluation.json")


def poisoned(folder, **changes):
    """Write a false bound into a valid evaluation."""
    saved = evaluation(folder)
    saved["test"] |= {"bits_per_dim": 0.25}
    write_checked(folder / "evaluation.json", saved | changes)


FALSE = {
    "of other weights": lambda f: poisoned(f, of=evaluation(f)["of"] | {"weights": "0" * 16}),
    "of other data": lambda f: poisoned(f, of=evaluation(f)["of"] | {"data": "0" * 16}),
    "of another step": lambda f: poisoned(f, step=3),
    "of another run": lambda f: shutil.copy(f.parent / "other" / "evaluation.json", f),
    "flipped": lambda f: (f / "evaluation.json").write_bytes(
        (f / "evaluation.json").read_bytes().replace(b'"bits_per_dim": ', b'"bits_per_dim": 1')
    ),
    "no evaluation": lambda f: write_checked(f / "evaluation.json", {}),
    "wrong types": lambda f: poisoned(f, test=[1]),
    "empty": lambda f: (f / "evaluation.json").write_text(""),
    "deep": lambda f: (f / "evaluation.json").write_text("[" * 10**5),
}


@pytest.mark.parametrize("change", FALSE.values(), ids=FALSE)
def test_false_evaluation_is_repeated(finished, copied, change, capsys):
    expected = evaluation(finished / "run")
    change(copied / "run")
    lines = []
    vdm.train(small_config(), copied / "run", log=lines.append)
    assert f"{expected['test']['bits_per_dim']:.4f}" in lines[1]
    assert evaluation(copied / "run") == expected
    reported = "evaluation.json is damaged" in capsys.readouterr().err
    assert reported == (change in (FALSE["flipped"], FALSE["empty"], FALSE["deep"]))


def test_false_evaluation_of_a_sweep_is_repeated(finished, copied):
    expected = evaluation(finished / "sweep")
    false = json.loads(json.dumps(expected))
    false["of"]["seed0"]["of"]["data"] = "0" * 16
    false["test"]["seed0"]["bits_per_dim"] = 0.25
    write_checked(copied / "sweep" / "evaluation.json", false)
    vdm.train_sweep(small_config(runs={"seeds": (0, 1)}), copied / "sweep", log=silent)
    assert evaluation(copied / "sweep") == expected


def test_folder_deleted_under_a_run(tmp_path, monkeypatch):
    """A run whose folder is deleted ends with an error and writes nothing."""
    whole = train.dispatcher

    def dispatcher(*arguments):
        dispatch = whole(*arguments)

        def deleting(state, stack):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return dispatch(state, stack)

        return deleting

    monkeypatch.setattr(train, "dispatcher", dispatcher)
    with pytest.raises(OSError, match="was deleted while the run was writing to it"):
        vdm.train(small_config(), tmp_path / "run", log=silent)


def test_evaluation_of_one_example_is_strict_json(tmp_path):
    register(IMAGES[:33], 4)  # one test example: its standard error is not a number
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vdm.train(small_config(), tmp_path / "run", log=silent)
    text = (tmp_path / "run" / "evaluation.json").read_text()
    saved = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert saved["test"]["examples"] == 1 and saved["test"]["standard_error"] is None
    lines = []
    vdm.train(small_config(), tmp_path / "run", log=lines.append)
    assert "± nan" in lines[1]


def test_data_folder_of_a_stored_config_is_reported(copied, capsys):
    path = copied / "run" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["data_dir"] = "theirs"
    path.write_text(json.dumps(config))
    vdm.load(copied / "run").evaluate("test")
    assert "reading 'own' from theirs, the data_dir of" in capsys.readouterr().err


@pytest.mark.parametrize("step", [1.5, -1, True, None, "newset"])
@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("door", [vdm.load, vdm.replay], ids=["load", "replay"])
def test_invalid_steps(finished, door, step):
    with pytest.raises(ValueError, match=r"step: (expected|unknown name)"):
        door(finished / "run", step)
