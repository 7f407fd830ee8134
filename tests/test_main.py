"""The command line: what it does, and one line for every mistake before anything is compiled or written."""

import json
import os
import runpy
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from vdm_jax import main
from vdm_jax.config import to_dict
from vdm_jax.runs import train
from vdm_jax.runs import trained as loading
from vdm_jax.runtime import devices
from vdm_jax.xla import cores

CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = f"--config={CONFIGS / 'smoke.py'}"
SMALL = [
    "--config.model.network.width=8",
    "--config.train.batch_size=16",
    "--config.train.steps_per_dispatch=4",
    "--config.evaluate.draws=1",
    "--config.sample.count=4",
    "--config.sample.steps=2",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(main, "enable_compilation_cache", lambda: None)
    monkeypatch.delenv("VDM_JAX_DEBUG", raising=False)

    def run_it(*arguments):
        argv = ["main", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            try:
                main.main(main.parse(argv))
            except SystemExit as left:
                status = left.code
        return status, *capsys.readouterr()

    return run_it


def assert_one_line(result, status=2):
    code, out, err = result
    assert (code, out) == (status, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err.removeprefix("error: ").rstrip()


# ---------------------------------------------------------------- what it does


def start_process(*arguments, cwd):
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd / "cache")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
    return subprocess.run(
        [sys.executable, "-m", "vdm_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the smoke config was trained to step 8 by a process of its own."""
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


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    """One that shows only when the whole model is put together."""
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
def test_again_further_evaluate_and_sample(trained, command, monkeypatch, few_optimisations):
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
    status, _, _ = command(SMOKE, *SMALL, "--config.train.steps=12")  # the config's own again
    with Image.open(workdir / "samples.png") as picture:
        assert (status, picture.tobytes()) == (0, before)


def test_divergence_is_one_line_and_another_status(command, here, monkeypatch):
    def diverge(*args, **options):
        raise FloatingPointError("loss is nan at step 3:\n  training stopped")

    monkeypatch.setattr(train, "train", diverge)
    assert assert_one_line(command(SMOKE), 1) == "loss is nan at step 3: training stopped"


def test_programs_are_kept_in_the_users_cache(here, monkeypatch):
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


# ---------------------------------------------------------------- what a loss weighs

DIFFUSION = ["eps", "v", "x0", "score", "mean", "smoke", "mnist", "cifar10", "side_by_side"]
LATENT = ["ae", "vae", "mhvae", "mnist_vae", "mnist_mhvae"]
WEIGHTS = "--mode=weights"


@pytest.fixture
def idle(monkeypatch):
    """No data are loaded, and no network is made."""

    def never(*args, **options):
        raise AssertionError("is not to be called")

    monkeypatch.setattr(loading, "load_dataset", never)
    monkeypatch.setattr(nn.Module, "init", never)


def model_of(name):
    return to_dict(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]())["model"]


def tables(out):
    """By the line above a table: its columns by name."""
    found, lines = {}, out.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| log-SNR"):
            rows = takewhile(lambda row: row.startswith("|"), lines[i + 2 :])
            numbers = np.asarray([row.strip("| ").split(" | ") for row in rows], float)
            found[lines[i - 2]] = dict(zip(line.strip("| ").split(" | "), numbers.T, strict=True))
    return found


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.slow
def test_weights_of_a_config_that_was_never_trained(command, here, idle, name):
    status, out, err = command(f"--config={CONFIGS / name}.py", WEIGHTS)
    assert (status, err) == (0, "")
    path = f"runs/{name}/weights.png"
    assert out.endswith(f"  weights         {path}\n")
    assert [str(file.relative_to(here)) for file in here.rglob("*.*")] == [path]
    with Image.open(path) as picture:
        assert picture.size[0] == 1050 and len(picture.convert("L").getcolors()) > 3
    model, found = model_of(name), tables(out)
    path, weighting = model["train_schedule"] or model["schedule"], model["weighting"]["name"]
    levels = -np.linspace(path["gamma_min"], path["gamma_max"], 9)
    assert len(found) == (5 if name == "side_by_side" else 1)
    for line, columns in found.items():
        row = line.split(",")[0]
        assert line.startswith(f"{row}, {weighting}: error in {row}-space; schedule {path['name']}")
        assert list(columns) == ["log-SNR", "per time", "x0", "eps", "v", "relative"]
        np.testing.assert_allclose(columns["log-SNR"], levels, atol=0.03)
        np.testing.assert_allclose(columns["eps"], 0.5 * columns["relative"], rtol=0.01)
        assert np.all(columns["relative"] == 1) == (weighting == "elbo")


@pytest.mark.parametrize("name", LATENT)
def test_a_model_without_noise_levels_has_nothing_to_weigh(command, here, idle, name):
    line = assert_one_line(command(f"--config={CONFIGS / name}.py", WEIGHTS))
    assert line == f"--mode=weights: {model_of(name)['name']!r} has no noise levels to weigh"
    assert list(here.iterdir()) == []


def test_weights_of_every_config_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*DIFFUSION, *LATENT}


def test_weights_are_of_the_loss_that_is_asked_for(command, here, idle):
    text = "config.model.train_schedule = ConfigDict({'name': 'cosine'})\n    return config"
    (here / "own.py").write_text((CONFIGS / "smoke.py").read_text().replace("return config", text))
    asked = ["parameterization=v", "loss_space=x0", "weighting.name=min_snr"]
    asked = [f"--config.model.{each}" for each in asked]
    status, out, err = command("--config=own.py", WEIGHTS, *asked, "--workdir=deep/er")
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
    asked = ["schedule.name=learned_monotone", "timesteps=4"]
    status, out, _ = command(SMOKE, WEIGHTS, *[f"--config.model.{each}" for each in asked])
    ((line, columns),) = tables(out).items()
    assert status == 0 and line.endswith("gamma_min -13.3), at its start, T = 4")
    assert len(columns["per time"]) == 4 and columns["log-SNR"][-1] == -5
    np.testing.assert_array_equal(columns["relative"], 1)


def test_runs_that_train_the_same_loss_have_one_table(command, here, idle):
    asked = ["seeds=(0, 1)", "learning_rates=(1e-3, 1e-2)", "parameterizations=('x0', 'v')"]
    asked = [f"--config.sweep.{each}" for each in asked]
    status, out, _ = command(SMOKE, WEIGHTS, *asked, "--config.model.weighting.name=simple")
    assert status == 0
    found = {line.partition(":")[0]: columns for line, columns in tables(out).items()}
    x0, v = found.pop("x0, simple"), found.pop("v, simple")
    assert not found
    np.testing.assert_allclose(v["x0"] / x0["x0"], 1 + np.exp(x0["log-SNR"]), rtol=0.01)


# ---------------------------------------------------------------- mistakes

NAMES = {  # what is written wrong, and what is near
    "model.name": ("vmd", "vdm"),
    "model.network.name": ("mpl", "mlp"),
    "model.schedule.name": ("linaer", "linear"),
    "model.parameterization": ("esp", "eps"),
    "model.base": ("histgram", "histogram"),
    "model.output_scale": ("unit_varianc", "unit_variance"),
    "model.likelihood": ("sofmax", "softmax"),
    "model.weighting.name": ("elba", "elbo"),
    "model.loss_space": ("x00", "x0"),
    "sample.sampler": ("ancestal", "ancestral"),
}

MISTAKES = [
    ([], "--config is missing, expected a config file such as --config=configs/eps.py"),
    (["--config=nope.py"], "--config: no file 'nope.py' in "),
    (["--config", "nope.py"], "--config: no file 'nope.py' in "),
    (["--config=nope.py", "--config.train.steps=3"], "--config: no file 'nope.py' in "),
    ([SMOKE, "here"], "unexpected argument 'here'; settings are given as --config.<field>=<value>"),
    ([SMOKE, "--steps=3"], "Unknown command line flag 'steps'"),
    ([SMOKE, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    ([SMOKE, "--mode=trian"], "--mode: unknown name 'trian'; did you mean 'train'? choices: eval"),
    ([f"--config={CONFIGS}"], f"--config: '{CONFIGS}' is a folder, expected a file such as conf"),
    (["--config="], "--config: expected a config file such as configs/eps.py, found ''"),
    (["--config.seed=3"], "--config is missing, expected a config file such as --config=configs/e"),
    ([SMOKE, "--config.seed"], "--config.seed: expected =<value>, a whole number, found none"),
    ([SMOKE, "--noconfig.seed"], "--noconfig.seed: expected --config.seed=<value>, a whole number"),
    ([SMOKE, "--workdir="], "--workdir: expected a path, found ''"),
    (
        [SMOKE, "--workdir=gs://b/run"],
        "--workdir: expected a path on this machine, found 'gs://b/run'",
    ),
    ([SMOKE, "--workdir=x", "--name=y"], "--name: names a folder in runs/, expected no --workdir"),
    (
        [SMOKE, "--config.data.data_dir=s3://b"],
        "config.data.data_dir: expected a path on this machine",
    ),
    (
        [SMOKE, "--mode=evaluate", "--checkpoint=²"],
        "--checkpoint: expected newest, best or a step, f",
    ),
    (
        [SMOKE, "--flagfile=nope"],
        "ERROR:: Unable to open flagfile: [Errno 2] No such file or directory: 'nope'",
    ),
    ([SMOKE, "--mode=evaluate"], "no run to load in runs/smoke: config.json is missing"),
    ([SMOKE, "--mode=sample", "--workdir=x"], "no run to load in x: config.json is missing"),
]

OVERRIDES = [
    (
        "train.stepz=3",
        "--config.train.stepz: no such field; did you mean --config.train.steps? fields of config.train:",
    ),
    (
        "trian.steps=3",
        "--config.trian.steps: no such field; did you mean --config.train? fields of config: data,",
    ),
    (
        "draws=3",
        "--config.draws: no such field; did you mean --config.evaluate.draws? fields of config:",
    ),
    (
        "model.network.wdith=3",
        "--config.model.network.wdith: no such field; did you mean --config.model.network.width? fields",
    ),
    ("train.steps.x=3", "--config.train.steps.x: no such field, for config.train.steps is 60"),
    ("train.steps=abc", "--config.train.steps: expected a whole number, found 'abc'"),
    ("train.steps=1.5", "--config.train.steps: expected a whole number, found '1.5'"),
    ("train.steps=None", "--config.train.steps: expected a whole number, found None"),
    ("train.ema_warmup=maybe", "--config.train.ema_warmup: expected true or false, found 'maybe'"),
    (
        "optimizer.learning_rate=fast",
        "--config.optimizer.learning_rate: expected a number, found 'f",
    ),
    (
        "model.timesteps=many",
        "--config.model.timesteps: expected a whole number or None, found 'ma",
    ),
    (
        "train.batch_size=0",
        "config.train.batch_size: expected a whole number of at least 1, found 0",
    ),
    (
        "train.batch_size=-4",
        "config.train.batch_size: expected a whole number of at least 1, found -4",
    ),
    (
        "train.batch_size=1501",
        "config.train.batch_size: 'train[permutation 0, :1500]' has 1500 examp",
    ),
    ("train.steps=0", "config.train.steps: expected a whole number of at least 1, found 0"),
    (
        "optimizer.learning_rate=0",
        "config.optimizer.learning_rate: expected a finite number above 0, f",
    ),
    (
        "optimizer.learning_rate=-1",
        "config.optimizer.learning_rate: expected a finite number above 0,",
    ),
    (
        "optimizer.learning_rate=nan",
        "config.optimizer.learning_rate: expected a finite number above 0",
    ),
    (
        "seed=99999999999999999999",
        "config.seed: expected a whole number in [0, 2**32), found 9999999",
    ),
    ("model.schedule.gamma_min=6", "config.model.schedule.gamma_min: "),
    (
        "model.schedule.gamma_max=nan",
        "config.model.schedule.gamma_max: expected a finite number, found n",
    ),
    (
        "model.parameterization=mean",
        "config.model.parameterization: 'mean' has no finite form in continuous time",
    ),
    ("model.network.depth=-1", "config.model.network.depth: "),
    (
        "data.name=cifar11",
        "config.data.name: unknown data set 'cifar11', did you mean 'cifar10' or ",
    ),
]


NOT_WEIGHED = [
    ("train.steps=0", "config.train.steps: expected a whole number of at least 1, found 0"),
    ("model.name=vmd", "config.model.name: unknown name 'vmd'; did you mean 'vdm'? choices"),
    ("model.schedule.name=linaer", "config.model.schedule: unknown name 'linaer'; did you mean"),
    ("model.schedule.gamma_min=6", "config.model.schedule.gamma_min: "),
    ("model.parameterization=esp", "config.model.parameterization: unknown name 'esp'; did you"),
    ("model.parameterization=mean", "config.model.parameterization: 'mean' has no finite form"),
    ("model.weighting.name=elba", "config.model.weighting: unknown name 'elba'; did you mean"),
    (
        "model.loss_space=x00",
        "config.model.loss_space: unknown name 'x00'; did you mean 'x0'? choices",
    ),
    (
        "model.timesteps=0",
        "config.model.timesteps: expected a whole number in [1, 16777216], found 0",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        *MISTAKES,
        *[([SMOKE, WEIGHTS, f"--config.{override}"], start) for override, start in NOT_WEIGHED],
        *[([SMOKE, f"--config.{override}"], start) for override, start in OVERRIDES],
        *[
            ([SMOKE, f"--config.{path}={wrong}"], f"unknown name '{wrong}'; did you mean '{near}'")
            for path, (wrong, near) in NAMES.items()
        ],
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_mistakes(command, here, arguments, start):
    line = assert_one_line(command(*arguments))
    if start.startswith("unknown name"):
        path = arguments[-1].removeprefix("--config.").split("=")[0]
        assert path.removesuffix(".name") in line and start in line and "choices: " in line
    else:
        assert line.startswith(start)
    assert list(here.iterdir()) == []


def test_help(tmp_path):
    done = start_process("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    assert "--config.<field>=<value> sets a field, such as --config.train.steps=3000" in words
    for name in ("config", "workdir", "name", "mode", "checkpoint", "profile", "[no]distributed"):
        assert f"\n  --{name}: " in done.stdout


def test_flags_may_stand_in_a_file(command, here, idle):
    (here / "flags").write_text(f"{SMOKE}\n--config.model.weighting=min_snr\n# a comment\n")
    status, out, _ = command(
        "--flagfile=flags", "--mode", "weights", "--config.model.loss_space", "x0"
    )
    assert status == 0 and "eps, min_snr: error in x0-space" in out


def test_the_home_folder(command, here, idle, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    status, _, _ = command(SMOKE, WEIGHTS, "--workdir=~/run")
    assert status == 0 and (here / "home" / "run" / "weights.png").exists()


def test_data_that_are_not_prepared(command, here):
    line = assert_one_line(
        command(f"--config={CONFIGS / 'cifar10.py'}", f"--config.data.data_dir={here}/x")
    )
    assert line.startswith(f"config.data.data_dir: 'cifar10' is not prepared, for '{here}/x'")
    assert (
        f"tfds.builder('cifar10', data_dir='{here}/x'" in line and "download_and_prepare()" in line
    )
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("config.train.stepz = 3", "config.train: unknown field 'stepz'; did you mean 'steps'? "),
        (
            "config.train.steps = 'abc'",
            "--config: own.py, line 23: TypeError: ",
        ),
        (
            "config.model.schedule.gama = 3",
            "config.model.schedule: 'linear' has no argument 'gama'; did you",
        ),
        (
            "config.model.network.dephth = 3",
            "config.model.network: 'mlp' has no argument 'dephth'; did you",
        ),
        ("config.model.bass = 'zero'", "config.model: unknown field 'bass'; did you mean 'base'?"),
        ("config.optimizer.b1 = None", "config.optimizer.b1: expected float, found None"),
        (
            "return 3",
            "--config: get_config of own.py returned 3, expected a config, such as that of",
        ),
        ("config =", "--config: own.py, line 23: SyntaxError: invalid syntax"),
        (None, "--config: own.py has no function get_config"),
    ],
)
def test_config_files_with_mistakes(command, here, text, start):
    shipped = (CONFIGS / "smoke.py").read_text()
    own = shipped.replace("    return config", f"    {text}\n    return config")
    (here / "own.py").write_text("x = 1" if text is None else own)
    assert assert_one_line(command("--config=own.py")).startswith(start)
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["own.py"]


def test_folders_that_are_not_to_be_used(command, here):
    (here / "file").write_text("mine")
    for mode in ("train", "weights"):
        line = assert_one_line(command(SMOKE, *SMALL, "--workdir=file", f"--mode={mode}"))
        assert line == "--workdir: expected a folder, found the file 'file'"
    (here / "other").mkdir()
    config = here / "other" / "config.json"
    smoke = runpy.run_path(str(CONFIGS / "smoke.py"))["get_config"]()
    config.write_text(json.dumps(to_dict(smoke) | {"seed": 5}))
    before = config.read_text()
    line = assert_one_line(command(SMOKE, "--workdir=other"))
    assert line.startswith(
        "other holds a run of another config (config.json); give another --workdir, or undo: "
    )
    assert line.endswith("config.seed: 5 there, 0 here")
    assert [path.name for path in (here / "other").iterdir()] == ["config.json"]
    assert config.read_text() == before and (here / "file").read_text() == "mine"


def test_evaluating_a_run_of_another_config(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0])
    line = assert_one_line(command(SMOKE, *SMALL, "--mode=evaluate", "--config.seed=4"))
    assert (
        line
        == "runs/smoke holds a run of another config (config.json): config.seed: 0 there, 4 here"
    )


def test_an_error_of_traced_code_is_no_mistake_of_the_user(command, here, monkeypatch):
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
