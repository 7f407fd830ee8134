"""Mistakes in a config or a folder: one line each, before anything is written."""

import pytest
import tiny_runs
from tiny_runs import silent, tiny

import vdm_jax as vdm

compiled_quickly = tiny_runs.compiled_quickly  # a fixture of every test below
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


def test_missing_data(tmp_path):
    config = tiny(**{"data.name": "cifar10", "data.data_dir": str(tmp_path / "none")})
    with pytest.raises(
        FileNotFoundError, match=r"config\.data\.data_dir: 'cifar10' is not prepared"
    ):
        vdm.train(config, tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inside", [".", "run"])
def test_unwritable_folder(tmp_path, inside):
    """A file blocks the folder or its parent."""
    blocked = tmp_path / "blocked"
    blocked.write_text("mine")
    workdir = blocked / inside
    with pytest.raises(OSError, match=r"cannot be written: |expected a folder, found") as caught:
        vdm.train(tiny(), workdir, log=silent)
    assert "\n" not in str(caught.value)
    assert blocked.read_text() == "mine"
