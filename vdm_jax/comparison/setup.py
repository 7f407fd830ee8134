"""From the arguments of `compare` to a sweep of runs, which is traced so that mistakes show first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vdm_jax.bases import BASES
from vdm_jax.comparison.arguments import (
    CONTINUOUS,
    DISCRETE,
    describe_spec,
    merge_arguments,
    seed_list,
    specs_by_name,
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
from vdm_jax.settings import SweepSettings
from vdm_jax.specs import build, located, name_of, nearest
from vdm_jax.weightings import as_weighting

UNMEASURED = {"none", "uniform", "logit_normal", "lognormal_sigma"}
"""Output scales and time samplers that do not depend on the error of the base."""

FIELDS = ("parameterization", "output_scale", "weighting")
"""Fields of the model that the sweep sets."""

Components = dict[str, dict[str, Any]]
"""Built parameterizations, output scales and weightings, by axis and name."""


class Setup(NamedTuple):
    """The variants, data and settings of a comparison.

    Attributes:
      sweep: the runs.
      dataset: the data.
      law: density of the data, or None if it is unknown.
      components: parameterizations, output scales and weightings of the variants.
      steps, batch_size: settings of the training.
      draws, evaluate_batch: draws per example and batch size of the evaluation.
      about: description of the comparison: JSON.
      notes: notes for the reader of the results.
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


def setup_comparison(*, config: ConfigDict | Mapping[str, Any] | None, **overrides: Any) -> Setup:
    """Load the data, build the variants and trace them; arguments and errors are those of `compare`."""
    warn_of_wrong_reductions()
    arguments, settings = merge_arguments(config, overrides)
    dataset = as_dataset(arguments["data"], levels=overrides["levels"])
    seeds = seed_list(arguments["seeds"])
    if len(dataset.test.images) < 2:  # one has no standard error
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
    axes: dict[str, Any] = {axis: [*named] for axis, named in components.items()}
    settings = replace(
        settings,
        model={"schedule": schedule, **model},
        sweep=SweepSettings(learning_rates=[], seeds=seeds, **axes),
        seed=seeds[0],
    )
    # the built components as factories, under the names that the settings hold
    factories = {
        axis: {name: partial(_same, component) for name, component in named.items()}
        for axis, named in components.items()
    }
    sweep = Sweep(settings, statistics, factories)
    bound, trained = _tried(sweep, dataset)
    about = _about(arguments, dataset) | {"bound": bound, "seeds": seeds}
    if not trained:
        about["training"] = "nothing was trained"
    notes = _notes(arguments, seeds, trained)
    for name, parameterization in components["parameterizations"].items():
        notes += inconsistencies(name, parameterization, schedule, arguments["timesteps"])
    return Setup(
        sweep=sweep,
        dataset=dataset,
        law=arguments["data"] if isinstance(arguments["data"], Mixture) else None,
        components=components,
        steps=arguments["steps"],
        batch_size=arguments["batch_size"],
        draws=arguments["draws"],
        evaluate_batch=settings.evaluate.batch_size,
        about=about | {"optimizer": dict(vars(settings.optimizer))},
        notes=notes,
    )


def _components(arguments: dict[str, Any], schedule: Schedule) -> Components:
    """Build the components to compare, by axis and name.

    Raises:
      ValueError: an unknown component, or a weighting that a learned schedule cannot be trained with.
    """
    components = {
        axis: {
            name: build(AXES[axis].table or {}, AXES[axis].wrap(spec), axis)
            for name, spec in specs_by_name(axis, arguments[axis]).items()
        }
        for axis in CHOICES
    }
    weightings = components["weightings"]
    alone = len(weightings) == 1
    if schedule.learned and not (alone and all(as_weighting(w).bound for w in weightings.values())):
        raise ValueError(
            f"weightings: a learned schedule is trained on the bound, expected 'elbo' alone, "
            f"found {', '.join(map(repr, weightings))}"
        )
    return components


def _model(
    arguments: dict[str, Any], components: Components, dataset: Dataset
) -> tuple[dict[str, Any], Statistics]:
    """Return the section `model` of a config, with built objects, and the statistics of the data."""
    # the error of the base scales outputs and is the first density of the times; measuring it takes time
    output_scales = specs_by_name("output_scales", arguments["output_scales"]).values()
    users = {*map(name_of, output_scales), name_of(arguments["time_sampler"])}
    statistics = _statistics(dataset, arguments, measured=bool(users - UNMEASURED))
    model: dict[str, Any] = {"name": "vdm"} | dict.fromkeys(FIELDS)
    names = [*components["parameterizations"]]
    model["network"] = _network(arguments["network"], dataset.shape, names)
    for name, table in {"base": BASES, "likelihood": LIKELIHOODS}.items():
        model[name] = build(table, arguments[name], name, **statistics._asdict())
    for name in ("timesteps", "loss_space", "train_schedule", "time_sampler"):
        model[name] = arguments[name]
    return model, statistics


def _about(arguments: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return a JSON description of the variants and the data."""
    fixed = ("network", "schedule", "base", "likelihood")  # the same for all variants
    count = len(dataset.train.images)
    return {
        "data": f"{dataset.name} {dataset.version}, split {dataset.test.name}",
        "levels": dataset.levels,
        "shape": list(dataset.shape),
        "components": ", ".join(f"{name} {describe_spec(arguments[name])}" for name in fixed),
        "training": f"{arguments['steps']} steps of {arguments['batch_size']} from {count} examples",
        "steps": arguments["steps"],
        "draws": arguments["draws"],
        "timesteps": arguments["timesteps"],
        "versions": library_versions(),
    }


def _statistics(dataset: Dataset, arguments: dict[str, Any], measured: bool) -> Statistics:
    """Fit the statistics of the training split, with the error of the base if `measured`."""
    images, base = dataset.train.images, arguments["base"]
    if dataset.levels is None:
        x = images[np.arange(len(images))].astype(np.float64)
        return Statistics(dataset.shape, None, float(np.mean(np.square(x))))
    needed = statistics_needed({"name": "vdm", "base": base, "likelihood": arguments["likelihood"]})
    counts = level_counts(images, dataset.levels, per_position="log_counts" in needed)
    # a base that is built already holds the error that it needs
    is_spec = isinstance(base, str | Mapping)
    return fit_statistics(counts, shape=dataset.shape, base=base if measured and is_spec else None)


def _network(network: Any, shape: tuple[int, ...], names: Sequence[str]) -> Any:
    """Build and trace the network, or one for each of the names of the parameterizations."""
    if is_by_row(network):
        if unknown := [name for name in network if name not in names]:
            raise ValueError(
                f"network: one for {unknown[0]!r}, which is not compared{nearest(unknown[0], names)}"
            )
        missing = [name for name in names if name not in network]
        if missing:
            raise ValueError(
                f"network: expected one for each parameterization, {missing[0]!r} is missing"
            )
        return {name: _network(network[name], shape, ()) for name in names}
    if isinstance(network, str | Mapping):
        built = network_of(network, shape)
        with located("network"):
            try_network(built, shape)
        return built
    with located("network"):
        return as_network(network, shape)  # which traces it


def _notes(arguments: dict[str, Any], seeds: list[int], trained: bool) -> list[str]:
    """Return the notes that follow from the arguments alone."""
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
        sampler = describe_spec(arguments["time_sampler"])
        notes.append(f"{sampler} times: each variant drew those of its training by its own density")
    return notes


def _tried(sweep: Sweep, dataset: Dataset) -> tuple[str, bool]:
    """Trace every variant on shapes; return the name of the bound, and True if there are parameters."""
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


def _same(component: Any) -> Any:
    """Return a built component, as a factory does."""
    return component
