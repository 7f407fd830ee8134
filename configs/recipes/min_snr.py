"""Min-SNR: prediction of x_0 with the weights min(SNR, 5).

    python -m vdm_jax.main --config=configs/recipes/min_snr.py

Hang et al. 2023, arXiv:2303.09556: the cosine schedule, x_0, uniform times, samples of Heun's method.
Deviations: network, optimizer and data are those of the default config; continuous time in place of 1000
steps; the schedule ends at finite noise levels.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.schedule = ConfigDict({"name": "cosine", "gamma_min": -13.3, "gamma_max": 13.3})
    config.model.parameterization = "x0"
    config.model.weighting = ConfigDict({"name": "min_snr", "limit": 5.0})
    config.model.time_sampler = "uniform"
    config.model.base = "zero"
    config.model.output_scale = "none"
    config.sample.sampler = "heun"
    config.sample.steps = 50
    return config
