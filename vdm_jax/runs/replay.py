"""Recompute any step of a run: restore its state, its key and its batch."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from vdm_jax.checks import whole_number
from vdm_jax.models import with_model_state
from vdm_jax.runs.folder import CHECKPOINTS, check_run, check_statistics, checked_loader, read_run
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.start import layout_of
from vdm_jax.runs.sweep import Run
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.paths import check_workdir
from vdm_jax.training.dispatch import dispatcher
from vdm_jax.training.layout import shardings
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.state import step_of
from vdm_jax.typing import Batch, Key


def replay(workdir: str | Path, step: int) -> tuple[TrainedModel, Key, Batch]:
    """Train in memory from the last checkpoint before a step, up to that step.

    Nothing is written. The state equals that of the run bit for bit, on the devices and versions of the run.

    Args:
      workdir: folder of a single run.
      step: counted from 1, as in the log and in messages.

    Returns:
      (run, key, batch): `run.model.loss(run.state.params, key, batch)` is the loss of that step; the model
        holds the model state of the step.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: a step that the run does not have, data other than those that it was trained on.
    """
    workdir = check_workdir(workdir)
    settings, statistics = read_run(workdir)
    job, train = Run(settings, statistics), settings.train
    step = whole_number(step, "step", 1, train.steps)
    layout = layout_of(train)
    abstract_state = jax.eval_shape(job.start)
    state_shardings = shardings(layout, abstract_state)
    with CheckpointReader(workdir / CHECKPOINTS) as store:
        steps = store.whole()
        # a run that diverged before its first checkpoint has none: its statistics are checked below instead
        about = store.about(steps[-1]) if steps else {"data": None}
        if steps:
            check_run(about, settings, statistics, workdir)
        earlier = [saved for saved in steps if saved < step]
        if earlier:
            state = store.restore(abstract_state, earlier[-1], shardings=state_shardings)
        else:
            state = jax.jit(job.start, out_shardings=state_shardings)()
    load = checked_loader(about, workdir)
    dataset = load(settings.data)
    if not steps:
        check_statistics(statistics, statistics_of(settings.model, dataset), workdir)
    size = train.batch_size
    # the stack size of the run: another one is another program, which may round differently
    stack_size = train.steps_per_dispatch
    stacks = job.batches(
        dataset.train,
        batch_size=size,
        stack=stack_size,
        start_step=step_of(state),
        stop_step=step - 1,
    )
    train_stack = dispatcher(layout, job.step(layout), state, stack_size)
    for stack in stacks:
        state, _ = train_stack(state, stack)
    last = job.batches(dataset.train, batch_size=size, stack=1, start_step=step - 1, stop_step=step)
    (batch,) = [jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stack) for stack in last]
    key = jax.random.fold_in(state.key, step - 1)  # the key that the train step gives to the loss
    run = job.trained(state, workdir, layout, load)
    return replace(run, model=with_model_state(run.model, state.model_state)), key, batch
