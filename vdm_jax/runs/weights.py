"""Report the effective weights of the training losses of a config, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.effective_weights import EffectiveWeights, effective_weights
from vdm_jax.models import Statistics, build_model, with_defaults
from vdm_jax.runs.axes import expand
from vdm_jax.runs.plots import weight_curves
from vdm_jax.runs.start import initial_schedule_params
from vdm_jax.runtime.files import check_tree, make_folder
from vdm_jax.runtime.processes import on_process_0
from vdm_jax.schedules import SCHEDULES
from vdm_jax.settings import Settings
from vdm_jax.specs import build, label_of

LEVELS_SHOWN = 9  # noise levels of a table


def weights(settings: Settings, workdir: Path, log: Callable[[str], None] = print) -> None:
    """Log and plot the effective weights of the training losses of a config; nothing is trained.

    Args:
      settings: of a run or a sweep.
      workdir: gets the plot; made if missing.
      log: gets the tables.

    Raises:
      ValueError: a mistake in the model's config, a model without noise levels.
      OSError: the folder cannot be written.
    """
    # by name: the runs of a sweep that differ only in seed, learning rate or output scale have one loss
    losses = {loss.name: loss for loss in map(_loss, expand(settings).values())}
    weights_by_loss = {name: effective_weights(**loss.arguments) for name, loss in losses.items()}
    path, times = workdir / "weights.png", next(iter(losses.values())).times

    def draw():
        try:
            check_tree(workdir)
            make_folder(workdir)
            weight_curves(path, weights_by_loss, f"schedule {times}")
        except OSError as error:
            raise OSError(
                f"workdir {workdir} cannot be written: {error.strerror or error}"
            ) from error

    on_process_0(draw)
    for name, loss in losses.items():
        log(f"{loss.title}; schedule {times}\n\n{weight_table(weights_by_loss[name])}\n")
    log(
        "Weights of squared errors. per time: in the space of the title, with t uniform; x0, eps, v: in that "
        "space, per unit of log-SNR; relative: in units of the bound's weight"
    )
    log(f"  {'weights':<15} {path}")


class Loss(NamedTuple):
    """A training loss.

    Attributes:
      name: parameterization, weighting and loss space, for the legend of the plot.
      title: the same, for the table.
      times: schedule and number of steps.
      arguments: those of `effective_weights`.
    """

    name: str
    title: str
    times: str
    arguments: dict[str, Any]


def _loss(settings: Settings) -> Loss:
    """Return the training loss of one run."""
    model, spec = settings.model, with_defaults(settings.model)
    if "parameterization" not in spec:
        raise ValueError(f"--mode=weights: {model['name']!r} has no noise levels to weigh")
    # for its messages; the weights are the same for any data, so that none need be read
    placeholder = Statistics((1,), 2, log_counts=np.zeros((1, 2), np.float32))
    build_model(model | {"likelihood": "softmax"}, placeholder)
    output, weighting = label_of(spec["parameterization"]), label_of(spec["weighting"])
    space = output if spec["loss_space"] is None else label_of(spec["loss_space"])
    path = spec["schedule"] if spec["train_schedule"] is None else spec["train_schedule"]
    schedule, timesteps = build(SCHEDULES, path), spec["timesteps"]
    params = initial_schedule_params(settings.seed, schedule)
    at_start = ", at its start" if schedule.learned else ""
    steps = "continuous time" if timesteps is None else f"T = {timesteps}"
    return Loss(
        name=f"{output}, {weighting}" + (f" in {space}-space" if space != output else ""),
        title=f"{output}, {weighting}: error in {space}-space",
        times=f"{label_of(path)}{at_start}, {steps}",
        arguments={name: spec[name] for name in ("parameterization", "weighting", "loss_space")}
        | {"schedule": schedule, "schedule_params": params, "timesteps": timesteps},
    )


def weight_table(found: EffectiveWeights) -> str:
    """Return a Markdown table of effective weights at a few noise levels, from clean to noisy."""
    lines = ["| log-SNR | per time | x0 | eps | v | relative |", "|---|---|---|---|---|---|"]
    columns = np.stack([np.asarray(column) for column in found], 1)
    for i in np.unique(np.linspace(0, len(columns) - 1, LEVELS_SHOWN).round().astype(int)):
        log_snr, *values = columns[i]
        cells = [f"{log_snr:.2f}", *(f"{value:.4g}" for value in values)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
