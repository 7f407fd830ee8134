"""A run: its folder, its resumption bit for bit, and what it refuses before it touches anything."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import vdm_jax as vdm
from vdm_jax.config import to_dict
from vdm_jax.models import statistics
from vdm_jax.runs import folder as run_folder
from vdm_jax.runs import report, sweep, train
from vdm_jax.runs import trained as runs
from vdm_jax.runs.load import load
from vdm_jax.runs.replay import replay
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.loop import NonFinite

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.py"
STEPS, STACK, SAVE = 16, 4, 8  # saved at 8 and 16
HOMES = {"draw_samples": report, "evaluate": runs, "loss_curve": report}


def changed(config, changes):
    """Set {"section.field": value}."""
    for path, value in changes.items():
        *sections, field = path.split(".")
        tree = config
        for section in sections:
            tree = tree[section]
        with tree.ignore_type():
            tree[field] = value
    return config


def tiny(**changes):
    """The smoke config, smaller; `changes` are {"section.field": value}."""
    config = runpy.run_path(str(SMOKE))["get_config"]()
    config.model.network.width = 8
    config.optimizer.warmup_steps = 2
    config.train.batch_size = 16
    config.train.steps = STEPS
    config.train.steps_per_dispatch = STACK
    config.train.log_every = 3
    config.train.checkpoint_every = SAVE
    config.evaluate.batch_size = 297
    config.sample.count = 4
    config.sample.steps = 2
    return changed(config, changes)


def numbers(state):
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(numbers(state), numbers(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in files}


def silent(line):
    del line


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(tmp_path_factory):
    """Programs are compiled with few optimisations, and kept for the next run, as by the command line."""
    gammas, statistics.RESIDUAL_GAMMAS = statistics.RESIDUAL_GAMMAS, np.linspace(-20.0, 12.0, 5)
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
    statistics.RESIDUAL_GAMMAS = gammas


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """One trained run, and what it said."""
    lines = []
    trained = vdm.train(tiny(), tmp_path_factory.mktemp("runs") / "some" / "run", log=lines.append)
    return trained, lines


# ---------------------------------------------------------------- the folder


def test_a_run_leaves_what_it_says(unbroken):
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
    said = [Path(line.split()[-1]) for line in lines[1:]]
    expected = ["evaluation.json", "samples.png", "loss.png", "config.json", "checkpoints/16"]
    assert said == [folder / name for name in expected] and all(path.exists() for path in said)
    for name, size in {"samples.png": (1000, 540), "loss.png": (700, 420)}.items():
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.size == size


def test_the_evaluation_on_disk_is_that_of_the_run(unbroken):
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


def test_the_training_split_is_evaluated_too(unbroken):
    result = unbroken[0].evaluate("train", draws=1, batch_size=297)
    assert result.examples == 1500 and "split train[permutation 0, :1500]" in result.data
    assert "1 draws" in result.estimator and 1 < result.bits_per_dim < 3


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


def test_load_what_is_not_there(tmp_path, unbroken):
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


# ---------------------------------------------------------------- again, and further


def test_a_finished_run_does_nothing_again(unbroken, monkeypatch):
    trained, said = unbroken
    before = contents(trained.workdir)

    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    for name, home in {**HOMES, "fit": train, "save_statistics": run_folder}.items():
        monkeypatch.setattr(home, name, refuse)
    lines = []
    again = vdm.train(tiny(**{"train.steps": 5}), trained.workdir, log=lines.append)
    assert_same(again.state, trained.state)
    assert lines == [f"already trained: {trained.workdir} is at step 16, 5 asked for", *said]
    after = contents(trained.workdir)
    config, noted = (
        trained.workdir / "config.json",
        trained.workdir / "checkpoints/16/annotations.json",
    )
    changed_files = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed_files == {config, noted}
    config.write_bytes(before[config])
    noted.unlink()


def test_what_is_asked_anew_is_done_anew(unbroken, monkeypatch):
    trained, _ = unbroken
    done = []

    def note(name, function):
        def noted(*args, **kwargs):
            done.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(HOMES[name], name, noted)

    for name, home in HOMES.items():
        note(name, getattr(home, name))

    def reported(**changes):
        done.clear()
        report.report(replace(trained, config=to_dict(tiny(**changes))), silent)
        return done

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
    """Train until the data break off, as a killed run does."""
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
    """Parameters, average, optimizer, key, lines: bit for bit."""
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


def test_another_seed_is_another_run_and_a_run_may_be_shorter_than_a_line(unbroken, tmp_path):
    changes = {"seed": 1, "train.steps": STACK, "train.log_every": STACK + 1}
    other = vdm.train(tiny(**changes), tmp_path, log=silent)
    assert int(other.state.step) == STACK
    pairs = zip(*(jax.tree.leaves(t.state.params) for t in (other, unbroken[0])), strict=True)
    assert all(np.any(a != b) for a, b in pairs if a.size > 1)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert (tmp_path / "loss.png").exists()


# ---------------------------------------------------------------- divergence


@pytest.mark.slow
def test_divergence_is_found_and_can_be_replayed(tmp_path):
    """The rate is 0 at the first update, so the second ruins the parameters, and the third loss shows it."""
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
    """From a checkpoint before it or from the start, without changing the folder."""
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


# ---------------------------------------------------------------- mistakes

MISTAKES = [
    ({"model.name": "vmd"}, r"config\.model\.name: unknown name 'vmd'; did you mean 'vdm'"),
    ({"model.where": "x"}, r"config\.model: unknown field 'where'; choices: base,"),
    ({"model.bass": "zero"}, r"config\.model: unknown field 'bass'; did you mean 'base'"),
    (
        {"model.network.name": "mpl"},
        r"config\.model\.network: unknown name 'mpl'; did you mean 'mlp'",
    ),
    (
        {"model.network.widht": 3},
        r"config\.model\.network: 'mlp' has no argument 'widht'; .* 'width'",
    ),
    ({"model.network.dtype": "float"}, r"config\.model\.network\.dtype: "),
    (
        {"model.network": {"name": "unet", "patch": 3}},
        r"config\.model: cannot be computed on 'digits' .*patch",
    ),
    (
        {"model.schedule.name": "linaer"},
        r"config\.model\.schedule: unknown name 'linaer'; .*'linear'",
    ),
    ({"model.schedule.gama": 3}, r"config\.model\.schedule: 'linear' has no argument 'gama'"),
    ({"model.schedule.gamma_min": 5.0}, r"config\.model\.schedule\.gamma_min: .* found 5\.0"),
    (
        {"model.parameterization": "esp"},
        r"config\.model\.parameterization: unknown name 'esp'; .*'eps'",
    ),
    (
        {"model.parameterization": "mean"},
        r"parameterization: 'mean' has no .* give timesteps=T, found None",
    ),
    ({"model.timesteps": 0}, r"config\.model\.timesteps: expected a whole number in .*, found 0"),
    ({"model.base": "histgram"}, r"config\.model\.base: unknown name 'histgram'; .*'histogram'"),
    (
        {"model.base": {"name": "levels", "levls": 3}},
        r"config\.model\.base: 'levels' has no argument 'levls'",
    ),
    (
        {"model.output_scale": "unit_varianc"},
        r"config\.model\.output_scale: unknown name 'unit_varianc'; did you mean 'unit_variance'",
    ),
    (
        {"model.likelihood": "sofmax"},
        r"config\.model\.likelihood: unknown name 'sofmax'; .*'softmax'",
    ),
    ({"model.likelihood": "gaussian"}, r"config\.model\.likelihood: .*17 levels.*continuous"),
    ({"model.weighting.name": "elba"}, r"config\.model\.weighting: unknown name 'elba'; .*'elbo'"),
    (
        {"model.loss_space": "esp"},
        r"config\.model\.loss_space: unknown name 'esp'; did you mean 'eps'",
    ),
    ({"sample.sampler": "ancestal"}, r"sample\.sampler: unknown name 'ancestal'; .*'ancestral'"),
    (
        {"optimizer.decay_steps": 2},
        r"config\.optimizer\.decay_steps: expected more than warmup_steps = 2, found 2",
    ),
    (
        {"train.batch_size": 1501},
        r"config\.train\.batch_size: 'train.*' has 1500 examples, .* of 1501",
    ),
    (
        {"data.name": "digit"},
        r"config\.data\.name: unknown data set 'digit', did you mean 'digits'",
    ),
    ({"data.test_split": "half"}, r"config\.data\.test_split: 'digits' has .* found 'half'"),
]
IN_STEPS = {"model.parameterization": "mean", "model.timesteps": 10, "sample.steps": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [*MISTAKES, (IN_STEPS, r"sample\.steps: .*expected a divisor of timesteps = 10, found 3")],
    ids=str,
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, changes, message):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message) as caught:
        vdm.train(tiny(**changes), workdir, log=silent)
    assert "\n" not in str(caught.value)
    assert not workdir.exists()


def test_data_that_are_missing(tmp_path):
    config = tiny(**{"data.name": "cifar10", "data.data_dir": str(tmp_path / "none")})
    with pytest.raises(
        FileNotFoundError, match=r"config\.data\.data_dir: 'cifar10' is not prepared"
    ):
        vdm.train(config, tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_left_alone(unbroken):
    trained, _ = unbroken
    before = contents(trained.workdir)
    message = (
        f"{trained.workdir} holds a run of another config .config.json.; .*undo: "
        r"config\.model\.output_scale: 'unit_variance' there, 'none' here; config\.seed: 0 there, 3 here$"
    )
    with pytest.raises(ValueError, match=message):
        vdm.train(tiny(**{"model.output_scale": "none", "seed": 3}), trained.workdir, log=silent)
    assert contents(trained.workdir) == before


@pytest.mark.parametrize("inside", [".", "run"])
def test_a_folder_that_cannot_be_written(tmp_path, inside):
    """A file is in its place, or above it."""
    blocked = tmp_path / "blocked"
    blocked.write_text("mine")
    workdir = blocked / inside
    with pytest.raises(OSError, match=r"cannot be written: |expected a folder, found") as caught:
        vdm.train(tiny(), workdir, log=silent)
    assert "\n" not in str(caught.value)
    assert blocked.read_text() == "mine"


# ---------------------------------------------------------------- latent-variable models


def shrunk(name, **changes):
    """A shipped config of latent variables, a few steps of small networks."""
    config = runpy.run_path(str(SMOKE.parent / f"{name}.py"))["get_config"]()
    parts = config.model.chain if name == "mhvae" else config.model
    parts.encoder.width = parts.decoder.width = 8
    if name == "mhvae":
        parts.latents, parts.level.width = (4, 3), 8
    config.optimizer.warmup_steps = 2
    config.train.batch_size, config.train.steps, config.train.steps_per_dispatch = 16, 8, 4
    config.train.log_every, config.train.checkpoint_every = 2, 4
    config.evaluate.draws, config.sample.count = 1, 4
    return changed(config, changes)


@pytest.mark.slow
def test_a_hierarchy_is_trained_resumed_and_shown(tmp_path):
    lines = []
    vdm.train(shrunk("mhvae", **{"train.steps": 4}), tmp_path / "parts", log=silent)
    resumed = vdm.train(shrunk("mhvae"), tmp_path / "parts", log=silent)
    whole = vdm.train(shrunk("mhvae"), tmp_path / "whole", log=lines.append)
    assert_same(resumed.state, whole.state)
    assert lines[0].startswith("test: ") and "ELBO, 2 latents" in lines[0]
    made = {line.split()[0] for line in lines[1:]}
    assert {"samples", "reconstructions", "interpolations", "evaluation"} <= made
    for name in ("samples", "reconstructions", "interpolations", "loss"):
        with Image.open(tmp_path / "whole" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert {"kl_1", "gain_2", "level_1", "level_2", "bits_per_dim"} <= rows[-1].keys()
    tight = whole.evaluate("test", importance_samples=3)
    assert "importance-weighted bound of 3 samples" in tight.estimator and tight.prior is None
    again = []
    vdm.train(shrunk("mhvae"), tmp_path / "whole", log=again.append)
    assert again[1:] == lines


@pytest.mark.slow
def test_an_autoencoder_is_trained_and_says_what_it_is_not(tmp_path):
    lines = []
    trained = vdm.train(shrunk("ae"), tmp_path, log=lines.append)
    assert lines[0].startswith("no test bound: an autoencoder (prior_weight = 0) has neither")
    assert (tmp_path / "reconstructions.png").exists() and (tmp_path / "loss.png").exists()
    assert not (tmp_path / "samples.png").exists()
    for refused in (trained.bits_per_dim, lambda: trained.sample(jax.random.key(0), 2)):
        with pytest.raises(ValueError, match="neither a likelihood"):
            refused()
    again = []
    vdm.train(shrunk("ae"), tmp_path, log=again.append)
    assert again[1:] == lines
    # a run shorter than a log interval has a curve without points
    vdm.train(shrunk("ae", **{"train.log_every": 100}), tmp_path / "short", log=silent)
    assert (tmp_path / "short" / "loss.png").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mhvae", {"model.chain.latents": ()}, r"config\.model\.chain\.latents: expected .* T ≥ 1"),
        ("mhvae", {"model.chain.latents": (3, 0)}, r"latents\[1\]: .* at least 1, found 0"),
        ("vae", {"model.latent": 0}, r"config\.model\.latent: .* at least 1, found 0"),
        ("vae", {"model.prior_weight": -1.0}, r"config\.model\.prior_weight: .*, found -1.0"),
        ("vae", {"model.likelihood": "bernoulli"}, r"config\.model\.likelihood: the data have 17"),
        (
            "vae",
            {"model.draws": 0},
            r"config\.model\.draws: expected a whole number of at least 1, found 0",
        ),
        (
            "vae",
            {"evaluate.importance_samples": 0},
            r"config\.evaluate\.importance_samples: expected .* at least 1, found 0",
        ),
        (
            "vae",
            {"sample.steps": 10},
            r"config\.sample: 'vae' has no setting 'steps'; choices: count",
        ),
        (
            "smoke",
            {"evaluate.importance_samples": 4},
            r"importance_samples: 'vdm' has no importance",
        ),
    ],
)
def test_mistakes_with_latent_variables(tmp_path, name, changes, message):
    config = tiny(**changes) if name == "smoke" else shrunk(name, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        vdm.train(config, tmp_path / "run", log=silent)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
