"""Prediction of the posterior mean on the embedded digits, T = 1000 (it has no continuous-time form).

python -m vdm_jax.main --config=configs/mean.py
"""

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.parameterization = "mean"
    config.model.timesteps = 1000
    return config
