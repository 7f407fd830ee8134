"""EDM: its preconditioning, its weights, its density of noise levels, and its sampler.

    python -m vdm_jax.main --config=configs/recipes/edm.py

Karras, Aittala, Aila, Laine 2022, arXiv:2206.00364: the base `gaussian` is the skip connection c_skip, and
the output scale `unit_variance` is c_out, for the second moment σ_d² of the data. Heun's method on the
paper's grid of 18 noise levels: 17 steps of two predictions between σ/α = 80 and 0.002, and the prediction of
the data. Deviations: network, optimizer and data are those of the default config; σ_d is that of the digits,
0.8, where the paper has 0.5; the network gets the variance-preserving x_t, which is the paper's c_in y
times a factor between 0.8 and 1; a tenth of the training times is uniform, with the weights of the same loss.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    # σ/α from 0.002 to 80
    config.model.schedule = ConfigDict({"name": "linear", "gamma_min": -12.429, "gamma_max": 8.764})
    config.model.parameterization = "x0"
    config.model.base = "gaussian"
    config.model.output_scale = "unit_variance"
    config.model.weighting = ConfigDict({"name": "edm", "sigma_data": 0.8})
    config.model.time_sampler = "lognormal_sigma"
    config.sample.sampler = "heun"
    config.sample.grid = "karras"
    config.sample.steps = 17
    return config
