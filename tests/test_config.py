"""Configs: every shipped one is sound, every field is read, every mistake is one line."""

import inspect
import json
import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from vdm_jax.config import (
    FREE_TO_CHANGE,
    default,
    difference,
    leaves,
    resolve,
    to_dict,
)
from vdm_jax.data import load_dataset, train_batches
from vdm_jax.models import MODELS, Statistics, build_model
from vdm_jax.runs import report
from vdm_jax.runs import trained as runs
from vdm_jax.runs.start import fresh
from vdm_jax.settings import ROWS, Settings, to_plain
from vdm_jax.training.dispatch import make_layout
from vdm_jax.training.evaluation import Evaluation
from vdm_jax.training.loop import fit
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import Batch

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.py"))
DATA = {"digits": ((8, 8, 1), 17), "mnist": ((28, 28, 1), 256), "cifar10": ((32, 32, 3), 256)}


def shipped(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def changed(path, value):
    """Return the default config as dictionaries, with one field changed or removed."""
    plain = default().to_dict()
    *sections, field = path.split(".")
    tree = plain
    for section in sections:
        tree = tree[section]
    if value is MISSING:
        del tree[field]
    else:
        tree[field] = value
    return plain


MISSING = object()

# ---------------------------------------------------------------- shipped configs


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_load_and_document_their_command(name):
    module = shipped(name)
    plain = to_dict(module["get_config"]())
    assert json.loads(json.dumps(plain)) == plain
    assert plain["data"]["name"] in DATA
    assert f"python -m vdm_jax.main --config=configs/{name}.py" in module["__doc__"]


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_built_initialised_and_stepped(name):
    """Configs are traced at full size; only the CIFAR-10 network is stepped with fewer blocks."""
    config = to_dict(shipped(name)["get_config"]())
    shape, levels = DATA[config["data"]["name"]]
    log_counts = np.zeros((*shape, levels), np.float32)
    optimizer, _ = make_optimizer(**config["optimizer"])

    def build():
        model = build_model(config["model"], Statistics(shape, levels, log_counts=log_counts))
        return model, jax.eval_shape(partial(fresh, config["seed"], model, optimizer))

    model, state = build()
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if name == "cifar10":
        assert round(size / 1e6, 1) == 30.6
        config["model"]["network"]["blocks"] = 2
        model, state = build()
    n = config["train"]["batch_size"]
    index, phase = jax.ShapeDtypeStruct((n,), np.int32), jax.ShapeDtypeStruct((n,), np.float32)
    batch = Batch(jax.ShapeDtypeStruct((n, *shape), np.uint8), index, phase)
    after, metrics = jax.eval_shape(make_step(model.loss, optimizer), state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    bound = set() if name == "ae" else {"bits_per_dim"}
    assert {"loss", "grad_norm"} | bound <= metrics.keys()


# ---------------------------------------------------------------- fields


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def fields(section):
    return set(default()[section].keys())


def test_every_field_is_an_argument_of_its_reader():
    assert fields("optimizer") == keywords(make_optimizer)
    assert fields("data") == {"name"} | keywords(load_dataset)
    assert fields("model") == {"name"} | keywords(MODELS["vdm"])
    from_the_run = {  # arguments that come from the run, not from the config
        "store",
        "metrics_log",
        "about",
        "axis_name",
        "process_index",
        "process_count",
        "prefetch",
    }
    from_the_run |= {"seed", "start_step", "stop_step", "stack", "names", "profiler", "devices"}
    from_the_run |= {"evaluate", "ema_every"}
    read = keywords(fit) | keywords(make_step) | keywords(train_batches)
    read |= set(inspect.signature(make_layout).parameters)
    assert fields("train") == read - from_the_run | {"steps_per_dispatch", "keep_checkpoints"}
    assert set(default().keys()) == {
        "seed",
        "sweep",
        "data",
        "model",
        "optimizer",
        "train",
        "evaluate",
        "sample",
    }


class Recording(dict):
    """A dictionary that records which of its fields were read."""

    def __init__(self, values):
        super().__init__(values)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def items(self):
        for key in self:
            yield key, self[key]


def test_every_field_of_evaluate_and_sample_is_read(monkeypatch, tmp_path):
    settings = resolve(shipped("smoke")["get_config"]())
    settings = replace(settings, sample=Recording(settings.sample))
    shape, levels = DATA["digits"]
    statistics = Statistics(shape, levels, log_counts=np.zeros((*shape, levels), np.float32))
    model = build_model(settings.model, statistics)
    arguments = {}

    def sample(params, key, n, first=0, sampler="", steps=0, grid=""):
        arguments.update(n=n, sampler=sampler, steps=steps, grid=grid)
        return jax.numpy.zeros((n, *shape), np.uint8)

    def make_evaluator(estimator, layout):
        arguments.update(draws=estimator.settings["draws"], estimators=[estimator.settings["name"]])
        return lambda params, key, batch, fitted: {}

    def evaluate(*args, **kwargs):
        batch, _ = next(args[3])
        arguments.update(batch_size=len(batch.x))
        return Evaluation(*[0.0] * 5, 297, "", "", 0)

    def fit(measure, params, key, batches, layout):
        arguments.update(fit_examples=sum(mask.sum() for _, mask in batches))

    monkeypatch.setattr(runs, "make_evaluator", make_evaluator)
    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(runs, "evaluate", evaluate)
    monkeypatch.setattr(runs.jax, "jit", lambda function, **options: function)
    state = init_state({}, optax.identity(), jax.random.key(0))
    model = model._replace(sample=sample)
    trained = runs.TrainedModel(settings, model, statistics, state, tmp_path)
    trained.evaluate()
    trained.evaluate(estimator={"name": "tuned", "timesteps": 2})
    arguments["estimators"] = ["elbo"]
    report.draw_samples(trained, tmp_path / "samples.png")
    assert settings.sample.read == fields("sample")
    assert fields("evaluate") <= arguments.keys()
    assert arguments == {
        "draws": settings.evaluate.draws,
        "estimators": settings.evaluate.estimators,
        "fit_examples": settings.evaluate.fit_examples,
        "batch_size": settings.evaluate.batch_size,
        "n": settings.sample["count"],
        "sampler": settings.sample["sampler"],
        "steps": settings.sample["steps"],
        "grid": settings.sample["grid"],
    }


def test_rules_name_existing_fields():
    fields = dict(leaves(to_plain(default())))
    for path in (*ROWS, *FREE_TO_CHANGE):
        assert path in {*fields, *default().keys()}
    rest = {path for path in fields if path not in ROWS}
    assert {path.partition(".")[0] for path in rest} == {"model", "sample"}


def test_the_typed_view_has_the_values_of_the_config():
    plain = to_dict(default())
    settings = resolve(default())
    assert settings.plain == plain and Settings.of(plain) == settings
    for path in ROWS:
        section, _, name = path.rpartition(".")
        holder, values = (
            (getattr(settings, section), plain[section]) if section else (settings, plain)
        )
        assert getattr(holder, name) == values[name]
    assert settings.model == plain["model"] and settings.sample == plain["sample"]


# ---------------------------------------------------------------- validation

NAN, INF = float("nan"), float("inf")

BAD = [
    # unknown and missing
    ("zzz", 1, "config: unknown field 'zzz'; choices: data, "),
    ("sed", 1, "config: unknown field 'sed'; did you mean 'seed'"),
    ("train.stepz", 3, "config.train: unknown field 'stepz'; did you mean 'steps'"),
    ("seed", MISSING, "config: field 'seed' is missing"),
    ("optimizer.b1", MISSING, "config.optimizer: field 'b1' is missing"),
    ("train", MISSING, "config: field 'train' is missing"),
    ("train", 3, r"config.train: expected fields \['batch_size', .*\], found 3"),
    ("model.name", MISSING, "config.model: expected fields with a 'name', found {"),
    ("model", "vdm", "config.model: expected fields with a 'name', found 'vdm'"),
    # wrong types
    ("train.steps", True, "config.train.steps: expected int, found True"),
    ("train.steps", 3.0, "config.train.steps: expected int, found 3.0"),
    ("train.steps", None, "config.train.steps: expected int, found None"),
    ("train.steps", "3", "config.train.steps: expected int, found '3'"),
    ("optimizer.decay_steps", 2.5, "config.optimizer.decay_steps: expected int, found 2.5"),
    (
        "optimizer.learning_rate",
        "1e-3",
        "config.optimizer.learning_rate: expected float, found '1e-3'",
    ),
    ("optimizer.learning_rate", None, "config.optimizer.learning_rate: expected float, found None"),
    ("optimizer.clip_norm", False, "config.optimizer.clip_norm: expected float, found False"),
    ("train.ema_warmup", 1, "config.train.ema_warmup: expected bool, found 1"),
    ("data.name", None, "config.data.name: expected str, found None"),
    ("data.data_dir", 3, "config.data.data_dir: expected str, found 3"),
    ("data.data_dir", "", "config.data.data_dir: expected a path, found ''"),
    (
        "data.data_dir",
        "gs://b/x",
        "config.data.data_dir: expected a path on this machine, found 'gs:",
    ),
    (
        "data.data_dir",
        "s3://b",
        "config.data.data_dir: expected a path on this machine, found 's3:",
    ),
    (
        "sample.sampler",
        {"name": "ancestral", "variance": np.float32(0.1)},
        "config.sample.sampler.variance: expected a number, a string or a list, found float32",
    ),
    ("sample.sampler", 3, "config.sample.sampler: expected a name or {'name': ...}, found 3"),
    # out of range
    ("seed", -1, r"config.seed: expected a whole number in \[0, 2\*\*32\), found -1"),
    ("seed", 2**32, r"config.seed: expected a whole number in \[0, 2\*\*32\), found 4294967296"),
    (
        "train.batch_size",
        0,
        "config.train.batch_size: expected a whole number of at least 1, found 0",
    ),
    ("train.batch_size", -4, "config.train.batch_size: .* found -4"),
    ("train.steps", 0, "config.train.steps: expected a whole number of at least 1, found 0"),
    ("train.steps_per_dispatch", 0, "config.train.steps_per_dispatch: .* found 0"),
    ("train.log_every", 0, "config.train.log_every: .* found 0"),
    ("train.checkpoint_every", 0, "config.train.checkpoint_every: .* found 0"),
    ("train.keep_checkpoints", 1, "config.train.keep_checkpoints: .* at least 2, found 1"),
    ("train.evaluate_every", 0, "config.train.evaluate_every: .* found 0"),
    ("train.max_nonfinite_steps", 0, "config.train.max_nonfinite_steps: .* found 0"),
    ("train.fsdp", 0, "config.train.fsdp: .* found 0"),
    ("train.stall_seconds", 0.0, "config.train.stall_seconds: .* above 0, found 0.0"),
    ("sweep.seeds", 3, "config.sweep.seeds: expected a list, found 3"),
    ("sweep.seeds", [0, -1], "config.sweep.seeds: expected a whole number in .* found -1"),
    ("sweep.seeds", [0, 0.5], "config.sweep.seeds: expected int, found 0.5"),
    ("sweep.learning_rates", [1e-3, 0.0], "config.sweep.learning_rates: .* above 0, found 0.0"),
    ("sweep.parameterizations", [3], "config.sweep.parameterizations: expected str, found 3"),
    ("train.ema_decay", 1.0, r"config.train.ema_decay: expected a number in \[0, 1\), found 1.0"),
    ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate: .* above 0, found 0.0"),
    ("optimizer.learning_rate", -1e-3, "config.optimizer.learning_rate: .* found -0.001"),
    ("optimizer.learning_rate", NAN, "config.optimizer.learning_rate: .* found nan"),
    (
        "optimizer.learning_rate",
        INF,
        "config.optimizer.learning_rate: expected a finite .* found inf",
    ),
    (
        "optimizer.weight_decay",
        INF,
        "config.optimizer.weight_decay: expected a finite .* found inf",
    ),
    ("optimizer.weight_decay", NAN, "config.optimizer.weight_decay: .* found nan"),
    ("optimizer.warmup_steps", -1, "config.optimizer.warmup_steps: .* found -1"),
    ("optimizer.decay_steps", 0, "config.optimizer.decay_steps: .* found 0"),
    ("optimizer.decay_to", 1.1, "config.optimizer.decay_to: .* found 1.1"),
    ("optimizer.clip_norm", 0.0, "config.optimizer.clip_norm: .* found 0.0"),
    ("optimizer.b1", 1.0, "config.optimizer.b1: .* found 1.0"),
    ("optimizer.b2", NAN, "config.optimizer.b2: .* found nan"),
    ("optimizer.accumulate", 0, "config.optimizer.accumulate: .* found 0"),
    ("evaluate.batch_size", 0, "config.evaluate.batch_size: .* found 0"),
    ("evaluate.draws", 0, "config.evaluate.draws: .* found 0"),
    ("evaluate.estimators", (3,), r"config.evaluate.estimators: expected a name or .* found 3"),
    ("evaluate.estimators", ({"steps": 3},), r"config.evaluate.estimators: expected a name or"),
    ("evaluate.fit_examples", 0, "config.evaluate.fit_examples: .* found 0"),
    ("sample.count", 0, "config.sample.count: .* found 0"),
    ("sample.steps", 0, "config.sample.steps: .* found 0"),
    ("model.base", np.zeros(2), "config.model.base: expected a number, .* found ndarray"),
    ("model.timesteps", np.int64(3), "config.model.timesteps: expected a number, .* found int64"),
    ("model.schedule.gamma_min", NAN, "config.model.schedule.gamma_min: .* finite .* found nan"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_mistakes(path, value, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        to_dict(changed(path, value))
    assert "\n" not in str(caught.value)


def test_every_rule_is_tested():
    ruled = {path for path, row in ROWS.items() if row.rule is not None}
    assert ruled <= {path for path, _, _ in BAD}


@pytest.mark.parametrize("config", [3, None, "vdm", []])
def test_invalid_configs(config):
    with pytest.raises(ValueError, match=re.escape(f"found {config!r}")):
        to_dict(config)


def test_valid_configs_pass():
    plain = to_dict(default())
    assert (
        plain
        == to_dict(FrozenConfigDict(default()))
        == to_dict(default().to_dict())
        == to_dict(plain)
    )
    assert plain["model"]["network"]["channels"] == [32, 64]  # as it comes back from JSON
    nested = {
        name: ConfigDict(part) if isinstance(part, dict) else part for name, part in plain.items()
    }
    assert to_dict(nested) == plain
    for path, value in (
        ("optimizer.learning_rate", 1),
        ("optimizer.decay_steps", None),
        ("optimizer.decay_to", 1.0),
        ("optimizer.clip_norm", None),
        ("data.data_dir", "somewhere"),
        ("model.base", {"name": "levels"}),
        ("model.something", "the model's own affair"),
    ):
        assert to_dict(changed(path, value)) is not None


def test_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    folder = to_dict(changed("data.data_dir", "~/tfds"))["data"]["data_dir"]
    assert folder == "/home/someone/tfds"


def test_to_dict_leaves_its_argument_alone():
    config = default()
    to_dict(config)["train"]["steps"] = 7
    assert config.train.steps != 7


# ---------------------------------------------------------------- differences


def test_difference_names_what_matters():
    saved = to_dict(default())
    assert difference(saved, saved) == []
    other = to_dict(changed("optimizer.learning_rate", 0.5))
    other["model"]["base"] = {"name": "levels", "levels": 3}
    rate = saved["optimizer"]["learning_rate"]
    assert difference(saved, other) == [
        "config.model.base: 'histogram' there, 'absent' here",
        "config.model.base.levels: 'absent' there, 3 here",
        "config.model.base.name: 'absent' there, 'levels' here",
        f"config.optimizer.learning_rate: {rate} there, 0.5 here",
    ]
    for path in ("seed", "train.batch_size", "train.steps_per_dispatch"):
        assert len(difference(saved, to_dict(changed(path, 9)))) == 1


def test_difference_ignores_json_and_free_fields():
    saved = json.loads(json.dumps(to_dict(default())))
    requested = default()
    requested.train.steps = requested.train.log_every = requested.train.checkpoint_every = 9
    requested.evaluate.draws = requested.sample.steps = 9
    requested.sample.sampler = "ddim"
    requested.data.data_dir = "elsewhere"
    assert difference(saved, to_dict(requested)) == []
