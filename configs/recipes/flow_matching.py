"""Flow matching: the velocity of the straight path, with uniform times on it.

    python -m vdm_jax.main --config=configs/recipes/flow_matching.py

Lipman et al. 2023, arXiv:2210.02747; Liu, Gong, Liu 2023, arXiv:2209.03003: the plain squared error of ε −
x_0 at uniform times of the path from data to noise, sampled by Euler's method. The latents are those of the
path divided by α + σ. Deviations: network, optimizer and data are those of the default config; the path ends
at σ/(α + σ) = 0.0013 and 0.999, between which the bound is exact.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.schedule = ConfigDict({"name": "rectified", "gamma_min": -13.3, "gamma_max": 13.8})
    config.model.parameterization = "flow"
    config.model.weighting = ConfigDict({"name": "simple"})
    config.model.time_sampler = "uniform"
    config.model.base = "zero"
    config.model.output_scale = "none"
    config.sample.sampler = "euler"
    return config
