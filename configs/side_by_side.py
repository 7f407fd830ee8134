"""The five parameterizations side by side, two seeds each, in one program: one table, one figure.

    python -m vdm_jax.main --config=configs/side_by_side.py

Measured: test bits/dim 2.449 (mean), 2.078 (x0), 2.043 (eps), 2.044 (v), 2.069 (score), standard
errors over the two seeds below 0.01, after 1,500 steps of an MLP with unscaled outputs, T = 1000; a minute
and a half on 2 CPU cores.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.sweep.parameterizations = ("mean", "x0", "eps", "v", "score")
    config.sweep.seeds = (0, 1)
    config.model.timesteps = 1000  # `mean` has no continuous-time form
    config.model.output_scale = "none"
    config.model.time_sampler = "uniform"  # shared by all runs
    config.model.network = ConfigDict(
        {"name": "mlp", "width": 256, "depth": 3, "dropout": 0.1, "dtype": "float32"}
    )
    config.train.steps_per_dispatch = 20
    config.train.log_every = 20
    return config
