"""Measure all variants of a comparison after training: bounds, gradients, times and samples."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

import vdm_jax.comparison.measure as measure
from vdm_jax.comparison.fitting import Fitted
from vdm_jax.comparison.gradients import Gradients
from vdm_jax.comparison.gradients import gradients as gradients_of
from vdm_jax.comparison.quality import Quality
from vdm_jax.comparison.result import Comparison
from vdm_jax.comparison.setup import Setup
from vdm_jax.effective_weights import EffectiveWeights, effective_weights
from vdm_jax.runs.start import initial_schedule_params
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build
from vdm_jax.typing import PyTree


class Plan(NamedTuple):
    """The measurements of trained variants.

    Attributes:
      variants: components of each variant, by name.
      reference: variant that the others are compared with, or None for the one with the lowest bound.
      bins: number of bins of log-SNR.
      gradient_batches: number of batches for gradients; 0 for no gradients.
      sampling: the samples to draw.
      quality: distance of samples from data.
    """

    variants: dict[str, dict[str, str]]
    reference: str | None
    bins: int
    gradient_batches: int
    sampling: measure.Sampling
    quality: Quality


def measure_variants(
    setup: Setup, plan: Plan, fitted: Fitted, seconds: dict[str, float], notes: list[str]
) -> Comparison:
    """Measure trained variants: bounds, gradients, times and samples.

    Args:
      setup: variants and data.
      plan: what to measure.
      fitted: trained state.
      seconds: durations so far; those of the measurements are added.
      notes: notes for the reader of the results.
    """
    sweep, dataset, quality = setup.sweep, setup.dataset, plan.quality
    params = measure.grid(sweep, fitted.state.ema_params)  # as runs are evaluated and sampled from
    # one set of bins for all variants, so that the curves of two variants can be compared
    edges = measure.bins(sweep, params, plan.bins)
    with _timed(seconds, "evaluation"):
        bounds = measure.bounds(
            sweep, params, dataset.test, edges, draws=setup.draws, batch_size=setup.evaluate_batch
        )
    with _timed(seconds, "gradients"):
        at_start, gradients, milliseconds = _of_training(setup, plan, fitted, params, edges)
    with _timed(seconds, "sampling"):
        samples = {n: measure.samples(sweep, params, n, plan.sampling) for n in plan.sampling.steps}
        distances = {
            n: np.asarray([[quality.distance(x) for x in seeds] for seeds in variants])
            for n, variants in samples.items()
        }
        real = quality.real(plan.sampling.count) if samples else float("nan")
    return Comparison(
        about=setup.about,
        variants=plan.variants,
        reference=plan.reference or _best(plan.variants, bounds),
        seeds=sweep.seeds,
        edges=edges,
        bounds=bounds,
        weights={name: _weights(setup, i) for i, name in enumerate(plan.variants)},
        output_gains=measure.output_gains(sweep, params, edges),
        gradients=gradients,
        at_start=at_start,
        quality=distances,
        distance=quality.name,
        real=real,
        samples=samples,
        curve=fitted.curve,
        curve_steps=fitted.steps,
        skipped=fitted.skipped,
        milliseconds=milliseconds,
        seconds=seconds,
        notes=notes,
        params=params,
        model_state=measure.grid(sweep, fitted.state.model_state),
        statistics=sweep.statistics,
    )


def _of_training(
    setup: Setup, plan: Plan, fitted: Fitted, params: PyTree, edges: np.ndarray
) -> tuple[Gradients | None, Gradients | None, np.ndarray | None]:
    """Return gradients before and after training, and milliseconds of a step; None without parameters."""
    if not jax.tree.leaves(params):  # nothing to differentiate by
        return None, None, None
    sweep, split, size = setup.sweep, setup.dataset.train, setup.batch_size
    milliseconds = measure.milliseconds(sweep, fitted.state, split, size)
    if not plan.gradient_batches:
        return None, None, milliseconds
    at_start, gradients = gradients_of(
        sweep,
        # without a model state, learned times have the density that training starts with
        [(fitted.start, None), (params, measure.grid(sweep, fitted.state.model_state))],
        split,
        edges,
        batch_size=size,
        batches=plan.gradient_batches,
    )
    return at_start, gradients, milliseconds


def _best(variants: Mapping[str, Any], bounds: measure.Bounds) -> str:
    """Return the variant with the lowest bound; argmin alone would choose a NaN."""
    totals = sum(part.mean((1, 2)) for part in bounds.parts)
    return [*variants][int(np.argmin(np.where(np.isfinite(totals), totals, np.inf)))]


def _weights(setup: Setup, variant: int) -> EffectiveWeights:
    """Return the effective weights of a variant's training loss; a learned schedule has its initial params."""
    sweep = setup.sweep
    choices = sweep.each_variant[variant].choices

    def component(axis):
        name = getattr(sweep.settings.sweep, axis)[choices[axis]]
        return setup.components[axis][name]

    model = sweep.settings.model
    schedule = build(SCHEDULES, model["train_schedule"] or model["schedule"], "train_schedule")
    return effective_weights(
        component("parameterizations"),
        component("weightings"),
        loss_space=model["loss_space"],
        schedule=schedule,
        schedule_params=initial_schedule_params(sweep.seeds[0], schedule),
        timesteps=model["timesteps"],
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of the block, in seconds, under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
