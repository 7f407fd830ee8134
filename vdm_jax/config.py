"""Configs: the default one, its validation, and its way to plain dictionaries.

This is the only file that knows `ConfigDict`. A config has seven sections; `model` is a tree of specs (a name,
or {"name": ..., **kwargs}) that the model's own factory reads, every other section is the keyword arguments
of one function (`sample`: the count, and those of the model's own `sample`). Unknown, missing, ill-typed and
out-of-range fields are one `ValueError` line each.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


def default() -> Any:  # a ConfigDict; as such its fields would have no types
    """The embedded digits with a small U-Net: what every shipped config starts from."""
    return ConfigDict(
        {
            "seed": 0,
            "runs": {
                "parameterizations": (),
                "heads": (),
                "weightings": (),
                "learning_rates": (),
                "seeds": (),
            },
            "data": {
                "name": "digits",
                "data_dir": config_dict.placeholder(str),
                "train_split": config_dict.placeholder(str),
                "test_split": config_dict.placeholder(str),
            },
            "model": {
                "name": "vdm",
                "network": {
                    "name": "unet",
                    "channels": (32, 64),
                    "blocks": 2,
                    "dropout": 0.1,
                    "dtype": "float32",
                    "scan": False,
                    "remat": "none",
                },
                "schedule": {"name": "linear", "gamma_min": -13.3, "gamma_max": 5.0},
                "train_schedule": config_dict.placeholder(object),
                "parameterization": "eps",
                "base": "histogram",
                "head": "unit",
                "likelihood": "softmax",
                "timesteps": config_dict.placeholder(int),
                "space": config_dict.placeholder(str),
                "weighting": {"name": "elbo"},
                "times": "learned",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "warmup_steps": 100,
                "decay_steps": 1500,
                "decay_to": 0.05,
                "weight_decay": 0.01,
                "b1": 0.9,
                "b2": 0.99,
                "clip_norm": 1.0,
                "accumulate": 1,
            },
            "train": {
                "batch_size": 64,
                "steps": 1500,
                "steps_per_dispatch": 1,
                "ema_decay": 0.999,
                "ema_warmup": True,
                "log_every": 10,
                "checkpoint_every": 500,
                "keep_checkpoints": 2,
                "evaluate_every": config_dict.placeholder(int),
                "max_nonfinite_steps": 3,
                "parallel": "auto",
                "fsdp": 1,
                "stall_seconds": 15.0,
            },
            "evaluate": {"batch_size": 100, "draws": 16, "importance_samples": 1},
            "sample": {"count": 64, "sampler": "ancestral", "steps": 100},
        }
    )


def default_vae() -> Any:
    """The embedded digits with a small VAE: what the latent-variable configs of the digits start from."""
    config = default()
    network = {"name": "mlp", "width": 256, "depth": 2, "dropout": 0.5}
    config.model = ConfigDict(
        {
            "name": "vae",
            "latent": 16,
            "encoder": dict(network),
            "decoder": dict(network),
            "likelihood": "histogram",
            "draws": 1,
            "prior_weight": 1.0,
        }
    )
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1.0
    config.optimizer.decay_steps = 2000
    config.train.batch_size = 128
    config.train.steps = 2000
    config.train.steps_per_dispatch = 20
    config.train.log_every = 50
    config.train.checkpoint_every = 1000
    config.evaluate.batch_size = 297
    config.sample = ConfigDict({"count": 64, "draw": True})
    return config


Rule = tuple[str, Callable[[Any], bool]]
POSITIVE: Rule = ("a whole number of at least 1", lambda v: v >= 1)
AT_LEAST_TWO: Rule = ("a whole number of at least 2", lambda v: v >= 2)
NOT_NEGATIVE: Rule = ("a finite number of at least 0", lambda v: 0 <= v < math.inf)
SEED: Rule = ("a whole number in [0, 2**32)", lambda v: 0 <= v < 2**32)
FRACTION: Rule = ("a number in [0, 1)", lambda v: 0 <= v < 1)
PART: Rule = ("a number in [0, 1]", lambda v: 0 <= v <= 1)
ABOVE_ZERO: Rule = ("a finite number above 0", lambda v: 0 < v < math.inf)

RULES: dict[str, Rule] = {
    "seed": SEED,
    "optimizer.learning_rate": ABOVE_ZERO,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.decay_steps": POSITIVE,
    "optimizer.decay_to": PART,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.b1": FRACTION,
    "optimizer.b2": FRACTION,
    "optimizer.clip_norm": ABOVE_ZERO,
    "optimizer.accumulate": POSITIVE,
    "train.batch_size": POSITIVE,
    "train.steps": POSITIVE,
    "train.steps_per_dispatch": POSITIVE,
    "train.ema_decay": FRACTION,
    "train.log_every": POSITIVE,
    "train.checkpoint_every": POSITIVE,
    "train.keep_checkpoints": AT_LEAST_TWO,
    "train.evaluate_every": POSITIVE,
    "train.max_nonfinite_steps": POSITIVE,
    "train.fsdp": POSITIVE,
    "train.stall_seconds": ABOVE_ZERO,
    "evaluate.batch_size": POSITIVE,
    "evaluate.draws": POSITIVE,
    "evaluate.importance_samples": POSITIVE,
    "sample.count": POSITIVE,
    "sample.steps": POSITIVE,
}

FREE_TO_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.max_nonfinite_steps",
    "train.parallel",
    "train.fsdp",
    "train.stall_seconds",
    "evaluate",
    "sample",
    "data.data_dir",
    "model.network.remat",
)
"""What may differ between a config and that of the run it continues."""


UNNAMED = {"model.times": "uniform", "model.network.scan": False, "optimizer.name": "adamw"}
"""Fields that configs of earlier versions do not name, and what they were."""


def to_dict(config: Any) -> dict[str, Any]:
    """Validate a config and return it as plain nested dictionaries.

    Args:
      config: a `ConfigDict` or a mapping with the fields of `default()`.

    Raises:
      ValueError: unknown, missing, ill-typed or out-of-range field, one line.
    """
    plain = _plain(config)
    expected = _plain(default())
    _check_keys(plain, expected, "config")
    for section, fields in expected.items():
        if section == "model" or not isinstance(fields, dict):
            continue
        if section == "sample" and isinstance(plain[section], dict):
            fields = {"count": fields["count"]} | plain[section]  # the others are the model's own
        _check_keys(plain[section], fields, f"config.{section}")
    for path, like in _leaves(expected):
        section, _, field = path.rpartition(".")
        values = plain.get(section, plain)
        if not path.startswith("model.") and field in values:
            _check_value(path, values[field], like)
    if not isinstance(plain["model"], dict) or "name" not in plain["model"]:
        raise ValueError(f"config.model: expected fields with a 'name', found {plain['model']!r}")
    for path, value in _leaves(plain["model"]):
        if not isinstance(value, bool | int | float | str | list | None):  # as JSON has them
            raise ValueError(
                f"config.model.{path}: expected a number, a string or a list, "
                f"found {type(value).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.model.{path}: expected a finite number, found {value}")
    return plain


def with_defaults(saved: Any) -> Any:
    """The config of a run by a version that did not have some fields yet, with their defaults.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(saved, dict):
        raise ValueError(f"the config of the run: expected fields, found {saved!r}")
    expected = _plain(default())
    for section in ("runs", "optimizer", "train", "evaluate"):
        if isinstance(saved.get(section, {}), dict):
            start = f"{section}."
            was = {k.removeprefix(start): v for k, v in UNNAMED.items() if k.startswith(start)}
            saved = saved | {section: expected[section] | was | saved.get(section, {})}
    return saved


def difference(
    saved: Mapping[str, Any], asked: Mapping[str, Any], free: tuple[str, ...] = FREE_TO_CHANGE
) -> list[str]:
    """Fields in which a config departs from the one that a run was made with, a line each."""
    before, after = dict(_leaves(saved)), dict(_leaves(asked))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if any(path == part or path.startswith(part + ".") for part in free):
            continue
        absent = UNNAMED.get(path, "absent")
        old, new = before.get(path, absent), after.get(path, absent)
        if before.get(path) is None and after.get(path) is None:
            continue  # one version did not have the field
        if old != new and not (_nan(old) and _nan(new)):
            lines.append(f"config.{path}: {old!r} there, {new!r} here")
    return lines


def unknown_field(config: Any, path: str) -> str | None:
    """Say of a dotted path that the config has no such field, and which is near; None if it has."""
    tree = plain = _plain(config)
    above = "config"
    for key in path.split("."):
        if not isinstance(tree, dict):
            return f"config.{path}: no such field, for {above} is {tree!r}"
        if key not in tree:
            close = [f"{above}.{name}" for name in difflib.get_close_matches(key, tree, n=1)]
            close += [f"config.{name}" for name, _ in _leaves(plain) if name.endswith(f".{key}")]
            hint = f"did you mean {close[0]}? " if close else ""
            return (
                f"config.{path}: no such field; {hint}fields of {above}: {', '.join(sorted(tree))}"
            )
        above, tree = f"{above}.{key}", tree[key]
    return None


def _check_keys(found: Any, expected: Mapping[str, Any], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected fields {sorted(expected)}, found {found!r}")
    for key in found:
        if key not in expected:
            close = difflib.get_close_matches(key, expected, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{where}: unknown field {key!r}; {hint}fields: {sorted(expected)}")
    for key in expected:
        if key not in found:
            raise ValueError(f"{where}: field {key!r} is missing")


OPTIONAL = {
    "data.data_dir": str,
    "data.train_split": str,
    "data.test_split": str,
    "optimizer.decay_steps": int,
    "optimizer.clip_norm": float,
    "train.evaluate_every": int,
}


def _check_value(path: str, value: Any, like: Any) -> None:
    kind = OPTIONAL.get(path, type(like))
    if value is None and path in OPTIONAL:
        return
    if kind is list:
        _check_each(path, value)
        return
    right = isinstance(value, int | float if kind is float else kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"config.{path}: expected {kind.__name__}, found {value!r}")
    if path in RULES:
        words, holds = RULES[path]
        if not holds(value):  # NaN compares false
            raise ValueError(f"config.{path}: expected {words}, found {value!r}")


ELEMENTS = {
    "runs.parameterizations": ("model.name", ""),
    "runs.heads": ("model.name", ""),
    "runs.weightings": ("model.name", ""),
    "runs.learning_rates": ("optimizer.learning_rate", 1.0),
    "runs.seeds": ("seed", 0),
}
"""Of lists: the field whose rule each element obeys, and one of its type."""


def _check_each(path: str, values: Any) -> None:
    rule, like = ELEMENTS[path]
    if not isinstance(values, list):
        raise ValueError(f"config.{path}: expected a list, found {values!r}")
    for value in values:
        try:
            _check_value(rule, value, like)
        except ValueError as error:
            raise ValueError(str(error).replace(f"config.{rule}", f"config.{path}")) from error


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(tree: Any) -> Any:
    """Dictionaries and lists, as they come back from JSON."""
    if isinstance(tree, ConfigDict):
        tree = tree.to_dict()
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, tuple | list) else tree


def as_spec(value: Any) -> Any:
    """A `ConfigDict` as a plain mapping; anything else as it is."""
    return _plain(value) if isinstance(value, ConfigDict) else value


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
