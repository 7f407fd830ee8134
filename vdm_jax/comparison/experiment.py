"""`compare`: train parameterizations, output scales and weightings side by side, and compare their bounds.

All variants and seeds train in one program, compiled once. The variants of a seed start from the same weights
and see the same batches and noise, and the same times if these are uniform. They are evaluated on the same
examples, times and noise, so that their differences are paired and far less noisy than the bounds.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.bases import Base
from vdm_jax.checks import MAX_STEPS, check_callable, describe, whole_number
from vdm_jax.comparison.arguments import describe_spec
from vdm_jax.comparison.evaluation import Plan, measure_variants
from vdm_jax.comparison.fitting import fit
from vdm_jax.comparison.measure import Sampling
from vdm_jax.comparison.quality import Features, quality_of
from vdm_jax.comparison.result import Comparison
from vdm_jax.comparison.setup import Setup, setup_comparison
from vdm_jax.likelihoods import Likelihood
from vdm_jax.output_scales import OutputScale
from vdm_jax.parameterizations import Parameterization
from vdm_jax.samplers import SAMPLERS, Grid, Sampler
from vdm_jax.schedules import Schedule
from vdm_jax.specs import build
from vdm_jax.typing import Integer, Spec
from vdm_jax.weightings import Weighting

SAMPLING_STEPS = (10, 50, 1000)
"""Default numbers of sampling steps."""


def compare(
    parameterizations: Sequence[Spec] | Mapping[str, Spec | Parameterization] | None = None,
    data: object = None,
    *,
    seeds: Integer | Sequence[Integer] | np.ndarray | None = None,
    steps: Integer | None = None,
    weightings: Sequence[Spec] | Mapping[str, Spec | Weighting | Callable[..., Any]] | None = None,
    output_scales: Sequence[Spec] | Mapping[str, Spec | OutputScale] | None = None,
    base: Spec | Base | None = None,
    network: object = None,
    schedule: Spec | Schedule | None = None,
    timesteps: Integer | EllipsisType | None = ...,
    likelihood: Spec | Likelihood | None = None,
    levels: Integer | None = None,
    optimizer: Mapping[str, Any] | None = None,
    batch_size: Integer | None = None,
    draws: Integer | None = None,
    bins: int = 10,
    gradient_batches: int = 8,
    sampling_steps: Sequence[int] | None = None,
    samples: int = 64,
    sampler: Spec | Sampler = "ancestral",
    grid: Spec | Grid = "schedule",
    features: Features | None = None,
    reference: str | None = None,
    config: ConfigDict | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train every combination of parameterizations, output scales and weightings side by side; measure all.

    Args:
      parameterizations: names or specs of `PARAMETERIZATIONS`, or a mapping from names to specs or instances of
        `Parameterization`; "mean", "x0", "eps" and "v" by default. `mean` needs timesteps.
      data: a name ("digits" by default) or another argument of `vdm_jax.data.as_dataset`: arrays, grain
        sources, a pair (train, test), a `Mixture`.
      seeds: number of seeds (3 by default), or a list of seeds.
      steps: training steps, 2000 by default; 0 compares networks that hold their weights without training.
      weightings: as parameterizations; ("elbo", "simple") by default, "elbo" alone under a learned schedule. A
        function (log_snr, exact) -> weight weighs the squared error of the network's output.
      output_scales: as parameterizations; ("none", "unit_variance") by default.
      base: base denoiser of `BASES`; "histogram" for K levels and "zero" for floats by default.
      network: a name or spec of `NETS`, or an argument of `vdm_jax.nets.as_network`: a Linen module, a pair
        (init, apply), a callable; a small MLP by default. A mapping has a network for each parameterization.
      schedule: a name or spec of `SCHEDULES`, or a `Schedule`; "linear" by default.
      timesteps: T of the chain, or None for continuous time; 1000 by default.
      likelihood: of `LIKELIHOODS`; "softmax" for K levels and "gaussian" for floats by default.
      levels: K of integer arrays.
      optimizer: fields of `config.optimizer` to change. Unless they have `decay_steps`, or a config without
        other `steps` has, the cosine decay ends with the training; one shorter than the warm-up has no decay.
      batch_size: examples of a batch, 64 by default.
      draws: draws for the bound of a test example, 8 by default.
      bins: number of bins of log-SNR, of equal width between the ends of the schedule.
      gradient_batches: batches for the norms, variances and cosines of gradients before and after training; 0
        for no gradients.
      sampling_steps: numbers of sampling steps; () for no samples. By default 10, 50 and 1000, without those
        that do not divide the chain of `mean`.
      samples: number of samples of each variant and seed, for each number of steps.
      sampler: a `Sampler`, or a name or spec of `SAMPLERS`.
      grid: the noise levels between the sampling steps, a name or spec of `GRIDS`.
      features: (data as stored [n, *d]) -> [n, f], for the distance of samples from images; pixels by default.
      reference: variant that the others are compared with; the one with the lowest bound by default.
      config: a config of `vdm_jax.config`, for arguments that are not given: its data, model, sweep and
        optimizer, the steps, the batch size and the weight average of its train, and the draws and the batch
        size of its evaluate. The rest is ignored: all devices share a batch.
      progress: show a progress bar on stderr.

    Returns:
      A `Comparison`, whose table is the same for the same arguments on the same machine.

    Raises:
      ValueError, TypeError, OSError: a mistake in the arguments or the data, in one line, before compilation.
    """
    setup = setup_comparison(
        config=config,
        parameterizations=parameterizations,
        weightings=weightings,
        output_scales=output_scales,
        data=data,
        levels=levels,
        seeds=seeds,
        steps=steps,
        optimizer=optimizer,
        batch_size=batch_size,
        draws=draws,
        network=network,
        schedule=schedule,
        base=base,
        likelihood=likelihood,
        timesteps=timesteps,
    )
    # before the training, so that no mistake costs it
    sampling = _sampling(setup, sampling_steps, samples, sampler, grid)
    plan = _plan(setup, bins, gradient_batches, sampling, features, reference)
    began = time.perf_counter()
    fitted = fit(setup, progress)
    seconds = {"training": time.perf_counter() - began}
    notes = [*_lost(plan.variants, fitted.skipped), *_of_samples(sampling, sampling_steps)]
    return measure_variants(setup, plan, fitted, seconds, [*setup.notes, *notes])


def _plan(
    setup: Setup,
    bins: int,
    gradient_batches: int,
    sampling: Sampling,
    features: Features | None,
    reference: str | None,
) -> Plan:
    """Check the arguments of the measurements, and return them as a plan."""
    whole_number(bins, "bins", 1)
    if features is not None:
        check_callable(features, ("data",), "features")
    if gradient_batches:
        whole_number(gradient_batches, "gradient_batches", 2)
    plan = Plan(
        variants=_variants(setup),
        reference=reference,
        bins=bins,
        gradient_batches=gradient_batches,
        sampling=sampling,
        quality=quality_of(setup.dataset, setup.law, features, sampling.count),
    )
    if reference is not None and reference not in plan.variants:
        raise ValueError(
            f"reference: expected one of {', '.join(plan.variants)}, found {reference!r}"
        )
    return plan


def _variants(setup: Setup) -> dict[str, dict[str, str]]:
    """Return the components of each variant, by name."""
    names = vars(setup.sweep.settings.sweep)
    variants = {}
    for variant in setup.sweep.each_variant:
        choices = {axis: names[axis][index] for axis, index in variant.choices.items()}
        components = {
            "parameterization": choices["parameterizations"],
            "output_scale": choices["output_scales"],
            "weighting": choices["weightings"],
        }
        variants["_".join(components.values())] = components
    return variants


def _sampling(
    setup: Setup,
    requested: Sequence[int] | None,
    samples: int,
    sampler: Spec | Sampler,
    grid: Spec | Grid,
) -> Sampling:
    """Check the settings of samples, and return them; by default with steps that all variants can take."""
    whole_number(samples, "samples", 2)
    if requested is not None and (
        isinstance(requested, str) or not isinstance(requested, Iterable)
    ):
        raise ValueError(f"sampling_steps: expected a list of numbers, found {describe(requested)}")
    for steps in requested or ():
        whole_number(steps, "sampling_steps", 1, MAX_STEPS)
    timesteps = setup.sweep.settings.model["timesteps"]
    parameterizations = setup.components["parameterizations"].values()
    # `mean` predicts the mean of one step of the training chain, which sampling therefore has to visit
    chain = timesteps if any(not each.continuous for each in parameterizations) else None
    candidates = SAMPLING_STEPS if requested is None else requested
    unfit = [n for n in candidates if chain is not None and chain % n]
    if unfit and requested is not None:
        raise ValueError(
            f"sampling_steps: 'mean' predicts x_s of an interval of the training chain, expected divisors of "
            f"timesteps = {chain}, found {unfit[0]}"
        )
    if build(SAMPLERS, sampler, "sampler").fitted is not None:
        raise ValueError(
            "sampler: a comparison fits no variance, expected a number or a function of γ_t, found 'fitted'"
        )
    sampling = Sampling([n for n in candidates if n not in unfit], samples, sampler, grid)
    for variant in setup.sweep.each_variant:
        for steps in sampling.steps:
            setup.sweep.model_of(variant).fit_sampler(sampler=sampler, steps=steps, grid=grid)
    return sampling


def _of_samples(sampling: Sampling, requested: Sequence[int] | None) -> list[str]:
    """Return notes about samples: default numbers of steps that are left out, and a chosen solver."""
    missing = [n for n in SAMPLING_STEPS if n not in sampling.steps] if requested is None else []
    notes = []
    if missing:
        left_out = ", ".join(map(str, missing))
        notes.append(f"no samples with {left_out} steps, which do not divide the chain of 'mean'")
    if (sampling.sampler, sampling.grid) != ("ancestral", "schedule"):
        solver, grid = describe_spec(sampling.sampler), describe_spec(sampling.grid)
        notes.append(f"samples by {solver} on the grid {grid}")
    return notes


def _lost(variants: Mapping[str, Any], skipped: np.ndarray) -> list[str]:
    """Return notes about the training steps that were skipped, from their numbers [V, S]."""
    return [
        f"{int(counts.sum())} training steps of {name} were not finite and were skipped"
        for name, counts in zip(variants, skipped, strict=True)
        if counts.sum()
    ]
