"""The command line: training, evaluation, sampling and the flags."""

import json
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
from commands import SMALL, SMOKE, WEIGHTS, assert_one_line, start_process
from PIL import Image

from vdm_jax import main
from vdm_jax.runs import train
from vdm_jax.runtime import devices
from vdm_jax.xla import cores

here, command, idle = commands.here, commands.command, commands.idle  # fixtures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the smoke config to step 8 in another process; return the folder and the process."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, start_process(SMOKE, *SMALL, "--config.train.steps=8", cwd=folder)


def test_train(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    workdir = folder / "runs" / "smoke"  # of the config's name, where the command was given
    assert done.stdout.startswith("test: ") and " bits/dim = reconstruction " in done.stdout
    for name in ("evaluation.json", "samples.png", "loss.png", "config.json", "checkpoints/8"):
        assert f" {Path('runs/smoke') / name}\n" in done.stdout and (workdir / name).exists()
    assert "8/8" in done.stderr and "bits/dim" in done.stderr  # the progress bar
    assert all(line.lstrip("\r").startswith("train:") for line in done.stderr.splitlines() if line)
    assert json.loads((workdir / "config.json").read_text())["model"]["network"]["width"] == 8


def test_mistake_in_another_process(tmp_path):
    """A mistake that only building the whole model reveals is one line, too."""
    done = start_process(SMOKE, "--config.sample.sampler=ddmi", cwd=tmp_path)
    line = assert_one_line((done.returncode, done.stdout, done.stderr))
    assert line.startswith(
        "config.sample.sampler: unknown name 'ddmi'; did you mean 'ddim'? choices: anc"
    )
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def few_optimisations():
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_repeat_continue_evaluate_and_sample(trained, command, monkeypatch, few_optimisations):
    monkeypatch.chdir(trained[0])
    workdir = Path("runs/smoke")

    status, out, _ = command(SMOKE, *SMALL, "--config.train.steps=8")
    assert status == 0 and out.endswith(trained[1].stdout)
    assert out.splitlines()[0] == "already trained: runs/smoke is at step 8, 8 asked for"

    status, out, _ = command(SMOKE, *SMALL, "--config.train.steps=12")
    assert status == 0 and out.splitlines()[0] == "continuing from step 8 in runs/smoke"
    assert f" {workdir}/checkpoints/12\n" in out
    saved = json.loads((workdir / "evaluation.json").read_text())
    assert saved["step"] == 12

    status, out, err = command(SMOKE, *SMALL, "--mode=evaluate", f"--workdir={workdir.absolute()}")
    assert (status, err) == (0, "")
    assert out.startswith(f"test: {saved['test']['bits_per_dim']:.4f} ± ") and "of step 12" in out

    with Image.open(workdir / "samples.png") as picture:
        before = picture.tobytes()
    status, out, _ = command(SMOKE, *SMALL, "--mode=sample", "--config.sample.sampler=ddim")
    assert (status, out) == (0, "samples: runs/smoke/samples.png\n")
    with Image.open(workdir / "samples.png") as picture:
        assert picture.tobytes() != before
    status, _, _ = command(
        SMOKE, *SMALL, "--config.train.steps=12"
    )  # the sampler of the config again
    with Image.open(workdir / "samples.png") as picture:
        assert (status, picture.tobytes()) == (0, before)


def test_evaluating_a_run_of_another_config(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0])
    line = assert_one_line(command(SMOKE, *SMALL, "--mode=evaluate", "--config.seed=4"))
    assert (
        line
        == "runs/smoke holds a run of another config (config.json): config.seed: 0 there, 4 here"
    )


def test_divergence_is_one_line_and_status_1(command, here, monkeypatch):
    def diverge(*args, **options):
        raise FloatingPointError("loss is nan at step 3:\n  training stopped")

    monkeypatch.setattr(train, "train", diverge)
    assert assert_one_line(command(SMOKE), 1) == "loss is nan at step 3: training stopped"


def test_compiled_programs_are_cached(here, monkeypatch):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    (here / "file").write_text("")
    try:
        monkeypatch.setattr(devices.platformdirs, "user_cache_dir", lambda name: f"file/{name}")
        devices.enable_compilation_cache()  # cannot be written: no cache, and no error
        assert jax.config.values["jax_compilation_cache_dir"] is None
        monkeypatch.setattr(devices.platformdirs, "user_cache_dir", lambda name: f"cache/{name}")
        devices.enable_compilation_cache()
        folder = f"cache/vdm_jax/xla-{cores()}-cores"
        assert jax.config.values["jax_compilation_cache_dir"] == folder and Path(folder).is_dir()
        # what was compiled for others is not taken
        monkeypatch.setattr(devices, "cores", lambda: 1000)
        jax.config.update("jax_compilation_cache_dir", None)
        devices.enable_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == "cache/vdm_jax/xla-1000-cores"
        jax.config.update("jax_compilation_cache_dir", "mine")
        devices.enable_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == "mine"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_help(tmp_path):
    done = start_process("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "--config.<field>=<value> sets a field, such as --config.train.steps=3000" in text
    for name in ("config", "workdir", "name", "mode", "checkpoint", "profile", "[no]distributed"):
        assert f"\n  --{name}: " in done.stdout


def test_flags_from_a_file(command, here, idle):
    (here / "flags").write_text(f"{SMOKE}\n--config.model.weighting=min_snr\n# a comment\n")
    status, out, _ = command(
        "--flagfile=flags", "--mode", "weights", "--config.model.loss_space", "x0"
    )
    assert status == 0 and "eps, min_snr: error in x0-space" in out


def test_home_folder_of_a_workdir_is_expanded(command, here, idle, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    status, _, _ = command(SMOKE, WEIGHTS, "--workdir=~/run")
    assert status == 0 and (here / "home" / "run" / "weights.png").exists()


def test_tracer_errors_are_raised(command, here, monkeypatch):
    def broken(workdir):
        jax.eval_shape(float, jax.ShapeDtypeStruct((), np.float32))

    monkeypatch.setitem(main.MODES, "train", broken)
    with pytest.raises(jax.errors.ConcretizationTypeError):
        command(SMOKE)


def test_debugging_shows_the_traceback(command, here, monkeypatch):
    monkeypatch.setenv("VDM_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match=r"config\.train\.steps: "):
        command(SMOKE, "--config.train.steps=0")
    (here / "own.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"own\.py, line 1: ZeroDivisionError"):
        command("--config=own.py")
