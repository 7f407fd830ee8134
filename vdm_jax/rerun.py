"""Bring back the state, key and batch of any step of a run, to compute again what was computed there."""

from pathlib import Path

import jax
import jax.numpy as jnp

from vdm_jax.data import level_counts, load_dataset
from vdm_jax.jobs import One
from vdm_jax.prepare import find
from vdm_jax.trained import Trained, about_data, check_data
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.layout import shardings
from vdm_jax.training.parallel import dispatcher, make_layout
from vdm_jax.training.state import step_of
from vdm_jax.typing import Batch, Key


def replay(workdir: str | Path, step: int) -> tuple[Trained, Key, Batch]:
    """Train again, in memory, from the last checkpoint before a step up to it.

    Nothing is written. The state is that of the run, bit for bit, on the devices and the versions that it was
    trained with.

    Args:
      workdir: of a single run.
      step: counted from 1, as in the log and in messages.

    Returns:
      (run, key, batch): `run.model.loss(run.state.params, key, batch)` is the loss of that step.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: a step that the run does not have, other data than those that it was trained on.
    """
    workdir = Path(workdir)
    asked = find(One, workdir)
    config, train = asked.config, asked.config["train"]
    if not 1 <= step <= train["steps"]:
        raise ValueError(f"step: expected one of 1 to {train['steps']}, found {step}")
    layout = make_layout(train["parallel"], train["fsdp"])
    like = jax.eval_shape(asked.start)
    places = shardings(layout, like)
    dataset = load_dataset(**config["data"])
    with CheckpointStore(workdir / "checkpoints", read_only=True) as store:
        before = [number for number in store.whole() if number < step]
        if before:
            here = about_data(dataset, level_counts(dataset.train.images, dataset.levels))
            check_data(store.about(before[-1]), here, store.folder)
            state = store.restore(like, before[-1], shardings=places)
        else:
            state = jax.jit(asked.start, out_shardings=places)()
    start = step_of(state)
    options = {"batch_size": train["batch_size"], "stack": train["steps_per_dispatch"]}
    stacks = asked.batches(dataset.train, start_step=start, stop_step=step - 1, **options)
    ema = {name: train[name] for name in ("ema_decay", "ema_warmup")}
    run = dispatcher(layout, asked.step(layout, **ema), state, options["stack"])
    for stack in stacks:
        state, _ = run(state, stack)
    own = asked.batches(
        dataset.train, start_step=step - 1, stop_step=step, **options | {"stack": 1}
    )
    (batch,) = [jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), one) for one in own]
    key = jax.random.fold_in(state.key, step - 1)
    return asked.trained(state, workdir, layout), key, batch
