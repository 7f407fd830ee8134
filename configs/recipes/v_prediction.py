"""Velocity prediction with the plain squared error of v, sampled by DDIM.

    python -m vdm_jax.main --config=configs/recipes/v_prediction.py

Salimans, Ho 2022, arXiv:2202.00512: the cosine schedule, v, and the weights SNR + 1 of the error of x_0,
which are `simple` weights of the error of v; deterministic samples. Deviations: network, optimizer and data
are those of the default config; the schedule ends at finite noise levels; the model is the teacher, without
distillation.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.schedule = ConfigDict({"name": "cosine", "gamma_min": -13.3, "gamma_max": 13.3})
    config.model.parameterization = "v"
    config.model.weighting = ConfigDict({"name": "simple"})
    config.model.time_sampler = "uniform"
    config.model.base = "zero"
    config.model.output_scale = "none"
    config.sample.sampler = "ddim"
    return config
