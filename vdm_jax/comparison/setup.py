"""The arguments of a comparison, made into runs side by side; a mistake is one line, before any work."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.bases import BASES
from vdm_jax.comparison.arguments import (
    CONTINUOUS,
    DISCRETE,
    merged,
    seed_list,
    specs_by_name,
    words,
)
from vdm_jax.comparison.consistency import inconsistencies
from vdm_jax.data import Dataset, as_dataset, level_counts
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.mixtures import Mixture
from vdm_jax.models import Statistics, statistics_needed
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.nets import network_of
from vdm_jax.nets.adapters import as_network, carries_weights, is_by_row
from vdm_jax.nets.trial import try_network
from vdm_jax.reductions import warn_of_wrong_reductions
from vdm_jax.runs.axes import AXES, CHOICES
from vdm_jax.runs.sweep import Sweep
from vdm_jax.runtime.versions import library_versions
from vdm_jax.schedules import SCHEDULES, Schedule
from vdm_jax.specs import build, located, name_of, nearest
from vdm_jax.weightings import as_weighting

UNMEASURED = {"none", "uniform", "logit_normal", "lognormal_sigma"}
"""Output scales and time samplers that do not depend on the error of the base."""

FIELDS = ("parameterization", "output_scale", "weighting")


Components = dict[str, dict[str, Any]]
"""By axis and name, the built parameterizations, output scales and weightings."""


class Setup(NamedTuple):
    """The variants, data and settings of a comparison.

    Attributes:
      sweep: the runs.
      dataset, law: the data, and their density if it is known.
      components: by axis and name, the built parameterizations, output scales and weightings.
      steps, batch_size, draws, evaluate_batch: settings of training and evaluation.
      about: what to say of it.
      notes: what a reader must know.
    """

    sweep: Sweep
    dataset: Dataset
    law: Mixture | None
    components: Components
    steps: int
    batch_size: int
    draws: int
    evaluate_batch: int
    about: dict[str, Any]
    notes: list[str]


def setup_comparison(*, config: Any, **given: Any) -> Setup:
    """Build and try everything. Arguments are those of `compare`."""
    warn_of_wrong_reductions()
    arguments, plain = merged(config, given)
    dataset = as_dataset(arguments["data"], levels=given["levels"])
    seeds = seed_list(arguments["seeds"])
    if len(dataset.test.images) < 2:
        raise ValueError(f"data: {dataset.test.name!r} has less than 2 examples, to measure on")
    if len(dataset.train.images) < arguments["batch_size"]:
        raise ValueError(
            f"batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than a batch of {arguments['batch_size']}"
        )
    kind = CONTINUOUS if dataset.levels is None else DISCRETE
    arguments |= {name: kind[name] for name in kind if arguments[name] is None}
    schedule = build(SCHEDULES, arguments["schedule"], "schedule")
    if arguments["weightings"] is None:
        arguments["weightings"] = ("elbo",) if schedule.learned else ("elbo", "simple")
    components = _components(arguments, schedule)
    model, statistics = _model(arguments, components, dataset)
    sweep = Sweep(
        plain
        | {"model": {"schedule": schedule, **model}}
        | {"sweep": _axes(components) | {"seeds": seeds}, "seed": seeds[0]},
        statistics,
        {
            axis: {name: partial(_same, part) for name, part in named.items()}
            for axis, named in components.items()
        },
    )
    bound, trained = _tried(sweep, dataset)
    about = _about(arguments, dataset) | {"bound": bound, "seeds": seeds}
    notes = _notes(arguments, seeds, trained)
    if not trained:
        about["training"] = "nothing was trained"
    return Setup(
        sweep=sweep,
        dataset=dataset,
        law=arguments["data"] if isinstance(arguments["data"], Mixture) else None,
        components=components,
        steps=arguments["steps"],
        batch_size=arguments["batch_size"],
        draws=arguments["draws"],
        evaluate_batch=sweep.settings.evaluate.batch_size,
        about=about | {"optimizer": plain["optimizer"]},
        notes=notes
        + [
            note
            for name, row in components["parameterizations"].items()
            for note in inconsistencies(name, row, schedule, arguments["timesteps"])
        ],
    )


def _components(arguments: dict[str, Any], schedule: Schedule) -> Components:
    """Build the compared parameterizations, output scales and weightings, by axis and name."""
    components = {
        axis: {
            name: build(AXES[axis].table or {}, AXES[axis].wrap(spec), axis)
            for name, spec in specs_by_name(axis, arguments[axis]).items()
        }
        for axis in CHOICES
    }
    weightings = components["weightings"]
    if schedule.learned and (
        len(weightings) > 1 or not all(as_weighting(row).bound for row in weightings.values())
    ):
        raise ValueError(
            f"weightings: a learned schedule is trained on the bound, expected 'elbo' alone, "
            f"found {', '.join(map(repr, weightings))}"
        )
    return components


def _axes(components: Components) -> dict[str, list[Any]]:
    """Return the section `sweep` of a config: the names of the components."""
    return {"learning_rates": []} | {axis: [*named] for axis, named in components.items()}


def _model(
    arguments: dict[str, Any], components: Components, dataset: Dataset
) -> tuple[dict[str, Any], Statistics]:
    """Return the section `model` of a config, with built objects, and the statistics of the data."""
    # the error of the base scales outputs, and is the density of the times before training
    output_scales = specs_by_name("output_scales", arguments["output_scales"]).values()
    users = {*map(name_of, output_scales), name_of(arguments["time_sampler"])}
    statistics = _statistics(dataset, arguments, measured=bool(users - UNMEASURED))
    model: dict[str, Any] = {"name": "vdm"} | dict.fromkeys(FIELDS)
    model["network"] = _network(
        arguments["network"], dataset.shape, components["parameterizations"]
    )
    for name, table in {"base": BASES, "likelihood": LIKELIHOODS}.items():
        model[name] = build(table, arguments[name], name, **statistics._asdict())
    for name in ("timesteps", "loss_space", "train_schedule", "time_sampler"):
        model[name] = arguments[name]
    return model, statistics


def _about(arguments: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return a JSON description of the variants and the data."""
    named = ", ".join(
        f"{name} {words(arguments[name])}" for name in ("network", "schedule", "base", "likelihood")
    )
    count = len(dataset.train.images)
    return {
        "data": f"{dataset.name} {dataset.version}, split {dataset.test.name}",
        "levels": dataset.levels,
        "shape": list(dataset.shape),
        "components": named,
        "training": f"{arguments['steps']} steps of {arguments['batch_size']} from {count} examples",
        "steps": arguments["steps"],
        "draws": arguments["draws"],
        "timesteps": arguments["timesteps"],
        "versions": library_versions(),
    }


def _statistics(dataset: Dataset, arguments: dict[str, Any], measured: bool) -> Statistics:
    images, base = dataset.train.images, arguments["base"]
    if dataset.levels is None:
        x = images[np.arange(len(images))].astype(np.float64)
        return Statistics(dataset.shape, None, float(np.mean(np.square(x))))
    needed = statistics_needed({"name": "vdm", "base": base, "likelihood": arguments["likelihood"]})
    counts = level_counts(images, dataset.levels, per_position="log_counts" in needed)
    named = measured and isinstance(base, str | Mapping)
    return fit_statistics(counts, shape=dataset.shape, base=base if named else None)


def _network(given: Any, shape: tuple[int, ...], rows: Mapping[str, Any]) -> Any:
    if is_by_row(given):
        if unknown := [row for row in given if row not in rows]:
            raise ValueError(
                f"network: one for {unknown[0]!r}, which is not compared{nearest(unknown[0], rows)}"
            )
        missing = [row for row in rows if row not in given]
        if missing:
            raise ValueError(
                f"network: expected one for each parameterization, {missing[0]!r} is missing"
            )
        return {row: _network(given[row], shape, {}) for row in rows}
    if isinstance(given, str | Mapping):
        network = network_of(given, shape)
        with located("network"):
            try_network(network, shape)
        return network
    with located("network"):
        return as_network(given, shape)


def _notes(arguments: dict[str, Any], seeds: list[int], trained: bool) -> list[str]:
    if not trained and arguments["steps"]:
        return ["the network has no parameters, so that nothing was trained"]
    notes = []
    if trained and len(seeds) > 1 and carries_weights(arguments["network"]):
        notes.append(
            "the network came with its weights, so that seeds differ in data and noise only"
        )
    if (
        trained
        and arguments["steps"]
        and name_of(arguments["time_sampler"]) in ("analytic", "learned")
    ):
        named = words(arguments["time_sampler"])
        notes.append(f"{named} times: each variant drew those of its training by its own density")
    return notes


def _tried(sweep: Sweep, dataset: Dataset) -> tuple[str, bool]:
    """Trace every variant without computing; return what the bound is, and whether there are parameters."""
    x = jax.ShapeDtypeStruct(
        (2, *dataset.shape), np.float32 if dataset.levels is None else np.uint8
    )
    key, bound, params = jax.random.key(0), "", None
    for variant in sweep.each_variant:
        model = sweep.model_of(variant)
        params = jax.eval_shape(model.init, key)
        jax.eval_shape(model.loss, params, key, x)
        sweep.optimizer_of(variant)
        bound = model.bound
    return bound, bool(jax.tree.leaves(params))


def _same(part: Any) -> Any:
    return part
