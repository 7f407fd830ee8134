"""Evaluate a trained run, plot its samples, images and loss curve, and write the report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data import fingerprint
from vdm_jax.data.statistics import sample_places
from vdm_jax.models.statistics import digest_of
from vdm_jax.runs.plots import (
    curves,
    loss_curve,
    sample_grid,
    strips,
)
from vdm_jax.runs.trained import TrainedModel, stream
from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import read_checked, write_checked, write_text
from vdm_jax.runtime.processes import is_first, on_process_0
from vdm_jax.training.evaluate import PARTS, Evaluation
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.state import step_of

IMAGES_SHOWN = 36


EVALUATION = "evaluation.json"


KEYS = "of", "step", "evaluate", "sample", "plots", "test"
"""Fields of `evaluation.json`."""


def report(trained: TrainedModel, log: Callable[[str], None] = print) -> None:
    """Evaluate on the test split, draw the plots and log where everything is.

    What was done for the same weights, data and settings is not done again.
    """
    workdir, step, model = trained.workdir, step_of(trained.state), trained.model
    path, curve = workdir / EVALUATION, workdir / "loss.png"
    wanted = identity(trained) | {
        "sample": trained.settings.sample,
        "plots": step,
    }
    made = {"evaluation": path}
    if model.unsupported is None:
        made["samples"] = workdir / "samples.png"
    made |= {name: workdir / f"{name}.png" for name in model.plots}

    def found():  # asked of one process, for all have to compute the same
        saved = read_evaluation(path)
        if saved.get("of") != wanted["of"]:
            saved = {}
        same = [name for name, value in wanted.items() if saved.get(name) == value]
        return saved, same, [name for name, file in made.items() if file.is_file()]

    saved, same, there = on_process_0(found)
    result = None
    if model.unsupported is not None:
        evaluated = {"of", "step"} <= {*same}
        log(f"no test bound: {model.unsupported}")
    else:
        known = (
            evaluations({"test": saved.get("test")})
            if {"of", "step", "evaluate"} <= {*same}
            else {}
        )
        evaluated = bool(known)
        result = known["test"] if evaluated else trained.evaluate("test")
        log(f"test: {result}")
    if "samples" in made and not ({"of", "step", "sample"} <= {*same} and "samples" in there):
        trained.check_folder()
        draw_samples(trained, made["samples"])
    if not ({"of", "plots"} <= {*same} and {*model.plots} <= {*there}):
        trained.check_folder()
        draw_plots(trained, workdir)
    if is_first():
        trained.check_folder()
        if not (evaluated and curve.is_file()):
            rows = read_metrics(workdir / "metrics.jsonl")
            loss_curve(curve, rows, test=result, title=model.components)
        if not (evaluated and len(same) == len(wanted)):
            write_checked(path, wanted | {"test": None if result is None else result._asdict()})
    made |= {"loss curve": curve, "config": workdir / "config.json"}
    made["checkpoint"] = workdir / "checkpoints" / str(step)
    for name, file in made.items():
        log(f"  {name:<15} {file}")


def identity(trained: TrainedModel) -> dict[str, Any]:
    """Return what an evaluation is of: weights, model, seed and data; the step; the settings."""
    settings = trained.settings
    return {
        "of": {
            "weights": trained.weights,
            "statistics": digest_of(trained.statistics),
            "data": fingerprint(trained.dataset),
            "model": settings.model,
            "seed": settings.seed,
        },
        "step": step_of(trained.state),
        "evaluate": vars(settings.evaluate),
    }


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read an evaluation; {} if there is none, or a damaged one, which is reported."""
    try:
        return read_checked(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        warn(f"{error}; it is ignored")
        return {}


def evaluations(saved: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Return saved evaluations by name; {} if one of them is none."""
    try:
        return {name: Evaluation.from_json(row) for name, row in saved.items()}
    except (TypeError, ValueError):
        return {}


def forget(workdir: Path, made: str) -> None:
    """Let `report` draw anew what is about to be drawn from another step or with other settings.

    Args:
      made: "sample" or "plots".
    """
    path = workdir / EVALUATION
    if is_first() and path.exists():
        saved = read_evaluation(path)
        kept = {key: saved[key] for key in KEYS if key in saved and key != made}
        write_checked(path, kept)


def report_sweep(
    runs: dict[str, TrainedModel], workdir: Path, log: Callable[[str], None] = print
) -> None:
    """Evaluate runs that were trained side by side: one table, one figure of their curves.

    A run's evaluation is the one that it would have alone. Runs that differ in nothing but the seed are
    one row, their mean with its standard error.
    """
    first = next(iter(runs.values()))
    step, path = step_of(first.state), workdir / EVALUATION
    of = {name: identity(run) for name, run in runs.items()}

    def found():
        saved = read_evaluation(path)
        same = saved.get("of") == of and isinstance(saved.get("test"), dict)
        return saved["test"] if same else {}

    results = evaluations(on_process_0(found))
    if results.keys() != runs.keys():
        results = {name: run.evaluate("test") for name, run in runs.items()}
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        group = name.removesuffix(f"seed{run.settings.seed}").removesuffix("_")
        groups.setdefault(group or "all", []).append(name)
    table = comparison_table({g: [results[n] for n in names] for g, names in groups.items()})
    log(table)
    made = {"table": workdir / "table.md", "curves": workdir / "curves.png", "evaluation": path}
    if is_first():
        first.check_folder()
        write_text(made["table"], table + "\n")
        rows = read_metrics(workdir / "metrics.jsonl")
        size = first.settings.train.batch_size
        title = f"{first.model.name} on {first.dataset.name}, batch {size}"
        curves(made["curves"], rows, groups, results, title=title)
        write_checked(path, {"of": of, "test": {n: r._asdict() for n, r in results.items()}})
    made |= {"config": workdir / "config.json", "checkpoint": workdir / "checkpoints" / str(step)}
    for name, file in made.items():
        log(f"  {name:<15} {file}")


def comparison_table(groups: dict[str, list[Evaluation]]) -> str:
    """A Markdown table: a row for each group of evaluations that differ in their seed, and what it says."""
    lines = ["| run | test bits/dim | reconstruction | matching | prior |", "|---|---|---|---|---|"]
    for group, results in groups.items():
        values = np.asarray([result.bits_per_dim for result in results])
        error = results[0].standard_error
        if len(values) > 1:
            error = values.std(ddof=1) / np.sqrt(len(values))
        parts = [[getattr(result, part) for result in results] for part in PARTS]
        cells = ["–" if None in part else f"{np.mean(part):.4f}" for part in parts]
        lines.append(f"| {' | '.join([group, f'{values.mean():.4f} ± {error:.4f}', *cells])} |")
    results = next(iter(groups.values()))
    one = results[0]
    of = f"{len(results)} seeds" if len(results) > 1 else "the examples"
    bound = one.estimator.split(";")[0]
    about = f"± standard error over {of}; {bound}; {one.data}, {one.examples} examples"
    return "\n".join([*lines, "", f"{about}; EMA weights of step {one.step}"])


def draw_samples(trained: TrainedModel, path: Path) -> None:
    """Save samples of the config's number and settings beside real test images.

    Raises:
      ValueError: the model has no samples.
    """
    data, arguments = trained.dataset, dict(trained.settings.sample)
    count = arguments.pop("count")
    samples = trained.sample(stream(trained.settings.seed, "sample"), count)
    if not is_first():
        return
    words = [f"{name} {value}" for name, value in arguments.items()]
    sample_grid(
        path,
        np.asarray(samples),
        images_shown(trained, count),
        levels=data.levels,
        samples_title=f"samples ({', '.join([*words, f'training step {int(trained.state.step)}'])})",
        real_title=f"{data.name}, {data.test.name}",
    )


def draw_plots(trained: TrainedModel, folder: Path) -> list[Path]:
    """Save the model's own plots of some test images; return their paths."""
    data, paths = trained.dataset, []
    for name, rows in trained.plots(images_shown(trained, IMAGES_SHOWN)).items():
        paths.append(folder / f"{name}.png")
        title = f"{name} of {data.name}, {data.test.name} ({trained.model.components})"
        if is_first():
            strips(paths[-1], np.asarray(rows), levels=data.levels, title=title)
    return paths


def images_shown(trained: TrainedModel, count: int) -> np.ndarray:
    """Return a random sample of the test split, which may be stored in any order."""
    images = trained.dataset.test.images
    return images[sample_places(len(images), count)]
