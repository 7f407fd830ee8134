"""What is said and drawn of a trained run, its test bound, samples, the model's own pictures, loss curve; and
of the training losses of a config, what they weigh.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.jobs import expand
from vdm_jax.models import Statistics, build_model, completed
from vdm_jax.objectives import EffectiveWeights, effective_weights
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build, name_of
from vdm_jax.trained import Trained, read_json, stream, write_json
from vdm_jax.training.evaluate import PARTS, Evaluation
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.pictures import (
    curves,
    loss_curve,
    sample_grid,
    strips,
    weight_curves,
)
from vdm_jax.training.processes import by_first, is_first
from vdm_jax.training.state import step_of

IMAGES_SHOWN = 36
LEVELS_SHOWN = 9


def report(trained: Trained, say: Callable[[str], None] = print) -> None:
    """Evaluate on the test split, draw the pictures and say where everything is.

    What was done for the same step and settings is not done again.
    """
    workdir, step, model = trained.workdir, int(trained.state.step), trained.model
    path, curve = workdir / "evaluation.json", workdir / "loss.png"
    wanted = {
        "step": step,
        "evaluate": trained.config["evaluate"],
        "sample": trained.config["sample"],
        "pictures": step,
    }
    made = {"evaluation": path}
    if model.refusal is None:
        made["samples"] = workdir / "samples.png"
    made |= {name: workdir / f"{name}.png" for name in model.pictures}

    def found():  # asked of one process, for all have to compute the same
        saved = read_json(path) if path.exists() else {}
        same = [name for name, value in wanted.items() if saved.get(name) == value]
        return saved, same, [name for name, file in made.items() if file.exists()]

    saved, same, there = by_first(found)
    evaluated = {"step", "evaluate"} <= {*same}
    if model.refusal is not None:
        result = None
        say(f"no test bound: {model.refusal}")
    else:
        result = Evaluation(**saved["test"]) if evaluated else trained.evaluate("test")
        say(f"test: {result}")
    if "samples" in made and not ({"step", "sample"} <= {*same} and "samples" in there):
        draw_samples(trained, made["samples"])
    if not ("pictures" in same and {*model.pictures} <= {*there}):
        draw_pictures(trained, workdir)
    if is_first():
        if not (evaluated and curve.exists()):
            rows = read_metrics(workdir / "metrics.jsonl")
            loss_curve(curve, rows, test=result, title=model.components)
        if len(same) < len(wanted):
            write_json(path, wanted | {"test": None if result is None else result._asdict()})
    made |= {"loss curve": curve, "config": workdir / "config.json"}
    made["checkpoint"] = workdir / "checkpoints" / str(step)
    for name, file in made.items():
        say(f"  {name:<15} {file}")


def forget(workdir: Path, made: str) -> None:
    """Let `report` draw anew what is about to be drawn from another step or with other settings.

    Args:
      made: "sample" or "pictures".
    """
    path = workdir / "evaluation.json"
    if is_first() and path.exists():
        write_json(path, {key: value for key, value in read_json(path).items() if key != made})


def compare(runs: dict[str, Trained], workdir: Path, say: Callable[[str], None] = print) -> None:
    """Evaluate runs that were trained side by side: one table, one figure of their curves.

    A run's evaluation is the one that it would have alone. Runs that differ in nothing but the seed are
    one row, their mean with its standard error.
    """
    first = next(iter(runs.values()))
    step, path = step_of(first.state), workdir / "evaluation.json"
    wanted = {"step": step, "evaluate": first.config["evaluate"]}

    def found():
        saved = read_json(path) if path.exists() else {}
        return saved if all(saved.get(k) == value for k, value in wanted.items()) else {}

    saved = by_first(found)
    if saved:
        results = {name: Evaluation(**row) for name, row in saved["test"].items()}
    else:
        results = {name: run.evaluate("test") for name, run in runs.items()}
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        group = name.removesuffix(f"seed{run.config['seed']}").removesuffix("_")
        groups.setdefault(group or "all", []).append(name)
    table = comparison_table({g: [results[n] for n in names] for g, names in groups.items()})
    say(table)
    made = {"table": workdir / "table.md", "curves": workdir / "curves.png", "evaluation": path}
    if is_first():
        made["table"].write_text(table + "\n", encoding="utf-8")
        rows = read_metrics(workdir / "metrics.jsonl")
        size = first.config["train"]["batch_size"]
        title = f"{first.model.name} on {first.dataset.name}, batch {size}"
        curves(made["curves"], rows, groups, results, title=title)
        write_json(path, wanted | {"test": {n: r._asdict() for n, r in results.items()}})
    made |= {"config": workdir / "config.json", "checkpoint": workdir / "checkpoints" / str(step)}
    for name, file in made.items():
        say(f"  {name:<15} {file}")


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


def draw_samples(trained: Trained, path: Path) -> None:
    """Save samples of the config's number and settings beside real test images.

    Raises:
      ValueError: the model has no samples.
    """
    data, settings = trained.dataset, dict(trained.config["sample"])
    count = settings.pop("count")
    samples = trained.sample(stream(trained.config["seed"], "sample"), count)
    if not is_first():
        return
    words = [f"{name} {value}" for name, value in settings.items()]
    sample_grid(
        path,
        np.asarray(samples),
        first_images(trained, count),
        levels=data.levels,
        samples_title=f"samples ({', '.join([*words, f'training step {int(trained.state.step)}'])})",
        real_title=f"{data.name}, {data.test.name}",
    )


def draw_pictures(trained: Trained, folder: Path) -> list[Path]:
    """Save the model's own pictures of the first test images; return where they are."""
    data, paths = trained.dataset, []
    for name, rows in trained.pictures(first_images(trained, IMAGES_SHOWN)).items():
        paths.append(folder / f"{name}.png")
        title = f"{name} of {data.name}, {data.test.name} ({trained.model.components})"
        if is_first():
            strips(paths[-1], np.asarray(rows), levels=data.levels, title=title)
    return paths


def first_images(trained: Trained, count: int) -> np.ndarray:
    """The first images of the test split."""
    images = trained.dataset.test.images
    return images[np.arange(min(count, len(images)))]


def weights(config: dict[str, Any], workdir: Path, say: Callable[[str], None] = print) -> None:
    """Say and draw the effective weights of the training losses of a config; nothing is trained.

    Args:
      config: validated.
      workdir: gets the picture; made if missing.
      say: gets the tables.

    Raises:
      ValueError: a mistake in the model's config, a model without noise levels.
      OSError: the folder cannot be written.
    """
    losses = {loss.name: loss for loss in map(_loss, expand(config).values())}
    found = {name: effective_weights(**loss.arguments) for name, loss in losses.items()}
    path, times = workdir / "weights.png", next(iter(losses.values())).times

    def draw():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            weight_curves(path, found, f"schedule {times}")
        except OSError as error:
            raise OSError(f"workdir {workdir} cannot be written: {error.strerror}") from error

    by_first(draw)
    for name, loss in losses.items():
        say(f"{loss.title}; schedule {times}\n\n{weight_table(found[name])}\n")
    say(
        "own: of the squared error as the loss is written, t uniform; x0, eps, v: of the squared error in "
        "that space, per unit of log-SNR; relative: in units of the bound's"
    )
    say(f"  {'weights':<15} {path}")


class Loss(NamedTuple):
    """A training loss: what it is and its times, in words, and the arguments of `effective_weights`."""

    name: str
    title: str
    times: str
    arguments: dict[str, Any]


def _loss(config: dict[str, Any]) -> Loss:
    """The training loss of a config of one run."""
    model, spec = config["model"], completed(config["model"])
    if "parameterization" not in spec:
        raise ValueError(f"--mode=weights: {model['name']!r} has no noise levels to weigh")
    # for its messages; the weights are the same for any data, so that none need be read
    anything = Statistics((1,), 2, log_counts=np.zeros((1, 2), np.float32))
    build_model(model | {"likelihood": "softmax"}, anything)
    output, weighting = _words(spec["parameterization"]), _words(spec["weighting"])
    space = output if spec["space"] is None else _words(spec["space"])
    path = spec["schedule"] if spec["train_schedule"] is None else spec["train_schedule"]
    schedule, timesteps = build(SCHEDULES, path), spec["timesteps"]
    _, key = jax.random.split(stream(config["seed"], "params"))  # as the model's own init does
    of = ", at its start" if schedule.learned else ""
    steps = "continuous time" if timesteps is None else f"T = {timesteps}"
    return Loss(
        name=f"{output}, {weighting}" + (f" in {space}-space" if space != output else ""),
        title=f"{output}, {weighting}: error in {space}-space",
        times=f"{_words(path)}{of}, {steps}",
        arguments={name: spec[name] for name in ("parameterization", "weighting", "space")}
        | {"schedule": schedule, "schedule_params": schedule.init(key), "timesteps": timesteps},
    )


def _words(spec: Any) -> str:
    """A component's name, with what arguments there is room for."""
    others = spec.items() if isinstance(spec, dict) else ()
    arguments = ", ".join(f"{key} {value}" for key, value in others if key != "name")
    return name_of(spec) + (f" ({textwrap.shorten(arguments, 60)})" if arguments else "")


def weight_table(found: EffectiveWeights) -> str:
    """A Markdown table of the weights at a few noise levels, the cleanest first."""
    lines = ["| log-SNR | own | x0 | eps | v | relative |", "|---|---|---|---|---|---|"]
    columns = np.stack([np.asarray(column) for column in found], 1)
    for i in np.unique(np.linspace(0, len(columns) - 1, LEVELS_SHOWN).round().astype(int)):
        log_snr, *values = columns[i]
        cells = [f"{log_snr:.2f}", *(f"{value:.4g}" for value in values)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
