"""Bring back the state, key and batch of any step of a run, to compute again what was computed there."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from vdm_jax.checks import whole_number
from vdm_jax.models import with_model_state
from vdm_jax.runs.folder import CHECKPOINTS, check_run, check_statistics, checked_loader, read_run
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.paths import check_workdir
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.state import step_of
from vdm_jax.typing import Batch, Key


def replay(workdir: str | Path, step: int) -> tuple[TrainedModel, Key, Batch]:
    """Train again, in memory, from the last checkpoint before a step up to it.

    Nothing is written. The state is that of the run, bit for bit, on the devices and the versions that it was
    trained with.

    Args:
      workdir: of a single run.
      step: counted from 1, as in the log and in messages.

    Returns:
      (run, key, batch): `run.model.loss(run.state.params, key, batch)` is the loss of that step, whose model
        state the model holds.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: a step that the run does not have, other data than those that it was trained on.
    """
    workdir = check_workdir(workdir)
    config, statistics = read_run(workdir)
    job = Run(config, statistics)
    train = job.settings.train
    step = whole_number(step, "step", 1, train.steps)
    layout = make_layout(train.parallel, train.fsdp)
    like = jax.eval_shape(job.start)
    places = shardings(layout, like)
    with CheckpointReader(workdir / CHECKPOINTS) as store:
        steps = store.whole()
        # a run that diverged before its first checkpoint has none: then the data alone tell
        about = store.about(steps[-1]) if steps else {"data": None}
        if steps:
            check_run(about, config, statistics, workdir)
        before = [number for number in steps if number < step]
        if before:
            state = store.restore(like, before[-1], shardings=places)
        else:
            state = jax.jit(job.start, out_shardings=places)()
    load = checked_loader(about, workdir)
    dataset = load(config["data"])
    if not steps:
        check_statistics(statistics, statistics_of(config, dataset), workdir)
    start = step_of(state)
    size, stack = train.batch_size, train.steps_per_dispatch
    stacks = job.batches(
        dataset.train, batch_size=size, stack=stack, start_step=start, stop_step=step - 1
    )
    run = dispatcher(layout, job.step(layout), state, stack)
    for stack in stacks:
        state, _ = run(state, stack)
    own = job.batches(dataset.train, batch_size=size, stack=1, start_step=step - 1, stop_step=step)
    (batch,) = [jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), one) for one in own]
    key = jax.random.fold_in(state.key, step - 1)
    run = job.trained(state, workdir, layout, load)
    return replace(run, model=with_model_state(run.model, state.model_state)), key, batch
