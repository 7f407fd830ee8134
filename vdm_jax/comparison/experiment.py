"""`compare`: which parameterization, and why, on a user's own data and network, in one call and one unit.

All variants and seeds train in one program, compiled once: the variants of a seed start from the same weights
and see the same batches, noise and, where they are drawn uniformly, times. They are evaluated on the same
examples, times and noise too, so that their differences are paired, far less noisy than the bounds themselves.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.checks import MAX_STEPS, check_callable, describe, whole_number
from vdm_jax.comparison.evaluation import Plan, measured
from vdm_jax.comparison.fitting import fit
from vdm_jax.comparison.quality import Features, quality_of
from vdm_jax.comparison.result import Comparison
from vdm_jax.comparison.setup import Setup, setup_comparison

SAMPLING_STEPS = (10, 50, 1000)


def compare(
    parameterizations: Sequence[Any] | Mapping[str, Any] | None = None,
    data: Any = None,
    *,
    seeds: Any = None,
    steps: Any = None,
    weightings: Sequence[Any] | Mapping[str, Any] | None = None,
    output_scales: Sequence[Any] | Mapping[str, Any] | None = None,
    base: Any = None,
    network: Any = None,
    schedule: Any = None,
    timesteps: Any = ...,
    likelihood: Any = None,
    levels: Any = None,
    optimizer: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    draws: int | None = None,
    bins: int = 10,
    gradient_batches: int = 8,
    sampling_steps: Sequence[int] | None = None,
    samples: int = 64,
    features: Features | None = None,
    reference: str | None = None,
    config: Any = None,
    progress: bool = True,
) -> Comparison:
    """Train every combination of parameterizations, output scales and weightings side by side, and measure all.

    Args:
      parameterizations: names or specs of `PARAMETERIZATIONS`, or own rows by name; "mean", "x0", "eps" and "v"
        by default. `mean` needs timesteps.
      data: a name ("digits" by default), or what `vdm_jax.data.as_dataset` takes: arrays, grain sources, a pair
        (train, test), a `Mixture`.
      seeds: how many (3 by default), or which.
      steps: of training, 2000 by default; 0 compares what is given as it is.
      weightings: as parameterizations; ("elbo", "simple") by default, "elbo" alone under a learned schedule. A
        weighting is of the squared error of the network's output.
      output_scales: as parameterizations; ("none", "unit_variance") by default.
      base: of `BASES`; "histogram" for K levels and "zero" for floats by default.
      network: a name or spec of `NETS`, or what `vdm_jax.nets.as_network` takes: Linen modules, (init, apply),
        callables; a small MLP by default. {parameterization: network} gives each its own.
      schedule: of `SCHEDULES`, or an own `Schedule`; "linear" by default.
      timesteps: T of the chain, 1000 by default (left out), or None for continuous time.
      likelihood: of `LIKELIHOODS`; "softmax" for K levels and "gaussian" for floats by default.
      levels: K of integer arrays.
      optimizer: fields of `config.optimizer` that are to differ; its cosine decay ends with the steps, unless
        it is one of them or the warm-up is longer.
      batch_size: 64 by default.
      draws: of each test example's bound, 8 by default.
      bins: of log-SNR, of equal width between the schedule's ends.
      gradient_batches: for norms, variances and cosines of gradients before and after training; 0 for none.
      sampling_steps: 10, 50 and 1000 by default, less what the chain of a `mean` does not allow; () for none.
      samples: drawn of each variant and seed, for each number of steps.
      features: (data as stored [n, *d]) -> [n, f], for the distance of samples from images; pixels by default.
      reference: the variant that differences are taken to; the one with the lowest bound by default.
      config: of `vdm_jax.config`; what is not given above is taken from its data, model, sweep, optimizer and
        evaluate, and the steps, the batch size and the average from its train. The rest of train and its
        sample are not: all devices share the batch, and samples are ancestral.
      progress: show a bar on stderr.

    Returns:
      A `Comparison`. Everything in its table is the same for the same arguments on the same machine.

    Raises:
      ValueError, TypeError, OSError: a mistake in the arguments or the data, in one line, before compilation.
    """
    axes = {
        "parameterizations": parameterizations,
        "weightings": weightings,
        "output_scales": output_scales,
    }
    given = {"data": data, "levels": levels, "seeds": seeds, "steps": steps, "optimizer": optimizer}
    given |= {"batch_size": batch_size, "draws": draws, "network": network, "schedule": schedule}
    given |= {"base": base, "likelihood": likelihood, "timesteps": timesteps}
    setup = setup_comparison(config=config, **axes, **given)
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
        sampling=_sampling_steps(setup, sampling_steps, samples),
        samples=samples,
        quality=quality_of(setup.dataset, setup.law, features, samples),
    )
    if reference is not None and reference not in plan.variants:
        raise ValueError(
            f"reference: expected one of {', '.join(plan.variants)}, found {reference!r}"
        )
    began = time.perf_counter()
    fitted = fit(setup, progress)
    seconds = {"training": time.perf_counter() - began}
    notes = [*_lost(plan.variants, fitted.skipped), *_left_out(plan.sampling, sampling_steps)]
    return measured(setup, plan, fitted, seconds, [*setup.notes, *notes])


def _variants(setup: Setup) -> dict[str, dict[str, str]]:
    """Return the components of each variant, by name."""
    sweep = setup.sweep
    runs = sweep.config["sweep"]
    found = {}
    for variant in sweep.each_variant:
        row, output_scale, weighting = (
            runs[axis][variant.choices[axis]]
            for axis in ("parameterizations", "output_scales", "weightings")
        )
        what = {"parameterization": row, "output_scale": output_scale, "weighting": weighting}
        found["_".join(what.values())] = what
    return found


def _sampling_steps(setup: Setup, asked: Sequence[int] | None, samples: int) -> list[int]:
    whole_number(samples, "samples", 2)
    if asked is not None and (isinstance(asked, str) or not isinstance(asked, Iterable)):
        raise ValueError(f"sampling_steps: expected a list of numbers, found {describe(asked)}")
    for steps in asked or ():
        whole_number(steps, "sampling_steps", 1, MAX_STEPS)
    timesteps = setup.sweep.config["model"]["timesteps"]
    rows = setup.components["parameterizations"].values()
    chain = timesteps if any(not row.continuous for row in rows) else None
    wanted = SAMPLING_STEPS if asked is None else asked
    unfit = [n for n in wanted if chain is not None and chain % n]
    if unfit and asked is not None:
        raise ValueError(
            f"sampling_steps: 'mean' is a step of the training chain, expected divisors of "
            f"timesteps = {chain}, found {unfit[0]}"
        )
    return [n for n in wanted if n not in unfit]


def _left_out(sampling: Sequence[int], asked: Sequence[int] | None) -> list[str]:
    missing = [n for n in SAMPLING_STEPS if n not in sampling] if asked is None else []
    if not missing:
        return []
    return [
        f"no samples with {', '.join(map(str, missing))} steps, which do not divide the chain of 'mean'"
    ]


def _lost(variants: Mapping[str, Any], skipped: np.ndarray) -> list[str]:
    return [
        f"{int(row.sum())} training steps of {name} were not finite and were skipped"
        for name, row in zip(variants, skipped, strict=True)
        if row.sum()
    ]
