"""Load a checkpoint of a run or of a sweep onto the available devices."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax

from vdm_jax.checks import whole_number
from vdm_jax.runs.folder import CHECKPOINTS, check_run, checked_loader, read_run
from vdm_jax.runs.setup import Job
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.paths import check_workdir
from vdm_jax.specs import choose
from vdm_jax.training.dispatch import make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.state import step_of


def load(
    workdir: str | Path,
    step: int | Literal["newest", "best"] = "newest",
    *,
    parallel: str = "auto",
    fsdp: int = 1,
) -> TrainedModel:
    """Load a checkpoint of a run onto the available devices, also while the run is training.

    Args:
      workdir: folder of the run.
      step: a step that was kept; "newest", the newest step that verifies; or "best", the step with the lowest
        test bound of those that `train.evaluate_every` evaluated. That bound has chosen the step, so it is no
        longer a test of it.
      parallel, fsdp: of `make_layout`; they may differ from those of the training.

    Raises:
      FileNotFoundError: the folder holds no run, or the run has no such checkpoint.
      ValueError: a layout that the devices do not allow, a folder of a sweep, a damaged checkpoint.
    """
    return _restore(Run, check_workdir(workdir), step, parallel, fsdp)


def load_sweep(
    workdir: str | Path,
    step: int | Literal["newest", "best"] = "newest",
    *,
    parallel: str = "auto",
    fsdp: int = 1,
) -> dict[str, TrainedModel]:
    """Load the runs of a sweep, by name; otherwise as `load`.

    "best" is the step with the lowest mean of the runs' test bounds.
    """
    return _restore(Sweep, check_workdir(workdir), step, parallel, fsdp)


def with_sections(loaded: TrainedModel | dict[str, TrainedModel], **sections: Any) -> Any:
    """Return a run, or runs by name, with other sections of the settings, such as `evaluate`."""
    if isinstance(loaded, dict):
        return {name: with_sections(run, **sections) for name, run in loaded.items()}
    return replace(loaded, settings=replace(loaded.settings, **sections))


def _restore(
    kind: type[Job],
    workdir: Path,
    step: int | Literal["newest", "best"],
    parallel: str,
    fsdp: int,
) -> Any:
    """Load a checkpoint as a `TrainedModel`, or as one `TrainedModel` for each run of a sweep."""
    if not isinstance(step, str):
        step = whole_number(step, "step", 0)
    layout = make_layout(parallel, fsdp)
    settings, statistics = read_run(workdir)
    job = kind(settings, statistics)
    abstract_state = jax.eval_shape(job.start)  # shapes and types; the arrays are read
    state_shardings = shardings(layout, abstract_state)
    with CheckpointReader(workdir / CHECKPOINTS) as store:
        if isinstance(step, str):
            restore = choose({"newest": store.restore, "best": store.restore_best}, step, "step")
            state = restore(abstract_state, shardings=state_shardings)
        else:
            state = store.restore(abstract_state, step, shardings=state_shardings)
        # after restoring: a step may be deleted meanwhile by a running process, and another one restored
        about = store.about(step_of(state))
    check_run(about, settings, statistics, workdir)
    return job.trained(state, workdir, layout, checked_loader(about, workdir))
