"""`compare`: which parameterization, and why, on a user's own data and network, in one call and one unit.

All variants and seeds train in one program, compiled once: the variants of a seed start from the same weights
and see the same batches, noise and, where they are drawn uniformly, times. They are evaluated on the same
examples, times and noise too, so that their differences are paired, far less noisy than the bounds themselves.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

import vdm_jax.comparison.measure as measure
from vdm_jax.comparison.fitting import fit
from vdm_jax.comparison.quality import Features, quality_of
from vdm_jax.comparison.result import Comparison
from vdm_jax.comparison.setup import Setup, check_whole, prepare
from vdm_jax.elbo import check_steps
from vdm_jax.objectives import effective_weights
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build

SAMPLING_STEPS = (10, 50, 1000)


def compare(
    parameterizations: Sequence[Any] | Mapping[str, Any] | None = None,
    data: Any = None,
    *,
    seeds: Any = None,
    steps: Any = None,
    weightings: Sequence[Any] | Mapping[str, Any] | None = None,
    heads: Sequence[Any] | Mapping[str, Any] | None = None,
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
    """Train every combination of parameterizations, heads and weightings side by side, and measure all of them.

    Args:
      parameterizations: names or specs of `PARAMETERIZATIONS`, or own rows by name; "mean", "x0", "eps" and "v"
        by default. `mean` needs timesteps.
      data: a name ("digits" by default), or what `vdm_jax.data.as_dataset` takes: arrays, grain sources, a pair
        (train, test), a `Mixture`.
      seeds: how many (3 by default), or which.
      steps: of training, 2000 by default; 0 compares what is given as it is.
      weightings, heads: as parameterizations; ("elbo", "simple") and ("raw", "unit") by default, "elbo" alone
        under a learned schedule. A weighting is of the squared error of the network's own output.
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
      config: of `vdm_jax.config`; what is not given above is taken from its data, model, runs, optimizer and
        evaluate, and the steps, the batch size and the average from its train. The rest of train and its
        sample are not: all devices share the batch, and samples are ancestral.
      progress: show a bar on stderr.

    Returns:
      A `Comparison`. Everything in its table is the same for the same arguments on the same machine.

    Raises:
      ValueError, TypeError, OSError: a mistake in the arguments or the data, in one line, before compilation.
    """
    setup = prepare(
        parameterizations=parameterizations,
        data=data,
        seeds=seeds,
        steps=steps,
        weightings=weightings,
        heads=heads,
        base=base,
        network=network,
        schedule=schedule,
        timesteps=timesteps,
        likelihood=likelihood,
        levels=levels,
        optimizer=optimizer,
        batch_size=batch_size,
        draws=draws,
        config=config,
    )
    check_steps(bins, "bins: expected at least 1")
    if gradient_batches:
        check_whole("gradient_batches", gradient_batches, least=2)
    sampling = _sampling_steps(setup, sampling_steps, samples)
    many, dataset = setup.many, setup.dataset
    quality = quality_of(dataset, setup.law, features, samples)
    variants = _variants(setup)
    if reference is not None and reference not in variants:
        raise ValueError(f"reference: expected one of {', '.join(variants)}, found {reference!r}")

    seconds: dict[str, float] = {}
    with _timed(seconds, "training"):
        fitted = fit(setup, progress)
    params = measure.grid(many, fitted.state.ema_params)
    edges = measure.bins(many, params, bins)
    with _timed(seconds, "evaluation"):
        bounds = measure.bounds(
            many, params, dataset.test, edges, draws=setup.draws, batch_size=setup.evaluate_batch
        )
    gradients = at_start = milliseconds = None
    if jax.tree.leaves(params):
        own = {"batch_size": setup.batch_size, "batches": gradient_batches}
        with _timed(seconds, "gradients"):
            if gradient_batches:
                at_start, gradients = measure.gradients(
                    many, [fitted.start, params], dataset.train, edges, **own
                )
            milliseconds = measure.milliseconds(many, fitted.state, dataset.train, setup.batch_size)
    with _timed(seconds, "sampling"):
        drawn = {n: measure.samples(many, params, samples, n) for n in sampling}
        distances = {
            n: np.asarray([[quality.distance(x) for x in row] for row in found])
            for n, found in drawn.items()
        }
        real = quality.real(samples) if sampling else float("nan")
    return Comparison(
        about=setup.about,
        variants=variants,
        reference=reference or _best(variants, bounds),
        seeds=many.seeds,
        edges=edges,
        bounds=bounds,
        weights={name: _weights(setup, i) for i, name in enumerate(variants)},
        gains=measure.gains(many, params, edges),
        gradients=gradients,
        at_start=at_start,
        quality=distances,
        distance=quality.name,
        real=real,
        samples=drawn,
        curve=fitted.curve,
        curve_steps=fitted.steps,
        skipped=fitted.skipped,
        milliseconds=milliseconds,
        seconds=seconds,
        notes=[
            *setup.notes,
            *_lost(variants, fitted.skipped),
            *_left_out(sampling, sampling_steps),
        ],
        params=params,
        statistics=many.statistics,
    )


def _best(variants: Mapping[str, Any], bounds: measure.Bounds) -> str:
    totals = sum(part.mean((1, 2)) for part in bounds.parts)
    return [*variants][int(np.argmin(np.where(np.isfinite(totals), totals, np.inf)))]


def _variants(setup: Setup) -> dict[str, dict[str, str]]:
    """What each variant consists of, by name."""
    many = setup.many
    runs = many.config["runs"]
    found = {}
    for variant in many.variants:
        row, head, weighting = (
            runs[axis][variant.choices[axis]]
            for axis in ("parameterizations", "heads", "weightings")
        )
        what = {"parameterization": row, "head": head, "weighting": weighting}
        found["_".join(what.values())] = what
    return found


def _weights(setup: Setup, variant: int) -> Any:
    """Of one variant's training loss, at the start of a learned schedule."""
    many, components = setup.many, setup.components
    parts = {
        axis: components[axis][many.config["runs"][axis][many.variants[variant].choices[axis]]]
        for axis in ("parameterizations", "weightings")
    }
    model = many.config["model"]
    schedule = build(SCHEDULES, model["train_schedule"] or model["schedule"], "train_schedule")
    return effective_weights(
        parts["parameterizations"],
        parts["weightings"],
        space=model["space"],
        schedule=schedule,
        schedule_params=schedule.init(jax.random.key(0)),
        timesteps=model["timesteps"],
    )


def _sampling_steps(setup: Setup, asked: Sequence[int] | None, samples: int) -> list[int]:
    check_whole("samples", samples, least=2)
    for steps in asked or ():
        check_steps(steps, "sampling_steps: expected numbers of at least 1")
    timesteps = setup.many.config["model"]["timesteps"]
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


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
