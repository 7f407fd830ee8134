"""Evaluate trained runs, plot their samples and curves, and record what the results belong to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.statistics import sample_places
from vdm_jax.runs.plots import curves, loss_curve, sample_grid, strips
from vdm_jax.runs.start import stream
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import read_checked, write_checked, write_text
from vdm_jax.runtime.processes import is_first, on_process_0
from vdm_jax.specs import label_of
from vdm_jax.training.evaluation import PARTS, Evaluation, over_seeds
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.state import step_of

IMAGES_SHOWN = 36

EVALUATION = "evaluation.json"

KEYS = "of", "step", "evaluate", "sample", "plots", "test"
"""Fields of `evaluation.json`: the result `test`, and the weights, steps and settings of all results."""


def report(trained: TrainedModel, log: Callable[[str], None] = print) -> None:
    """Evaluate a run on the test split, draw its plots and log the paths of its files.

    Results of the same weights, data and settings are reused.
    """
    workdir, step, model = trained.workdir, step_of(trained.state), trained.model
    path, curve = workdir / EVALUATION, workdir / "loss.png"
    current = identity(trained) | {
        "sample": sample_settings(trained),
        "plots": step,
    }
    files = {"evaluation": path}
    if model.unsupported is None:
        files["samples"] = workdir / "samples.png"
    files |= {name: workdir / f"{name}.png" for name in model.plots}

    def read_previous():
        saved = read_evaluation(path)
        if saved.get("of") != current["of"]:
            saved = {}
        unchanged = [name for name, value in current.items() if saved.get(name) == value]
        return saved, unchanged, [name for name, file in files.items() if file.is_file()]

    # read by one process: all have to take the same branches below, whose programs run on all devices
    saved, *names = on_process_0(read_previous)
    unchanged, existing = map(set, names)
    result = None
    if model.unsupported is not None:
        reused = {"of", "step"} <= unchanged
        log(f"no test bound: {model.unsupported}")
    else:
        previous = {}
        if {"of", "step", "evaluate"} <= unchanged:
            previous = evaluations({"test": saved.get("test")})
        reused = bool(previous)
        result = previous["test"] if reused else trained.evaluate("test")
        log(f"test: {result}")
    if "samples" in files and not ({"of", "step", "sample"} <= unchanged and "samples" in existing):
        trained.check_folder()
        draw_samples(trained, files["samples"])
    if not ({"of", "plots"} <= unchanged and model.plots.keys() <= existing):
        trained.check_folder()
        draw_plots(trained, workdir)
    if is_first():
        trained.check_folder()
        if not (reused and curve.is_file()):
            rows = read_metrics(workdir / "metrics.jsonl")
            loss_curve(curve, rows, test=result, title=model.components)
        # last: a run that is killed before has no record of its plots, and draws them again
        if not (reused and len(unchanged) == len(current)):
            write_checked(path, current | {"test": None if result is None else result._asdict()})
    files |= {"loss curve": curve, "config": workdir / "config.json"}
    files["checkpoint"] = workdir / "checkpoints" / str(step)
    for name, file in files.items():
        log(f"  {name:<15} {file}")


def identity(trained: TrainedModel) -> dict[str, Any]:
    """Return what determines an evaluation: weights, statistics, data, model and seed; step; settings."""
    return {
        "of": trained.identity,
        "step": step_of(trained.state),
        "evaluate": vars(trained.settings.evaluate),
    }


def sample_settings(trained: TrainedModel) -> dict[str, Any]:
    """Return the settings that determine the samples: with a fitted variance, also the number of examples."""
    settings = trained.settings.sample
    options = {name: value for name, value in settings.items() if name != "count"}
    if trained.model.fit_sampler(**options) is None:
        return settings
    return settings | {"fit_examples": trained.settings.evaluate.fit_examples}


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read an evaluation; return {} if the file is missing or damaged, and report the damage."""
    try:
        return read_checked(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        warn(f"{error}; it is ignored")
        return {}


def evaluations(saved: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Parse saved evaluations, by name; return {} if one of them is not valid."""
    try:
        return {name: Evaluation.from_json(row) for name, row in saved.items()}
    except (TypeError, ValueError):
        return {}


def forget(workdir: Path, made: str) -> None:
    """Remove plots from the record, so that `report` draws them again.

    To be called before they are drawn from another step or with other settings.

    Args:
      workdir: folder of the run.
      made: the plots, "sample" or "plots".
    """
    path = workdir / EVALUATION
    if is_first() and path.exists():
        saved = read_evaluation(path)
        kept = {key: saved[key] for key in KEYS if key in saved and key != made}
        write_checked(path, kept)


def report_sweep(
    runs: dict[str, TrainedModel], workdir: Path, log: Callable[[str], None] = print
) -> None:
    """Evaluate the runs of a sweep, and write a table of their bounds and a figure of their curves.

    Each run is evaluated as if it had been trained alone. Runs that differ only in the seed share a row of
    the table, which has their mean and its standard error.
    """
    first = next(iter(runs.values()))
    step, path = step_of(first.state), workdir / EVALUATION
    identities = {name: identity(run) for name, run in runs.items()}

    def read_previous():
        saved = read_evaluation(path)
        unchanged = saved.get("of") == identities and isinstance(saved.get("test"), dict)
        return saved["test"] if unchanged else {}

    results = evaluations(on_process_0(read_previous))
    if results.keys() != runs.keys():
        results = {name: run.evaluate("test") for name, run in runs.items()}
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        group = name.removesuffix(f"seed{run.settings.seed}").removesuffix("_")
        groups.setdefault(group or "all", []).append(name)
    table = comparison_table({g: [results[n] for n in names] for g, names in groups.items()})
    log(table)
    files = {"table": workdir / "table.md", "curves": workdir / "curves.png", "evaluation": path}
    if is_first():
        first.check_folder()
        write_text(files["table"], table + "\n")
        rows = read_metrics(workdir / "metrics.jsonl")
        size = first.settings.train.batch_size
        title = f"{first.model.name} on {first.dataset.name}, batch {size}"
        curves(files["curves"], rows, groups, results, title=title)
        tests = {name: result._asdict() for name, result in results.items()}
        write_checked(path, {"of": identities, "test": tests})
    files |= {"config": workdir / "config.json", "checkpoint": workdir / "checkpoints" / str(step)}
    for name, file in files.items():
        log(f"  {name:<15} {file}")


def comparison_table(groups: dict[str, list[Evaluation]]) -> str:
    """Return a Markdown table with a legend; a group of evaluations that differ in their seed is a row."""
    lines = ["| run | test bits/dim | reconstruction | matching | prior |", "|---|---|---|---|---|"]
    for group, results in groups.items():
        mean, error = over_seeds(results)
        parts = [[getattr(result, part) for result in results] for part in PARTS]
        cells = ["–" if None in part else f"{np.mean(part):.4f}" for part in parts]
        lines.append(f"| {' | '.join([group, f'{mean:.4f} ± {error:.4f}', *cells])} |")
    results = next(iter(groups.values()))  # the settings of the evaluation are those of every run
    first = results[0]
    population = f"{len(results)} seeds" if len(results) > 1 else "the examples"
    bound = first.estimator.split(";")[0]
    about = f"± standard error over {population}; {bound}; {first.data}, {first.examples} examples"
    return "\n".join([*lines, "", f"{about}; EMA weights of step {first.step}"])


def draw_samples(trained: TrainedModel, path: Path) -> None:
    """Save samples, drawn with the settings of the config, beside real test images.

    Raises:
      ValueError: the model cannot be sampled.
    """
    data, arguments = trained.dataset, dict(trained.settings.sample)
    count = arguments.pop("count")
    samples = trained.sample(stream(trained.settings.seed, "sample"), count)
    if not is_first():  # all processes draw, one writes
        return
    shown = {k: label_of(v) if isinstance(v, dict) else v for k, v in arguments.items()}
    settings = [f"{name} {value}" for name, value in shown.items()]
    settings.append(f"training step {int(trained.state.step)}")
    sample_grid(
        path,
        np.asarray(samples),
        images_shown(trained, count),
        levels=data.levels,
        samples_title=f"samples ({', '.join(settings)})",
        real_title=f"{data.name}, {data.test.name}",
    )


def draw_plots(trained: TrainedModel, folder: Path) -> list[Path]:
    """Save the plots that the model makes of test images, such as reconstructions; return their paths."""
    data, paths = trained.dataset, []
    for name, rows in trained.plots(images_shown(trained, IMAGES_SHOWN)).items():
        paths.append(folder / f"{name}.png")
        title = f"{name} of {data.name}, {data.test.name} ({trained.model.components})"
        if is_first():
            strips(paths[-1], np.asarray(rows), levels=data.levels, title=title)
    return paths


def images_shown(trained: TrainedModel, count: int) -> np.ndarray:
    """Return a random sample of the test split, whose order may be sorted."""
    images = trained.dataset.test.images
    return images[sample_places(len(images), count)]
