"""The five parameterizations side by side, two seeds each, in one program: one table, one figure.

python -m vdm_jax.main --config=configs/side_by_side.py
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.runs.parameterizations = ("mean", "x0", "eps", "v", "score")
    config.runs.seeds = (0, 1)
    config.model.timesteps = 1000  # a mean has no form in continuous time
    config.model.head = "raw"
    config.model.network = ConfigDict({"name": "mlp", "width": 256, "depth": 3, "dropout": 0.1})
    config.train.steps_per_dispatch = 20
    config.train.log_every = 20
    return config
