"""Mistakes on the command line: one line each, before anything is compiled or written."""

import json
import runpy

import commands
import pytest
from commands import CONFIGS, SMALL, SMOKE, WEIGHTS, assert_one_line

from vdm_jax.config import to_dict

here, command = commands.here, commands.command  # fixtures
NAMES = {  # field: misspelt name, suggested name
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
    ("train.steps.x=3", "--config.train.steps.x: no such field: config.train.steps is 60"),
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


def test_unprepared_data(command, here):
    line = assert_one_line(
        command(f"--config={CONFIGS / 'cifar10.py'}", f"--config.data.data_dir={here}/x")
    )
    assert line.startswith(f"config.data.data_dir: 'cifar10' is not prepared: '{here}/x'")
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
    changed = shipped.replace("    return config", f"    {text}\n    return config")
    (here / "own.py").write_text("x = 1" if text is None else changed)
    assert assert_one_line(command("--config=own.py")).startswith(start)
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["own.py"]


def test_unusable_folders(command, here):
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
