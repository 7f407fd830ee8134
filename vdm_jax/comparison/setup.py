"""The arguments of a comparison, made into runs side by side; a mistake is one line, before any work."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import BASES
from vdm_jax.config import as_spec, default, to_dict
from vdm_jax.data import Dataset, as_dataset, level_counts
from vdm_jax.data.statistics import spread
from vdm_jax.diffusion import alpha, sigma
from vdm_jax.elbo import training_interval
from vdm_jax.jobs import AXES, CHOICES, Many
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.mixtures import Mixture
from vdm_jax.models import Statistics, completed
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.nets import network_of
from vdm_jax.nets.own import as_network, carries_weights, is_by_row, try_network
from vdm_jax.parameterizations import Parameterization
from vdm_jax.reductions import warn_of_wrong_reductions
from vdm_jax.schedules import SCHEDULES, Schedule
from vdm_jax.specs import build, name_of
from vdm_jax.training.checkpoint import library_versions
from vdm_jax.weightings import is_bound

FITTED = 2000  # training examples that the base's error is measured on, at most
INCONSISTENT = 1e-3  # of the terms of skip·x_t + out·target
FIELDS = ("parameterization", "head", "weighting")

DISCRETE = {"base": "histogram", "likelihood": "softmax"}
CONTINUOUS = {"base": "zero", "likelihood": "gaussian"}

DEFAULTS: dict[str, Any] = {
    "parameterizations": ("mean", "x0", "eps", "v"),
    "heads": ("raw", "unit"),
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
    "space": None,
    "train_schedule": None,
    "times": "uniform",
}


class Setup(NamedTuple):
    """What is compared.

    Attributes:
      many: the runs.
      dataset, law: the data, and their density if it is known.
      components: by axis and name, the built rows, heads and weightings.
      steps, batch_size, draws, evaluate_batch, ema: settings of training and evaluation.
      about: what to say of it.
      notes: what a reader must know.
    """

    many: Many
    dataset: Dataset
    law: Mixture | None
    components: dict[str, dict[str, Any]]
    steps: int
    batch_size: int
    draws: int
    evaluate_batch: int
    ema: dict[str, Any]
    about: dict[str, Any]
    notes: list[str]


def prepare(*, config: Any, **given: Any) -> Setup:
    """Build and try everything. Arguments are those of `compare`."""
    warn_of_wrong_reductions()
    asked, plain = _asked(config, given)
    dataset = as_dataset(asked["data"], levels=given["levels"])
    seeds = _seeds(asked["seeds"])
    if len(dataset.test.images) < 2:
        raise ValueError(f"data: {dataset.test.name!r} has less than 2 examples, to measure on")
    if len(dataset.train.images) < asked["batch_size"]:
        raise ValueError(
            f"batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than a batch of {asked['batch_size']}"
        )
    kind = CONTINUOUS if dataset.levels is None else DISCRETE
    asked |= {name: kind[name] for name in kind if asked[name] is None}
    schedule = build(SCHEDULES, asked["schedule"], "schedule")
    if asked["weightings"] is None:
        asked["weightings"] = ("elbo",) if schedule.learned else ("elbo", "simple")
    specs = {axis: _specs(axis, asked[axis]) for axis in CHOICES}
    components = {
        axis: {name: build(AXES[axis].table or {}, spec, axis) for name, spec in named.items()}
        for axis, named in specs.items()
    }
    weightings = components["weightings"]
    if schedule.learned and (len(weightings) > 1 or not all(map(is_bound, weightings.values()))):
        raise ValueError(
            f"weightings: a learned schedule is trained on the bound, expected 'elbo' alone, "
            f"found {', '.join(map(repr, weightings))}"
        )
    # the error of the base is what heads may multiply by, and what times are drawn by before training
    users = [*map(name_of, specs["heads"].values()), name_of(asked["times"])]
    measured = not {*users} <= {"raw", "uniform"}
    statistics = _statistics(dataset, asked["base"], measured=measured)
    network = _network(asked["network"], dataset.shape, components["parameterizations"])
    model = {"schedule": schedule} | {
        name: build(table, asked[name], name, **statistics._asdict())
        for name, table in {"base": BASES, "likelihood": LIKELIHOODS}.items()
    }
    model |= {name: asked[name] for name in ("timesteps", "space", "train_schedule", "times")}
    runs = {axis: [*found] for axis, found in components.items()}
    many = Many(
        plain
        | {"model": {"name": "vdm", "network": network} | dict.fromkeys(FIELDS) | model}
        | {"runs": runs | {"learning_rates": [], "seeds": seeds}, "seed": seeds[0]},
        statistics,
        {
            axis: {name: partial(_same, part) for name, part in found.items()}
            for axis, found in components.items()
        },
    )
    bound, trained = _tried(many, dataset)
    about = _about(asked, dataset) | {"bound": bound, "seeds": seeds}
    notes = _notes(asked, seeds, trained)
    if not trained:
        about["training"] = "nothing was trained"
    return Setup(
        many=many,
        dataset=dataset,
        law=asked["data"] if isinstance(asked["data"], Mixture) else None,
        components=components,
        steps=asked["steps"],
        batch_size=asked["batch_size"],
        draws=asked["draws"],
        evaluate_batch=plain["evaluate"]["batch_size"],
        ema={name: plain["train"][name] for name in ("ema_decay", "ema_warmup")},
        about=about | {"optimizer": plain["optimizer"]},
        notes=notes
        + [
            note
            for name, row in components["parameterizations"].items()
            for note in _inconsistent(name, row, schedule, asked["timesteps"])
        ],
    )


def _about(asked: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What was compared on what: JSON."""
    named = ", ".join(
        f"{name} {_words(asked[name])}" for name in ("network", "schedule", "base", "likelihood")
    )
    count = len(dataset.train.images)
    return {
        "data": f"{dataset.name} {dataset.version}, split {dataset.test.name}",
        "levels": dataset.levels,
        "shape": list(dataset.shape),
        "components": named,
        "training": f"{asked['steps']} steps of {asked['batch_size']} from {count} examples",
        "steps": asked["steps"],
        "draws": asked["draws"],
        "timesteps": asked["timesteps"],
        "versions": library_versions(),
    }


def _asked(config: Any, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is compared, of the arguments, else the config, else the defaults; and a whole plain config."""
    plain = to_dict(default() if config is None else config)
    asked = dict(DEFAULTS)
    if config is not None:
        model: dict[Any, Any] = completed(plain["model"])
        runs, train = plain["runs"], plain["train"]
        if model["name"] != "vdm":
            raise ValueError(
                f"config.model.name: expected 'vdm', which has parameterizations, found {model['name']!r}"
            )
        if runs["learning_rates"]:
            raise ValueError("config.runs.learning_rates: are not compared, expected none")
        asked |= {name: model[name] for name in asked if name in model}
        asked |= {axis: runs[axis] or [model[AXES[axis].field]] for axis in CHOICES}
        asked |= {"seeds": runs["seeds"] or [plain["seed"]], "data": plain["data"]}
        asked |= {"steps": train["steps"], "batch_size": train["batch_size"]}
        asked["draws"] = plain["evaluate"]["draws"]
    asked |= {
        name: as_spec(value)
        for name, value in given.items()
        if name != "timesteps" and value is not None and value is not ...
    }
    if given["timesteps"] is not ...:  # of which None is a value
        asked["timesteps"] = given["timesteps"]
    for name, least in (("steps", 0), ("batch_size", 1), ("draws", 1)):
        asked[name] = check_whole(name, asked[name], least=least)
    if asked["timesteps"] is not None:
        asked["timesteps"] = check_whole("timesteps", asked["timesteps"], least=1)
    own = dict(asked.pop("optimizer", {}))
    plain = to_dict(plain | {"optimizer": plain["optimizer"] | own})
    if "decay_steps" not in own and (config is None or given["steps"] is not None):
        optimizer = plain["optimizer"]  # else the config's own
        updates = asked["steps"] // optimizer["accumulate"]
        optimizer["decay_steps"] = updates if updates > optimizer["warmup_steps"] else None
    return asked, plain


def _seeds(seeds: Any) -> list[int]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds: expected at least 1, found {seeds}")
        return list(range(int(seeds)))
    found: list[Any] = []
    if isinstance(seeds, list | tuple | range | np.ndarray):
        found = list(seeds)
    right = all(isinstance(s, int | np.integer) and 0 <= s < 2**32 for s in found)
    if not found or not right or len({*found}) < len(found):
        raise ValueError(
            f"seeds: expected a number of them, or different whole ones, found {seeds!r}"
        )
    return [int(seed) for seed in found]


def check_whole(name: str, value: Any, *, least: int) -> int:
    """Return a whole number as an int.

    Raises:
      ValueError: it is none, or too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, found {value!r}")
    return int(value)


def _specs(axis: str, values: Any) -> dict[str, Any]:
    """What one axis is asked to compare, by name."""
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
        name = _words(value)
        if name in found:
            raise ValueError(f"{axis}: expected each once, found {name!r} twice")
        found[name] = spec
    return found


def _words(spec: Any) -> str:
    """The name of a spec with its arguments, or the type of an object."""
    if not isinstance(spec, Mapping):
        return name_of(spec)
    if "name" not in spec:
        return "one for each parameterization"
    others = [f"{key}={value}" for key, value in spec.items() if key != "name"]
    return spec["name"] + (f"({', '.join(others)})" if others else "")


def _statistics(dataset: Dataset, base: Any, measured: bool) -> Statistics:
    images = dataset.train.images
    if dataset.levels is None:
        x = images[np.arange(len(images))].astype(np.float64)
        return Statistics(dataset.shape, None, float(np.mean(np.square(x))))
    counts = level_counts(images, dataset.levels)
    few = images[spread(len(images), FITTED)]
    named = measured and isinstance(base, str | Mapping)
    if not named:
        return fit_statistics(counts)
    return fit_statistics(counts, few, base=base, where="base")


def _network(given: Any, shape: tuple[int, ...], rows: Mapping[str, Any]) -> Any:
    if is_by_row(given):
        missing = [row for row in rows if row not in given]
        if missing:
            raise ValueError(
                f"network: expected one for each parameterization, {missing[0]!r} is missing"
            )
        return {row: _network(given[row], shape, {}) for row in rows}
    if isinstance(given, str | Mapping):
        network = network_of(given, shape)
        try_network(network, shape, "network")
        return network
    return as_network(given, shape)


def _notes(asked: dict[str, Any], seeds: list[int], trained: bool) -> list[str]:
    if not trained and asked["steps"]:
        return ["the network has no parameters, so that nothing was trained"]
    notes = []
    if trained and len(seeds) > 1 and carries_weights(asked["network"]):
        notes.append(
            "the network came with its weights, so that seeds differ in data and noise only"
        )
    if trained and asked["steps"] and name_of(asked["times"]) != "uniform":
        notes.append(
            f"{_words(asked['times'])} times: each variant drew those of its training by its own density"
        )
    return notes


def _tried(many: Many, dataset: Dataset) -> tuple[str, bool]:
    """Trace every variant without computing; return what the bound is, and whether there are parameters."""
    x = jax.ShapeDtypeStruct(
        (2, *dataset.shape), np.float32 if dataset.levels is None else np.uint8
    )
    key, bound, params = jax.random.key(0), "", None
    for variant in many.variants:
        model = many.model_of(variant)
        params = jax.eval_shape(model.init, key)
        jax.eval_shape(model.loss, params, key, x)
        many.optimizer_of(variant)
        bound = model.bound
    return bound, bool(jax.tree.leaves(params))


def _inconsistent(
    name: str, row: Parameterization, schedule: Schedule, timesteps: int | None
) -> list[str]:
    """Say of a row that its two numbers do not give x_0 back from its own target."""
    params = schedule.init(jax.random.key(0))
    t = jnp.linspace(0.0, 1.0, 102)[:-1]
    steps = jax.vmap(lambda t: training_interval(schedule, params, t, timesteps)[0])(t)
    mix, target = jax.vmap(row.mix)(steps), jax.vmap(row.target)(steps)
    a, s = alpha(steps.gamma_t), sigma(steps.gamma_t)
    of_x0 = jnp.abs(mix.skip * a + mix.out * target.x0 - 1) / (1 + jnp.abs(mix.skip * a))
    of_eps = jnp.abs(mix.skip * s + mix.out * target.eps) / (1 + jnp.abs(mix.skip * s))
    off = float(jnp.max(jnp.maximum(of_x0, of_eps)))
    if off < INCONSISTENT:
        return []
    return [
        f"{name!r} is inconsistent: skip·x_t + out·target is not x_0 but off by up to {100 * off:.2g} % of its "
        "terms, so that its weight is wrong and its numbers are no bound"
    ]


def _same(part: Any) -> Any:
    return part
