"""Load a checkpoint of a run, or of a sweep, on the devices that are here."""

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
    """Load a checkpoint of a run, on the devices that are here; the run may be going on.

    Args:
      workdir: the run's folder.
      step: one that was kept; "newest": that is whole; "best": with the lowest bound of those that
        `train.evaluate_every` evaluated on the test split, which is then no longer a test.
      parallel, fsdp: of `make_layout`; not necessarily those that it was trained with.

    Raises:
      FileNotFoundError: there is no run, or none with that checkpoint.
      ValueError: a layout that the devices do not allow, a folder of runs side by side, a damaged checkpoint.
    """
    return _restore(Run, check_workdir(workdir), step, parallel, fsdp)


def load_sweep(
    workdir: str | Path,
    step: int | Literal["newest", "best"] = "newest",
    *,
    parallel: str = "auto",
    fsdp: int = 1,
) -> dict[str, TrainedModel]:
    """Load runs that were trained side by side, by name; otherwise as `load`. "best" is so on average."""
    return _restore(Sweep, check_workdir(workdir), step, parallel, fsdp)


def _restore(
    kind: type[Job],
    workdir: Path,
    step: int | Literal["newest", "best"],
    parallel: str,
    fsdp: int,
) -> Any:
    """Load a checkpoint as a `TrainedModel`, or as one for each run of a sweep."""
    if not isinstance(step, str):
        step = whole_number(step, "step", 0)
    layout = make_layout(parallel, fsdp)
    config, statistics = read_run(workdir)
    job = kind(config, statistics)
    like = jax.eval_shape(job.start)
    places = shardings(layout, like)
    with CheckpointReader(workdir / CHECKPOINTS) as store:
        if isinstance(step, str):
            newest = choose({"newest": store.restore, "best": store.restore_best}, step, "step")
            state = newest(like, shardings=places)
        else:
            state = store.restore(like, step, shardings=places)
        about = store.about(step_of(state))
    check_run(about, config, statistics, workdir)
    return job.trained(state, workdir, layout, checked_loader(about, workdir))
