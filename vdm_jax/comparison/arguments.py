"""The arguments of `compare`: merged with a config and the defaults, then checked one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.checks import describe, whole_number
from vdm_jax.config import as_spec, default, resolve
from vdm_jax.models import with_defaults
from vdm_jax.runs.axes import AXES, CHOICES
from vdm_jax.settings import Settings
from vdm_jax.specs import name_of

DISCRETE = {"base": "histogram", "likelihood": "softmax"}
CONTINUOUS = {"base": "zero", "likelihood": "gaussian"}

DEFAULTS: dict[str, Any] = {
    "parameterizations": ("mean", "x0", "eps", "v"),
    "output_scales": ("none", "unit_variance"),
    "weightings": None,  # "elbo", and "simple" unless the schedule is learned, which needs the bound
    "seeds": 3,
    "steps": 2000,
    "batch_size": 64,
    "draws": 8,
    "timesteps": 1000,
    "network": {"name": "mlp", "width": 128, "depth": 2},
    "schedule": "linear",
    "data": "digits",
    "base": None,  # that of `DISCRETE` or `CONTINUOUS`, whichever the data are
    "likelihood": None,
    "loss_space": None,
    "train_schedule": None,
    "time_sampler": "uniform",  # all variants then draw the same times
}


def merge_arguments(
    config: ConfigDict | Mapping[str, Any] | None, overrides: dict[str, Any]
) -> tuple[dict[str, Any], Settings]:
    """Merge the arguments of `compare` with its config and the defaults.

    Args:
      config: the argument `config`, or None.
      overrides: the other arguments, which take precedence over the config. None stands for an argument that
        is left out, except for the timesteps, where it is `...`.

    Returns:
      (arguments, settings): all arguments, and the settings with those of the optimizer.

    Raises:
      ValueError: an argument or a field of the config that cannot be compared.
    """
    settings = resolve(default() if config is None else config)
    arguments = dict(DEFAULTS)
    if config is not None:
        arguments |= _from_settings(settings, arguments)
    arguments |= {
        name: as_spec(value)
        for name, value in overrides.items()
        if name != "timesteps" and value is not None and value is not ...
    }
    if overrides["timesteps"] is not ...:  # None is a value, continuous time
        arguments["timesteps"] = overrides["timesteps"]
    for name, least in (("steps", 0), ("batch_size", 1), ("draws", 1)):
        arguments[name] = whole_number(arguments[name], name, least)
    if arguments["timesteps"] is not None:
        arguments["timesteps"] = whole_number(arguments["timesteps"], "timesteps", 1)
    changes = arguments.pop("optimizer", {})
    if not isinstance(changes, Mapping):
        raise ValueError(
            f"optimizer: expected fields of config.optimizer, found {describe(changes)}"
        )
    settings = resolve(settings.plain | {"optimizer": vars(settings.optimizer) | dict(changes)})
    # a config's own decay is kept, unless other steps are asked for: it should end with the steps
    if "decay_steps" not in changes and (config is None or overrides["steps"] is not None):
        updates = arguments["steps"] // settings.optimizer.accumulate
        decay = updates if updates > settings.optimizer.warmup_steps else None
        settings = replace(settings, optimizer=replace(settings.optimizer, decay_steps=decay))
    return arguments, settings


def _from_settings(settings: Settings, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that settings determine, of those that have defaults."""
    model: dict[Any, Any] = with_defaults(settings.model)
    sweep, train = settings.sweep, settings.train
    if model["name"] != "vdm":
        raise ValueError(
            f"config.model.name: expected 'vdm', which has parameterizations, found {model['name']!r}"
        )
    if sweep.learning_rates:
        raise ValueError("config.sweep.learning_rates: are not compared, expected none")
    if (estimators := settings.evaluate.estimators) != ["elbo"]:
        raise ValueError(
            f"config.evaluate.estimators: comparisons are of ELBOs, expected ['elbo'], found {estimators}"
        )
    arguments = {name: model[name] for name in defaults if name in model}
    for axis in CHOICES:
        arguments[axis] = getattr(sweep, axis) or [model[AXES[axis].field]]
    return arguments | {
        "seeds": sweep.seeds or [settings.seed],
        "data": dict(vars(settings.data)),
        "steps": train.steps,
        "batch_size": train.batch_size,
        "draws": settings.evaluate.draws,
    }


def seed_list(seeds: object) -> list[int]:
    """Return the list of seeds for a number of seeds, or for a sequence of them.

    Raises:
      ValueError: no seeds, a seed that occurs twice, or values that are not seeds.
    """
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds: expected at least 1, found {seeds}")
        return list(range(int(seeds)))
    values: list[Any] = []
    if isinstance(seeds, list | tuple | range | np.ndarray):
        values = list(seeds)
    valid = all(
        isinstance(seed, int | np.integer) and not isinstance(seed, bool) and 0 <= seed < 2**32
        for seed in values
    )
    if not values or not valid or len({*values}) < len(values):
        raise ValueError(
            f"seeds: expected a number of them, or different whole ones, found {seeds!r}"
        )
    return [int(seed) for seed in values]


def specs_by_name(axis: str, values: object) -> dict[str, Any]:
    """Return the requested specs or components of an axis, by name.

    Args:
      axis: of `CHOICES`.
      values: a spec, a sequence of specs, or a mapping from names to specs or components.

    Raises:
      ValueError: no values, a name that occurs twice, or a component without a name.
    """
    if isinstance(values, str) or (isinstance(values, Mapping) and "name" in values):
        values = [values]
    if not isinstance(values, Mapping | Sequence) or not values:
        raise ValueError(
            f"{axis}: expected names, or a mapping from names to components, found {values!r}"
        )
    specs: dict[str, Any] = {}
    for item in values:
        if not isinstance(values, Mapping) and not isinstance(item, str | Mapping):
            raise ValueError(
                f"{axis}: expected names, or a mapping from names to components, {{'mine': ...}}, "
                f"found {item!r}"
            )
        name = describe_spec(item)
        if name in specs:
            raise ValueError(f"{axis}: expected each once, found {name!r} twice")
        specs[name] = values[item] if isinstance(values, Mapping) else item
    return specs


def describe_spec(spec: object) -> str:
    """Return the name in a spec with its arguments, or the type of an object."""
    if not isinstance(spec, Mapping):
        return name_of(spec)
    if "name" not in spec:
        return "one for each parameterization"
    arguments = [f"{key}={value}" for key, value in spec.items() if key != "name"]
    return spec["name"] + (f"({', '.join(arguments)})" if arguments else "")
