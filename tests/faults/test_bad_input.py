"""Bad input through the command line: one line that names the field, the value and the expectation."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import CONFIG
from prepared import write_tfds

HERE = "--workdir=run"
CASES = {}  # kind: [(name, flags, words of the last line, preparation)]


# ---------------------------------------------------------------- configs

MODEL, TRAIN = "--config.model.", "--config.train."
CASES["config"] = [
    ("batch below one", [TRAIN + "batch_size=-4"], ["config.train.batch_size", "at least 1", "-4"]),
    ("no steps", [TRAIN + "steps=0"], ["config.train.steps", "at least 1", "0"]),
    ("batch of a word", [TRAIN + "batch_size=many"], ["config.train.batch_size", "many"]),
    ("batch of a part", [TRAIN + "batch_size=1.5"], ["config.train.batch_size", "1.5"]),
    (
        "batch above the data",
        [TRAIN + "batch_size=1501"],
        ["config.train.batch_size", "1500", "1501"],
    ),
    (
        "rate is NaN",
        ["--config.optimizer.learning_rate=nan"],
        ["config.optimizer.learning_rate", "nan"],
    ),
    (
        "rate is negative",
        ["--config.optimizer.learning_rate=-1e-3"],
        ["learning_rate", "above 0", "-0.001"],
    ),
    (
        "rate is infinite",
        ["--config.optimizer.learning_rate=inf"],
        ["learning_rate", "finite", "inf"],
    ),
    (
        "decay before warm-up",
        ["--config.optimizer.decay_steps=1"],
        ["optimizer.decay_steps", "found 1"],
    ),
    ("b1 is one", ["--config.optimizer.b1=1.0"], ["config.optimizer.b1", "[0, 1)", "1.0"]),
    ("average of one", [TRAIN + "ema_decay=1.0"], ["config.train.ema_decay", "[0, 1)", "1.0"]),
    ("seed below zero", ["--config.seed=-1"], ["config.seed", "[0, 2**32)", "-1"]),
    ("one checkpoint", [TRAIN + "keep_checkpoints=1"], ["keep_checkpoints", "at least 2", "1"]),
    ("evaluation never", [TRAIN + "evaluate_every=0"], ["evaluate_every", "at least 1", "0"]),
    ("no patience", [TRAIN + "max_nonfinite_steps=0"], ["max_nonfinite_steps", "at least 1", "0"]),
    (
        "unknown section",
        ["--config.trian.steps=3"],
        ["--config.trian.steps", "no such field", "train"],
    ),
    (
        "unknown field",
        [TRAIN + "step=3"],
        ["--config.train.step", "did you mean --config.train.steps"],
    ),
    (
        "unknown schedule",
        [MODEL + "schedule.name=linaer"],
        ["config.model.schedule", "linaer", "linear"],
    ),
    (
        "unknown row",
        [MODEL + "parameterization=esp"],
        ["config.model.parameterization", "esp", "eps"],
    ),
    ("mean without steps", [MODEL + "parameterization=mean"], ["'mean'", "timesteps", "None"]),
    ("half a step", [MODEL + "timesteps=1.5"], ["timesteps", "1.5"]),
    (
        "schedule upside down",
        [MODEL + "schedule.gamma_min=7.0"],
        ["config.model.schedule", "7.0", "5.0"],
    ),
    ("schedule is NaN", [MODEL + "schedule.gamma_min=nan"], ["gamma_min", "finite", "nan"]),
    (
        "unknown likelihood",
        [MODEL + "likelihood=sofmax"],
        ["config.model.likelihood", "sofmax", "softmax"],
    ),
    (
        "likelihood of other data",
        [MODEL + "likelihood=gaussian"],
        ["config.model.likelihood", "17 levels"],
    ),
    ("width of zero", [MODEL + "network.width=0"], ["network.width", "at least 1", "0"]),
    ("no depth", [MODEL + "network.depth=0"], ["network.depth", "at least 1", "0"]),
    ("unknown network", [MODEL + "network.name=mpl"], ["config.model.network", "mpl", "mlp"]),
    ("unknown layout", [TRAIN + "parallel=pmpa"], ["config.train.parallel", "pmpa", "pmap"]),
    ("fsdp of one device", [TRAIN + "fsdp=2"], ["config.train.fsdp", "2"]),
    ("sampler", ["--config.sample.sampler=ddmi"], ["sample.sampler", "ddmi", "ddim"]),
    (
        "steps that do not divide",
        [MODEL + "parameterization=mean", MODEL + "timesteps=10", "--config.sample.steps=3"],
        ["sample.steps", "10", "3"],
    ),
    ("a run twice", ["--config.sweep.seeds=(1, 1)"], ["config.sweep.seeds", "once", "[1, 1]"]),
    ("mode", ["--mode=trian"], ["--mode", "trian", "train"]),
]

# ---------------------------------------------------------------- data


def tiny(**options):
    return lambda folder: write_tfds(folder / "data", **options)


def floats(folder):
    import tensorflow_datasets as tfds

    feature = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    images = {split: np.zeros((20, 2), np.float32) for split in ("train", "test")}
    write_tfds(folder / "data", feature=feature, images=images)


def few(folder):
    images = {split: np.zeros((3, 4, 4, 3), np.uint8) for split in ("train", "test")}
    write_tfds(folder / "data", images=images)


def damaged(way):
    def prepare(folder):
        write_tfds(folder / "data")
        (path,) = (folder / "data" / "tiny" / "1.0.0").glob(way[0])
        way[1](path)

    return prepare


def middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:1000] + b"x" * 200 + content[1200:])


TINY = ["--config.data.name=tiny", "--config.data.data_dir=data"]
UNKNOWN = ["config.data.name", "unknown data set"]
CASES["data"] = [
    ("a slip", ["--config.data.name=diigts"], [*UNKNOWN, "'diigts'", "'digits'"]),
    ("a table's word", ["--config.data.name=tfds"], ["config.data.name", "'tfds'"]),
    ("a community set", ["--config.data.name=huggingface:mnist"], [*UNKNOWN, "huggingface"]),
    ("a path", ["--config.data.name=../mnist"], [*UNKNOWN, "../mnist"]),
    ("an empty name", ["--config.data.name="], ["config.data.name", "''"]),
    (
        "a config that is none",
        ["--config.data.name=downsampled_imagenet/9x9"],
        ["config.data.name", "9x9"],
    ),
    ("a version that is none", ["--config.data.name=mnist:9.9.9"], ["config.data.name", "9.9.9"]),
    (
        "not prepared",
        ["--config.data.name=cifar10", "--config.data.data_dir=none"],
        ["'cifar10'", "prepare"],
    ),
    (
        "folder is a file",
        ["--config.data.name=mnist", "--config.data.data_dir=own"],
        ["data_dir", "own"],
        Path("own"),
    ),
    (
        "a split of the digits",
        ["--config.data.test_split=half"],
        ["config.data.test_split", "half"],
    ),
    (
        "no such split",
        [*TINY, "--config.data.test_split=tset"],
        ["config.data.test_split", "tset"],
        tiny(),
    ),
    (
        "split too long",
        [*TINY, "--config.data.train_split=train[:99]"],
        ["train_split", "99"],
        tiny(),
    ),
    (
        "an empty split",
        [*TINY, "--config.data.train_split=train[:0]"],
        ["train_split", "no examples"],
        tiny(),
    ),
    (
        "a broken split",
        [*TINY, "--config.data.train_split=train["],
        ["config.data.train_split"],
        tiny(),
    ),
    ("no picture", TINY, ["'tiny'", "image", "picture"], tiny(key="picture")),
    ("floats", TINY, ["'tiny'", "uint8", "float32"], floats),
    ("too few", TINY, ["config.train.batch_size", "3 examples", "16"], few),
    ("other files", TINY, ["'tiny'", "tfrecord", "array_record"], tiny(file_format="tfrecord")),
    (
        "damaged in the middle",
        TINY,
        ["'tiny' 'train'", "cannot be read"],
        damaged(("*-train.*", middle)),
    ),
    (
        "a file is gone",
        TINY,
        ["'tiny' 'train'", "cannot be read"],
        damaged(("*-train.*", os.unlink)),
    ),
    (
        "no description",
        TINY,
        ["config.data.data_dir", "dataset_info.json"],
        damaged(("dataset_info.json", os.unlink)),
    ),
    (
        "a broken description",
        TINY,
        ["config.data.data_dir", "'tiny'", "damaged"],
        damaged(("dataset_info.json", lambda path: path.write_text("{"))),
    ),
]

# ---------------------------------------------------------------- checkpoints and folders of runs


class Pickled:
    def __reduce__(self):
        return os.system, ("touch executed",)


def written(name, content):
    """Return a function that overwrites a file of the run; it deletes the file if `content` is None."""

    def change(folder):
        path = folder / "run" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def hostile_statistics(folder):
    np.savez(folder / "run" / "statistics.npz", shape=np.asarray([Pickled()], object))


def both_gone(folder):
    for step in ("32", "40"):
        shutil.rmtree(folder / "run" / "checkpoints" / step / "state")


def one_bit_in_each(folder):
    for step in ("32", "40"):
        (path,) = (folder / "run" / "checkpoints" / step / "state" / "d").iterdir()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def no_steps(folder):
    for step in ("32", "40"):
        shutil.rmtree(folder / "run" / "checkpoints" / step)


def a_file_instead(folder):
    shutil.rmtree(folder / "run" / "checkpoints")
    (folder / "run" / "checkpoints").write_text("mine")


EVALUATE, FURTHER = "--mode=evaluate", TRAIN + "steps=48"
CASES["checkpoint"] = [
    ("no run", [EVALUATE, "--workdir=none"], ["no run to load in none", "config.json"]),
    (
        "no config",
        [EVALUATE],
        ["no run to load in run", "config.json"],
        written("config.json", None),
    ),
    ("no statistics", [EVALUATE], ["run", "statistics.npz"], written("statistics.npz", None)),
    ("config is no JSON", [EVALUATE], ["run/config.json", "damaged"], written("config.json", "{")),
    ("config is a list", [FURTHER], ["config"], written("config.json", "[1]")),
    ("config is empty", [FURTHER], ["run/config.json", "damaged"], written("config.json", "")),
    (
        "config is bytes",
        [FURTHER],
        ["run/config.json", "damaged"],
        written("config.json", b"\xff\xfe\x00"),
    ),
    (
        "statistics are cut",
        [EVALUATE],
        ["statistics.npz", "damaged"],
        written("statistics.npz", b"PK\x03"),
    ),
    ("statistics are a pickle", [EVALUATE], ["statistics.npz", "damaged"], hostile_statistics),
    ("states are gone", [FURTHER], ["checkpoints is whole", "missing"], both_gone),
    ("a bit in each", [EVALUATE], ["checkpoints is whole", "CRC-32"], one_bit_in_each),
    ("no steps", [EVALUATE], ["no checkpoint in", "run/checkpoints"], no_steps),
    ("a file instead", [FURTHER], ["run/checkpoints", "File exists"], a_file_instead),
    ("another seed", [FURTHER, "--config.seed=5"], ["config.seed", "0 there", "5 here"]),
    (
        "another network",
        [FURTHER, MODEL + "network.width=9"],
        ["network.width", "8 there", "9 here"],
    ),
    ("no such step", [EVALUATE, "--checkpoint=7"], ["no checkpoint 7", "[32, 40]"]),
    ("no best", [EVALUATE, "--checkpoint=best"], ["no best checkpoint", "evaluate_every"]),
    (
        "a trace of an evaluation",
        [EVALUATE, "--profile=1:2"],
        ["--profile", "training", "evaluate"],
    ),
    ("not a step", [EVALUATE, "--checkpoint=last"], ["--checkpoint", "newest", "'last'"]),
]

# ---------------------------------------------------------------- names


def a_link_out(folder):
    (folder / "elsewhere").mkdir()
    (folder / "runs").mkdir()
    (folder / "runs" / "out").symlink_to(folder / "elsewhere")


LETTERS = ["--name", "letters"]
CASES["name"] = [
    ("up", ["--name=../x"], [*LETTERS, "'../x'"]),
    ("absolute", ["--name=/etc/x"], [*LETTERS, "'/etc/x'"]),
    ("below", ["--name=a/b"], [*LETTERS, "'a/b'"]),
    ("dots", ["--name=.."], [*LETTERS, "'..'"]),
    ("hidden", ["--name=.x"], [*LETTERS, "'.x'"]),
    ("home", ["--name=~root"], [*LETTERS, "'~root'"]),
    ("empty", ["--name="], [*LETTERS, "''"]),
    ("long", [f"--name={'a' * 300}"], [*LETTERS, "100"]),
    ("two lines", ["--name=a\nb"], [*LETTERS, "'a\\nb'"]),
    ("a link out", ["--name=out"], ["--name", "'out'", "is a link"], a_link_out),
    ("both", ["--name=a", "--workdir=b"], ["--name", "--workdir"]),
]

TABLE = [(kind, *case) for kind, cases in CASES.items() for case in cases]


def tree(folder):
    """Return path -> content of everything in a folder, except the files of the harness."""
    harness_files = {folder / "out", folder / "err"}
    contents = {}
    for path in folder.rglob("*"):
        if path not in harness_files and "__pycache__" not in path.parts:
            contents[path] = path.read_bytes() if path.is_file() else None
    return contents


def assert_error(outcome, words, status=2):
    assert outcome.status == status, (outcome.status, outcome.err)
    assert outcome.last.startswith("error: ") and len(outcome.last) < 900, outcome.last
    assert "Traceback" not in outcome.err, outcome.err
    for word in words:
        assert word in outcome.last, outcome.last
    assert outcome.seconds < 15


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kind", "name", "flags", "words", "before"), [(*case, None)[:5] for case in TABLE]
)
def test_bad_input(forks, unbroken, tmp_path, note, kind, name, flags, words, before):
    if kind == "checkpoint":
        shutil.copytree(unbroken[0], tmp_path / "run")
    if isinstance(before, Path):
        (tmp_path / before).write_text("mine")
    elif before is not None:
        before(tmp_path)
    there = tree(tmp_path)
    where = [] if any(flag.startswith(("--name", "--workdir")) for flag in flags) else [HERE]
    outcome = forks(tmp_path, CONFIG, *where, *flags, limit=15)
    assert_error(outcome, words)
    assert tree(tmp_path) == there or kind == "checkpoint"
    assert not (tmp_path / "executed").exists()
    if kind == "checkpoint":  # nothing of the run is lost
        run = tmp_path / "run"
        kept = {path: content for path, content in there.items() if run in path.parents}
        assert kept.items() <= tree(tmp_path).items()
    note("bad input", kind=kind, name=name, seconds=round(outcome.seconds, 2), said=outcome.last)


def test_number_of_cases():
    least = {"config": 30, "data": 20, "checkpoint": 15, "name": 8}
    assert all(len(CASES[kind]) >= count for kind, count in least.items())
    assert len(ENVIRONMENT) >= 7 and len(TABLE) + len(ENVIRONMENT) >= 80
    assert len({(kind, name) for kind, name, *_ in TABLE}) == len(TABLE)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.slow
def test_one_of_each_kind(forks, unbroken, tmp_path, kind):
    """One quick case of each kind runs with the slow tests."""
    if kind == "checkpoint":
        shutil.copytree(unbroken[0], tmp_path / "run")
    _, flags, words, *_ = CASES[kind][0]
    where = [] if any(flag.startswith(("--name", "--workdir")) for flag in flags) else [HERE]
    assert_error(forks(tmp_path, CONFIG, *where, *flags, limit=15), words)


# ---------------------------------------------------------------- the environment

ENVIRONMENT = {
    "no such platform": ({"JAX_PLATFORMS": "abacus"}, ["abacus"]),
    "no GPU": ({"JAX_PLATFORMS": "cuda"}, ["cuda"]),
    "data folder is missing": (
        {"TFDS_DATA_DIR": "none", "FLAGS": "--config.data.name=mnist"},
        ["TFDS_DATA_DIR", "'mnist'", "none"],
    ),
    "data folder is a file": (
        {"TFDS_DATA_DIR": "own", "FLAGS": "--config.data.name=mnist"},
        ["TFDS_DATA_DIR", "own"],
    ),
    "other processes without an address": ({"FLAGS": "--distributed"}, ["--distributed"]),
    "a port that is none": (
        {
            "FLAGS": "--distributed --coordinator_address=localhost:x --num_processes=2 --process_id=0"
        },
        ["--coordinator_address", "host:port", "localhost:x"],
    ),
    "a device that is not there": (
        {"FLAGS": "--config.train.parallel=mesh --config.train.fsdp=64"},
        ["config.train.fsdp", "64"],
    ),
    "a workdir under a file": ({"FLAGS": "--workdir=own/run"}, ["own/run", "Not a directory"]),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", ENVIRONMENT)
def test_bad_environment(real, note, name):
    env, words = ENVIRONMENT[name]
    (real.folder / "own").write_text("mine")
    there = tree(real.folder)
    flags = env.get("FLAGS", "").split()
    outcome = real(*flags, env={key: value for key, value in env.items() if key != "FLAGS"})
    assert_error(outcome, words)
    assert tree(real.folder) == there
    note(
        "bad input",
        kind="environment",
        name=name,
        seconds=round(outcome.seconds, 2),
        said=outcome.last,
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    "env",
    [
        {"XDG_CACHE_HOME": "own"},  # cannot be made
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},  # cannot print ±
        {"COLUMNS": "1"},
    ],
    ids=str,
)
def test_odd_environments_do_not_matter(real, note, env):
    (real.folder / "own").write_text("mine")
    outcome = real("--config.train.steps=2", env=env)
    assert outcome.status == 0, outcome.err
    assert "test: " in outcome.out
    note("odd environment", env=env, status=0)


# ---------------------------------------------------------------- hostile files


@pytest.mark.faults
def test_nothing_in_a_folder_is_executed(copy, forks, note):
    """Python files, pickles and paths in a stranger's checkpoint are data."""
    import pickle

    folder = copy.parent
    payload, code = pickle.dumps(Pickled()), f"open({str(folder / 'executed')!r}, 'w')"
    for place in (
        copy,
        copy / "checkpoints",
        copy / "checkpoints" / "40",
        copy / "checkpoints" / "40" / "state",
    ):
        for name in ("config.py", "__init__.py", "conftest.py", "sitecustomize.py"):
            (place / name).write_text(code)
        for name in ("state.pkl", "checkpoint.pickle", "data.npy"):
            (place / name).write_bytes(payload)
    for flags in ([EVALUATE], [FURTHER], ["--mode=sample"]):
        outcome = forks(folder, CONFIG, HERE, *flags)
        assert outcome.status == 0, outcome.err
    hostile_statistics(folder)
    assert forks(folder, CONFIG, HERE, EVALUATE).status == 2
    assert not (folder / "executed").exists() and not Path("executed").exists()
    note("hostile files", executed=0)


def test_payload_leaves_a_trace(tmp_path, monkeypatch):
    """A payload that is loaded leaves a trace, so the test above can fail."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Pickled()))
    assert (tmp_path / "executed").exists()
