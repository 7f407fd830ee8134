"""What is said and drawn of a trained run: its test bound, samples, the model's own pictures, loss curve."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdm_jax.trained import Trained, read_json, stream, write_json
from vdm_jax.training.evaluate import Evaluation
from vdm_jax.training.logs import read_metrics
from vdm_jax.training.pictures import loss_curve, sample_grid, strips

IMAGES_SHOWN = 36


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
    }
    saved = read_json(path) if path.exists() else {}
    same = {name for name, value in wanted.items() if saved.get(name) == value}
    evaluated = {"step", "evaluate"} <= same
    if model.refusal is not None:
        result = None
        say(f"no test bound: {model.refusal}")
    else:
        result = Evaluation(**saved["test"]) if evaluated else trained.evaluate("test")
        say(f"test: {result}")
    made = {"evaluation": path}
    if model.refusal is None:
        made["samples"] = workdir / "samples.png"
        if not ({"step", "sample"} <= same and made["samples"].exists()):
            draw_samples(trained, made["samples"])
    made |= {name: workdir / f"{name}.png" for name in model.pictures}
    if not ("step" in same and all(made[name].exists() for name in model.pictures)):
        draw_pictures(trained, workdir)
    if not (evaluated and curve.exists()):
        rows = read_metrics(workdir / "metrics.jsonl")
        loss_curve(curve, rows, test=result, title=model.components)
    if len(same) < len(wanted):
        write_json(path, wanted | {"test": None if result is None else result._asdict()})
    made |= {"loss curve": curve, "config": workdir / "config.json"}
    made["checkpoint"] = workdir / "checkpoints" / str(step)
    for name, file in made.items():
        say(f"  {name:<15} {file}")


def draw_samples(trained: Trained, path: Path) -> None:
    """Save samples of the config's number and settings beside real test images.

    Raises:
      ValueError: the model has no samples.
    """
    data, settings = trained.dataset, dict(trained.config["sample"])
    count = settings.pop("count")
    samples = trained.sample(stream(trained.config["seed"], "sample"), count)
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
        strips(paths[-1], np.asarray(rows), levels=data.levels, title=title)
    return paths


def first_images(trained: Trained, count: int) -> np.ndarray:
    """The first images of the test split."""
    images = trained.dataset.test.images
    return images[np.arange(min(count, len(images)))]
