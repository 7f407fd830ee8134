"""The arguments of `compare`, merged with a config and the defaults, and checked one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.checks import describe, whole_number
from vdm_jax.config import as_spec, default, to_dict
from vdm_jax.models import with_defaults
from vdm_jax.runs.axes import AXES, CHOICES
from vdm_jax.specs import name_of

DISCRETE = {"base": "histogram", "likelihood": "softmax"}
CONTINUOUS = {"base": "zero", "likelihood": "gaussian"}

DEFAULTS: dict[str, Any] = {
    "parameterizations": ("mean", "x0", "eps", "v"),
    "output_scales": ("none", "unit_variance"),
    "weightings": None,  # the bound's, and unless the schedule is trained on it, the simple one
    "seeds": 3,
    "steps": 2000,
    "batch_size": 64,
    "draws": 8,
    "timesteps": 1000,
    "network": {"name": "mlp", "width": 128, "depth": 2},
    "schedule": "linear",
    "data": "digits",
    "base": None,  # that of the kind of data
    "likelihood": None,
    "loss_space": None,
    "train_schedule": None,
    "time_sampler": "uniform",
}


def merged(config: Any, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the axes of the arguments, else of the config, else of the defaults; and a plain config."""
    plain = to_dict(default() if config is None else config)
    arguments = dict(DEFAULTS)
    if config is not None:
        model: dict[Any, Any] = with_defaults(plain["model"])
        runs, train = plain["sweep"], plain["train"]
        if model["name"] != "vdm":
            raise ValueError(
                f"config.model.name: expected 'vdm', which has parameterizations, found {model['name']!r}"
            )
        if runs["learning_rates"]:
            raise ValueError("config.sweep.learning_rates: are not compared, expected none")
        arguments |= {name: model[name] for name in arguments if name in model}
        arguments |= {axis: runs[axis] or [model[AXES[axis].field]] for axis in CHOICES}
        arguments |= {"seeds": runs["seeds"] or [plain["seed"]], "data": plain["data"]}
        arguments |= {"steps": train["steps"], "batch_size": train["batch_size"]}
        arguments["draws"] = plain["evaluate"]["draws"]
    arguments |= {
        name: as_spec(value)
        for name, value in given.items()
        if name != "timesteps" and value is not None and value is not ...
    }
    if given["timesteps"] is not ...:  # of which None is a value
        arguments["timesteps"] = given["timesteps"]
    for name, least in (("steps", 0), ("batch_size", 1), ("draws", 1)):
        arguments[name] = whole_number(arguments[name], name, least)
    if arguments["timesteps"] is not None:
        arguments["timesteps"] = whole_number(arguments["timesteps"], "timesteps", 1)
    own = arguments.pop("optimizer", {})
    if not isinstance(own, Mapping):
        raise ValueError(f"optimizer: expected fields of config.optimizer, found {describe(own)}")
    own = dict(own)
    plain = to_dict(plain | {"optimizer": plain["optimizer"] | own})
    if "decay_steps" not in own and (config is None or given["steps"] is not None):
        optimizer = plain["optimizer"]  # else the config's own
        updates = arguments["steps"] // optimizer["accumulate"]
        optimizer["decay_steps"] = updates if updates > optimizer["warmup_steps"] else None
    return arguments, plain


def seed_list(seeds: Any) -> list[int]:
    """Return the seeds of a number of them, or of a list.

    Raises:
      ValueError: no seeds, or the same twice.
    """
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds: expected at least 1, found {seeds}")
        return list(range(int(seeds)))
    found: list[Any] = []
    if isinstance(seeds, list | tuple | range | np.ndarray):
        found = list(seeds)
    right = all(
        isinstance(s, int | np.integer) and not isinstance(s, bool) and 0 <= s < 2**32
        for s in found
    )
    if not found or not right or len({*found}) < len(found):
        raise ValueError(
            f"seeds: expected a number of them, or different whole ones, found {seeds!r}"
        )
    return [int(seed) for seed in found]


def specs_by_name(axis: str, values: Any) -> dict[str, Any]:
    """Return the requested values of one axis, by name."""
    if isinstance(values, str) or (isinstance(values, Mapping) and "name" in values):
        values = [values]
    if not isinstance(values, Mapping | Sequence) or not values:
        raise ValueError(f"{axis}: expected some names, or own ones by name, found {values!r}")
    named = values if isinstance(values, Mapping) else None
    found: dict[str, Any] = {}
    for value in values:
        spec = value if named is None else named[value]
        if named is None and not isinstance(value, str | Mapping):
            raise ValueError(
                f"{axis}: expected names; give own ones by name, {{'mine': ...}}, found {value!r}"
            )
        name = words(value)
        if name in found:
            raise ValueError(f"{axis}: expected each once, found {name!r} twice")
        found[name] = spec
    return found


def words(spec: Any) -> str:
    """The name of a spec with its arguments, or the type of an object."""
    if not isinstance(spec, Mapping):
        return name_of(spec)
    if "name" not in spec:
        return "one for each parameterization"
    others = [f"{key}={value}" for key, value in spec.items() if key != "name"]
    return spec["name"] + (f"({', '.join(others)})" if others else "")
