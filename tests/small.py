"""A tiny data set under the name "own", and a config that trains on it in a second."""

import vdm_jax as vdm
from vdm_jax.config import default
from vdm_jax.data import Split, array_dataset

TRAIN = 32


def register(images, levels):
    """Make the first 32 images the training split of "own", the others the test split."""
    data = array_dataset(
        "own",
        version="1",
        levels=levels,
        train=Split(images[:TRAIN], "train"),
        test=Split(images[TRAIN:], "test"),
    )

    def load(*, data_dir=None, train_split=None, test_split=None):
        del data_dir, train_split, test_split
        return data

    vdm.data.DATASETS["own"] = load


def small_config(*, steps=2, draws=1, seed=0, runs=None):
    config = default()
    config.seed = seed
    config.data.name = "own"
    config.model.network = {"name": "mlp", "width": 4, "depth": 1}
    config.model.base, config.model.time_sampler = "levels", "uniform"
    config.optimizer.warmup_steps = 0
    config.train.batch_size, config.train.steps = 8, steps
    config.train.log_every = config.train.checkpoint_every = 2
    config.evaluate.draws, config.sample.count, config.sample.steps = draws, 4, 2
    for name, values in (runs or {}).items():
        config.sweep[name] = values
    return config
