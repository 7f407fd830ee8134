"""Configs: the default config, validation, and conversion to plain dictionaries.

A config has seven sections and a seed. `model` is a tree of specs (a name, or {"name": ..., **arguments}) with
the arguments of the model's factory; `sample` has the number of samples and the options of the model's
`sample`. The fields of the other sections are declared in `vdm_jax.settings`. An unknown, missing, ill-typed
or out-of-range field raises a `ValueError` of one line.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from vdm_jax.runtime.paths import local_path
from vdm_jax.settings import ROWS, SAMPLE_RULES, SECTIONS, SPEC, Row, Settings, to_plain
from vdm_jax.specs import nearest

FREE_TO_CHANGE = (
    *(path for path, row in ROWS.items() if row.may_change),
    "sample",
    "model.network.remat",
)
"""Fields and sections in which a config may differ from the config of the run that it continues."""


def default() -> Any:  # not ConfigDict, whose fields are unknown to type checkers
    """Return the default `ConfigDict`, from which all shipped configs start: digits and a small U-Net."""
    config: dict[str, Any] = {name: {} for name in SECTIONS}
    for path, row in ROWS.items():
        section, _, name = path.rpartition(".")
        # a placeholder keeps the type of a field whose value is None
        empty = row.optional and row.default is None
        value = config_dict.placeholder(row.kind) if empty else row.default
        (config[section] if section else config)[name] = value
    config |= {
        "model": _default_model(),
        "sample": {"count": 64, "sampler": "ancestral", "steps": 100, "grid": "schedule"},
    }
    return ConfigDict(config)


def _default_model() -> dict[str, Any]:
    """Return the spec of a variational diffusion model with a small U-Net."""
    return {
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
        "output_scale": "unit_variance",
        "likelihood": "softmax",
        "timesteps": config_dict.placeholder(int),
        "loss_space": config_dict.placeholder(str),
        "weighting": {"name": "elbo"},
        "time_sampler": "learned",
    }


def default_vae() -> Any:
    """Return the `ConfigDict` from which the latent-variable configs start: digits and a small VAE."""
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


def resolve(config: object) -> Settings:
    """Validate a config and return it with typed sections; arguments and errors are those of `to_dict`."""
    return Settings.of(to_dict(config))


def to_dict(config: object) -> dict[str, Any]:
    """Validate a config and return it as plain nested dictionaries, with '~' of `data.data_dir` expanded.

    Args:
      config: a `ConfigDict` or a mapping with the fields of `default()`.

    Raises:
      ValueError: an unknown, missing, ill-typed or out-of-range field, in one line.
    """
    plain = to_plain(config)
    expected = to_plain(default())
    _check_keys(plain, expected, "config")
    for section, fields in expected.items():
        if section == "model" or not isinstance(fields, dict):
            continue
        if section == "sample" and isinstance(plain[section], dict):
            fields = {"count": fields["count"]} | plain[section]  # the others depend on the model
        _check_keys(plain[section], fields, f"config.{section}")
    for path, row in ROWS.items():
        section, _, name = path.rpartition(".")
        _check_value(path, plain[section][name] if section else plain[name], row)
    _check_sample(plain["sample"], expected["sample"])
    _check_leaves(plain["sample"], "config.sample")
    _check_model(plain["model"])
    folder = plain["data"]["data_dir"]
    if folder is not None:
        plain["data"]["data_dir"] = str(local_path(folder, "config.data.data_dir"))
    return plain


def _check_model(spec: object) -> None:
    """Check that the spec of a model has a name and only values that JSON can hold."""
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f"config.model: expected fields with a 'name', found {spec!r}")
    _check_leaves(spec, "config.model")


def _check_leaves(section: Mapping[str, Any], where: str) -> None:
    """Check that a section has only values that JSON can hold."""
    for path, value in leaves(section):
        if not isinstance(value, bool | int | float | str | list | None):
            raise ValueError(
                f"{where}.{path}: expected a number, a string or a list, found {type(value).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}.{path}: expected a finite number, found {value}")


def _check_sample(values: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check the settings of `sample` that the default config has; others depend on the model."""
    for name, default_value in expected.items():
        if name not in values:
            continue
        value, rule = values[name], SAMPLE_RULES.get(name)
        if rule is not SPEC:
            _check_type(f"sample.{name}", value, type(default_value))
        if rule is not None and not rule.holds(value):
            raise ValueError(f"config.sample.{name}: expected {rule.words}, found {value!r}")


def difference(
    saved: Mapping[str, Any], asked: Mapping[str, Any], free: tuple[str, ...] = FREE_TO_CHANGE
) -> list[str]:
    """Return the differences between a saved config ("there") and another one ("here"), a line each.

    Args:
      saved: the config of a run, plain dictionaries.
      asked: the other config.
      free: dotted paths of fields and sections that are ignored.
    """
    before, after = dict(leaves(saved)), dict(leaves(asked))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if any(path == ignored or path.startswith(f"{ignored}.") for ignored in free):
            continue
        old, new = before.get(path), after.get(path)
        if old != new and not (_nan(old) and _nan(new)):  # NaN differs from itself
            old, new = before.get(path, "absent"), after.get(path, "absent")
            lines.append(f"config.{path}: {old!r} there, {new!r} here")
    return lines


def _check_keys(section: object, expected: Mapping[str, Any], where: str) -> None:
    """Check that a section has the expected fields and no others."""
    if not isinstance(section, dict):
        raise ValueError(f"{where}: expected fields {sorted(expected)}, found {section!r}")
    for key in section:
        if key not in expected:
            raise ValueError(f"{where}: unknown field {key!r}{nearest(key, expected)}")
    for key in expected:
        if key not in section:
            raise ValueError(f"{where}: field {key!r} is missing")


def _check_value(path: str, value: object, row: Row) -> None:
    """Check the type and the rule of a field, or of each element of a list."""
    if value is None and row.optional:
        return
    values = value if row.kind is list else [value]
    if not isinstance(values, list):
        raise ValueError(f"config.{path}: expected a list, found {value!r}")
    for element in values:
        _check_type(path, element, row.element or row.kind)
        if row.rule is not None and not row.rule.holds(element):
            raise ValueError(f"config.{path}: expected {row.rule.words}, found {element!r}")


def _check_type(path: str, value: object, kind: type) -> None:
    """Check the type of a value; a whole number is a float as well, and a boolean is no number."""
    valid = isinstance(value, int | float if kind is float else kind)
    if not valid or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"config.{path}: expected {kind.__name__}, found {value!r}")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every field that is not a section."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_spec(value: Any) -> Any:
    """Convert a `ConfigDict` to plain dictionaries; return any other value unchanged."""
    return to_plain(value) if isinstance(value, ConfigDict) else value


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
