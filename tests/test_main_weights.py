"""`--mode=weights`: tables of the weights of a config's loss, without data or parameters."""

import runpy
from itertools import takewhile

import commands
import numpy as np
import pytest
from commands import CONFIGS, SMOKE, WEIGHTS, assert_one_line
from PIL import Image

from vdm_jax.config import to_dict

here, command, idle = commands.here, commands.command, commands.idle  # fixtures
DIFFUSION = ["eps", "v", "x0", "score", "mean", "smoke", "mnist", "cifar10", "side_by_side"]
LATENT = ["ae", "vae", "mhvae", "mnist_vae", "mnist_mhvae"]


def model_of(name):
    return to_dict(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]())["model"]


def tables(out):
    """Parse the printed tables: the line above a table -> its columns by name."""
    parsed, lines = {}, out.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| log-SNR"):
            rows = takewhile(lambda row: row.startswith("|"), lines[i + 2 :])
            numbers = np.asarray([row.strip("| ").split(" | ") for row in rows], float)
            parsed[lines[i - 2]] = dict(zip(line.strip("| ").split(" | "), numbers.T, strict=True))
    return parsed


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.slow
def test_weights_of_an_untrained_config(command, here, idle, name):
    status, out, err = command(f"--config={CONFIGS / name}.py", WEIGHTS)
    assert (status, err) == (0, "")
    path = f"runs/{name}/weights.png"
    assert out.endswith(f"  weights         {path}\n")
    assert [str(file.relative_to(here)) for file in here.rglob("*.*")] == [path]
    with Image.open(path) as picture:
        assert picture.size[0] == 1050 and len(picture.convert("L").getcolors()) > 3
    model, printed = model_of(name), tables(out)
    path, weighting = model["train_schedule"] or model["schedule"], model["weighting"]["name"]
    levels = -np.linspace(path["gamma_min"], path["gamma_max"], 9)
    assert len(printed) == (5 if name == "side_by_side" else 1)
    for line, columns in printed.items():
        row = line.split(",")[0]
        assert line.startswith(f"{row}, {weighting}: error in {row}-space; schedule {path['name']}")
        assert list(columns) == ["log-SNR", "per time", "x0", "eps", "v", "relative"]
        np.testing.assert_allclose(columns["log-SNR"], levels, atol=0.03)
        np.testing.assert_allclose(columns["eps"], 0.5 * columns["relative"], rtol=0.01)
        assert np.all(columns["relative"] == 1) == (weighting == "elbo")


@pytest.mark.parametrize("name", LATENT)
def test_models_without_noise_levels_are_refused(command, here, idle, name):
    line = assert_one_line(command(f"--config={CONFIGS / name}.py", WEIGHTS))
    assert line == f"--mode=weights: {model_of(name)['name']!r} has no noise levels to weigh"
    assert list(here.iterdir()) == []


def test_every_config_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*DIFFUSION, *LATENT}


def test_weights_follow_the_overrides(command, here, idle):
    text = "config.model.train_schedule = ConfigDict({'name': 'cosine'})\n    return config"
    (here / "own.py").write_text((CONFIGS / "smoke.py").read_text().replace("return config", text))
    overrides = ["parameterization=v", "loss_space=x0", "weighting.name=min_snr"]
    overrides = [f"--config.model.{override}" for override in overrides]
    status, out, err = command("--config=own.py", WEIGHTS, *overrides, "--workdir=deep/er")
    assert (status, err) == (0, "")
    ((line, columns),) = tables(out).items()
    assert line == "v, min_snr: error in x0-space; schedule cosine, continuous time"
    log_snr = columns["log-SNR"]
    np.testing.assert_allclose(
        columns["per time"], np.exp(np.minimum(log_snr, np.log(5))), rtol=0.01
    )
    np.testing.assert_allclose(columns["x0"], np.exp(log_snr) * columns["eps"], rtol=0.01)
    per_time = 2 * np.pi * np.cosh(log_snr / 2)  # of a cosine without ends
    np.testing.assert_allclose(per_time * columns["x0"], columns["per time"], rtol=0.1)
    assert [path.name for path in (here / "deep" / "er").iterdir()] == ["weights.png"]


def test_weights_of_a_chain_and_a_learned_schedule(command, here, idle):
    overrides = ["schedule.name=learned_monotone", "timesteps=4"]
    status, out, _ = command(
        SMOKE, WEIGHTS, *[f"--config.model.{override}" for override in overrides]
    )
    ((line, columns),) = tables(out).items()
    assert status == 0 and line.endswith("gamma_min -13.3), at its start, T = 4")
    assert len(columns["per time"]) == 4 and columns["log-SNR"][-1] == -5
    np.testing.assert_array_equal(columns["relative"], 1)


def test_runs_with_equal_losses_share_a_table(command, here, idle):
    overrides = ["seeds=(0, 1)", "learning_rates=(1e-3, 1e-2)", "parameterizations=('x0', 'v')"]
    overrides = [f"--config.sweep.{override}" for override in overrides]
    status, out, _ = command(SMOKE, WEIGHTS, *overrides, "--config.model.weighting.name=simple")
    assert status == 0
    printed = {line.partition(":")[0]: columns for line, columns in tables(out).items()}
    x0, v = printed.pop("x0, simple"), printed.pop("v, simple")
    assert not printed
    np.testing.assert_allclose(v["x0"] / x0["x0"], 1 + np.exp(x0["log-SNR"]), rtol=0.01)
