"""The start of a run: its data, its devices, its random streams and its initial state."""

import jax
import optax

from vdm_jax.data import Dataset, load_dataset
from vdm_jax.models import Model
from vdm_jax.schedules import Schedule
from vdm_jax.settings import DataSettings, TrainSettings
from vdm_jax.specs import located
from vdm_jax.training.dispatch import check_batch, make_layout
from vdm_jax.training.layout import Layout
from vdm_jax.training.state import TrainState, init_state
from vdm_jax.typing import Array, Key, Params

STREAMS = {"params": 0, "train": 1, "evaluate": 2, "sample": 3, "fit": 4}
"""Numbers folded into the seed of a run, for independent randomness of its parts."""


def load_data(settings: DataSettings) -> Dataset:
    """Load the data of a run.

    Raises:
      ValueError, OSError: those of `load_dataset`, with the path config.data.
    """
    with located("config.data", vars(settings)):
        return load_dataset(**vars(settings))


def layout_of(settings: TrainSettings) -> Layout:
    """Return the layout of a run on the available devices.

    Raises:
      ValueError: a layout that the devices do not allow, or devices that cannot divide a batch.
    """
    with located("config.train", vars(settings)):
        layout = make_layout(settings.parallel, settings.fsdp)
        check_batch(layout, settings.batch_size)
    return layout


def stream(seed: int | Array, name: str) -> Key:
    """Return the key of one of the `STREAMS` of a run; the seed may be traced."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def initial_schedule_params(seed: int, schedule: Schedule) -> Params:
    """Return the params of the schedule of a diffusion model in the state that training starts from."""
    _, key = jax.random.split(stream(seed, "params"))
    return schedule.init(key)


def fresh(seed: int | Array, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state that training starts from; the seed may be traced."""
    params = model.init(stream(seed, "params"))
    state = model.init_model_state(params)
    return init_state(params, optimizer, stream(seed, "train"), model_state=state)
