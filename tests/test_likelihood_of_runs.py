"""Likelihood estimators of a trained run: settings, compilation, interruptions and damaged progress."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny_runs
from commands import command as command
from tiny_runs import silent, tiny

import vdm_jax as vdm
from vdm_jax.data import load_dataset
from vdm_jax.runs import trained as runs
from vdm_jax.runs.estimates import estimate, estimates_table
from vdm_jax.runtime.files import read_checked
from vdm_jax.runtime.interrupt import Interrupted
from vdm_jax.training import evaluate as evaluation
from vdm_jax.training.progress import remove_progress

compiled_quickly = tiny_runs.compiled_quickly  # a fixture of every test below

SPECS = [
    {"name": "elbo", "timesteps": 3, "draws": 2},
    {"name": "tuned", "timesteps": 3},
    {"name": "importance", "timesteps": 3, "samples": 2, "variance": "fitted"},
    {"name": "ode", "steps": 2, "check_steps": True},
]

FITTED = {"name": "ancestral", "variance": "fitted"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a tiny run."""
    config = tiny()
    config.evaluate.batch_size = 100
    config.evaluate.fit_examples = 50
    config.evaluate.estimators = tuple(SPECS)
    with config.sample.ignore_type():
        config.sample.sampler = FITTED
    return vdm.train(config, tmp_path_factory.mktemp("runs"), log=silent)


@pytest.fixture(scope="module")
def estimates(trained):
    """Return the estimates of the run, and the lines that were logged."""
    lines = []
    return estimate(trained, lines.append), lines


def test_estimates_name_their_settings(trained, estimates):
    rows, lines = estimates
    assert [row["settings"]["name"] for row in rows] == [spec["name"] for spec in SPECS]
    for row, spec, line in zip(rows, SPECS, lines, strict=True):
        settings = {k: v for k, v in row["settings"].items() if k in spec}
        assert settings == {k: v for k, v in spec.items() if k != "check_steps"}
        assert row["examples"] == 297 and row["standard_error"] > 0 and row["seconds"] > 0
        assert line.startswith(f"test: {row['bits_per_dim']:.4f} ± ")
        assert row["calls"] > 0
    assert rows[3]["settings"]["dequantization"] == "decoder"
    assert rows[3]["discretization"] is not None and "discretization error about" in lines[3]
    table = estimates_table(rows).splitlines()
    assert len([line for line in table if line.startswith("| ")]) == 1 + len(SPECS)


def test_the_fitted_variance_lowers_the_bound_of_few_steps(trained):
    plain = trained.evaluate(estimator={"name": "elbo", "timesteps": 3}, draws=3)
    tuned = trained.evaluate(estimator={"name": "tuned", "timesteps": 3}, draws=3)
    assert tuned.bits_per_dim < plain.bits_per_dim
    assert tuned.reconstruction == pytest.approx(plain.reconstruction)


def test_the_elbo_of_a_spec_is_that_of_the_model(trained):
    by_name = trained.evaluate(estimator="elbo", draws=2)
    model, params = trained.model, trained.state.ema_params
    bound = jax.jit(partial(model.elbo, draws=2))
    batches = runs.eval_batches(trained.dataset.test, batch_size=297)
    batch, _ = next(batches)
    nats = bound(params, runs.stream(trained.settings.seed, "evaluate"), batch).total
    bits = float(np.mean(nats)) * trained.statistics.bits
    assert by_name.bits_per_dim == pytest.approx(bits, rel=1e-5)


def test_equal_specs_are_compiled_once(trained):
    before = len(trained._compiled)
    for _ in range(2):
        trained.evaluate(estimator={"name": "elbo", "timesteps": 5}, draws=1)
    assert len(trained._compiled) == before + 1
    # an estimator that is built has no text, and is not kept
    built = vdm.estimators.elbo(timesteps=5)
    other = trained.evaluate(estimator=built)
    assert len(trained._compiled) == before + 1
    same = trained.evaluate(estimator={"name": "elbo", "timesteps": 5}, draws=1)
    assert other.bits_per_dim == same.bits_per_dim


def interrupt_after(batches, monkeypatch):
    """Raise `Interrupted` in an evaluation before batch number `batches`."""
    count = iter(range(100))

    def check():
        if next(count) == batches:
            raise Interrupted(15)

    monkeypatch.setattr(evaluation, "check", check)


def counted(trained, monkeypatch):
    """Return a list to which the size of each evaluated batch is added."""
    sizes = []
    batches = runs.eval_batches

    def counting(*arguments, **options):
        for batch, mask in batches(*arguments, **options):
            sizes.append(int(mask.sum()))
            yield batch, mask

    monkeypatch.setattr(runs, "eval_batches", counting)
    return sizes


def test_an_interrupted_evaluation_continues(trained, monkeypatch):
    spec = {"name": "elbo", "timesteps": 4, "draws": 1}
    remove_progress(trained.workdir / "evaluation")
    whole = trained.evaluate(estimator=spec)
    monkeypatch.setattr(evaluation, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(Interrupted):
            trained.evaluate(estimator=spec, resume=True)
    (path,) = (trained.workdir / "evaluation").iterdir()
    with monkeypatch.context() as patch:
        sizes = counted(trained, patch)
        # another estimator has another file, and starts anew
        trained.evaluate(estimator=spec | {"timesteps": 5}, resume=True)
        assert sum(sizes) == 297
        sizes.clear()
        assert trained.evaluate(estimator=spec, resume=True) == whole
        assert sum(sizes) == 97
        # the values stay until a report is written: the next call has nothing to evaluate
        sizes.clear()
        assert trained.evaluate(estimator=spec, resume=True) == whole and sizes == []
    assert path.exists()
    remove_progress(path.parent)
    assert not path.parent.exists()


def test_what_cannot_be_resumed_or_drawn_is_reported(trained):
    built = vdm.estimators.elbo(timesteps=5)
    with pytest.raises(ValueError, match="resume: needs an estimator of names and numbers"):
        trained.evaluate(estimator=built, resume=True)
    with pytest.raises(
        ValueError, match="draws: the estimator has its own, expected None, found 3"
    ):
        trained.evaluate(estimator=built, draws=3)
    with pytest.raises(ValueError, match="estimator: expected a 'name', found only"):
        trained.evaluate(estimator={"timesteps": 3})


@pytest.mark.parametrize("fault", ["cut", "other", "column", "long"])
def test_damaged_progress_is_reported_and_ignored(trained, monkeypatch, capsys, fault):
    spec = {"name": "elbo", "timesteps": 6, "draws": 1}
    remove_progress(trained.workdir / "evaluation")
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(Interrupted):
            trained.evaluate(estimator=spec, resume=True)
    (path,) = (trained.workdir / "evaluation").iterdir()
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        columns = dict(np.load(path))
        if fault == "other":
            columns["identity"] = np.zeros(32, np.uint8)
        elif fault == "column":
            columns["more"] = np.zeros(100)
        else:
            columns |= {name: np.zeros(298) for name in columns if name != "identity"}
        np.savez(path, **columns)
    capsys.readouterr()
    result = trained.evaluate(estimator=spec, resume=True)
    assert "the evaluation starts anew" in capsys.readouterr().err
    assert result == trained.evaluate(estimator=spec)


def test_samples_with_the_variance_of_the_training_examples(trained, command, monkeypatch):
    key, sampler = jax.random.key(3), FITTED
    drawn = trained.sample(key, 3, sampler=sampler, steps=2)
    np.testing.assert_array_equal(trained.sample(key, 3, sampler=sampler, steps=2), drawn)
    assert np.any(np.asarray(drawn) != trained.sample(key, 3, sampler="ancestral", steps=2))
    with pytest.raises(ValueError, match="variance: 'fitted' is measured on the training examples"):
        trained.model.sample(trained.state.ema_params, key, 3, sampler=sampler, steps=2)

    monkeypatch.setattr(vdm.runs.start, "load_dataset", load_dataset)
    config = trained.workdir / "config.py"
    config.write_text("from tiny_runs import tiny as get_config\n")
    (trained.workdir / "samples.png").unlink()
    status, _, err = command(
        f"--config={config}",
        f"--workdir={trained.workdir}",
        "--mode=sample",
        "--config.sample.sampler.variance=fitted",
        "--config.sample.steps=2",
    )
    assert status == 0, err
    assert (trained.workdir / "samples.png").exists()


def test_the_command_line_evaluates_all_estimators(trained, command, monkeypatch):
    monkeypatch.setattr(vdm.runs.start, "load_dataset", load_dataset)
    config = trained.workdir / "config.py"
    config.write_text("from tiny_runs import tiny as get_config\n")
    status, out, err = command(
        f"--config={config}",
        f"--workdir={trained.workdir}",
        "--mode=evaluate",
        "--config.evaluate.estimators=('elbo', {'name': 'tuned', 'timesteps': 2})",
        "--config.evaluate.draws=1",
    )
    assert status == 0, err
    assert "| elbo |" in out and "| tuned |" in out
    saved = read_checked(trained.workdir / "estimates.json")
    assert [row["settings"]["name"] for row in saved["test"]] == ["elbo", "tuned"]
    assert saved["of"]["weights"] == trained.weights_digest
    assert (trained.workdir / "estimates.md").read_text() in out
