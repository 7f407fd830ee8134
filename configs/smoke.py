"""A tiny MLP on the embedded digits: seconds, to see that everything runs.

    python -m vdm_jax.main --config=configs/smoke.py

Seconds on 2 CPU cores; its bound means nothing.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.network = ConfigDict({"name": "mlp", "width": 64, "depth": 1, "dtype": "float32"})
    config.train.steps = 60
    config.train.steps_per_dispatch = 20
    config.train.log_every = 20
    config.train.checkpoint_every = 40
    config.evaluate.draws = 2
    config.sample.count = 16
    config.sample.steps = 20
    return config
