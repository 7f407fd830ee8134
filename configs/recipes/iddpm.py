"""Improved DDPM: noise prediction on the cosine schedule, sampled with a tuned reverse variance.

    python -m vdm_jax.main --config=configs/recipes/iddpm.py

Nichol, Dhariwal 2021, arXiv:2102.09672: the cosine schedule, `simple` weights of the error of ε, uniform
steps. The paper learns the reverse variance by a second loss, L_vlb with weight 0.001; here the variance is
fitted on training examples after training (Bao et al. 2022). Further deviations: network, optimizer and data
are those of the default config; the ends of the schedule are those of the paper's chain of 1000 latents.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    # γ of the first latent, and of the last but one: the last β is clipped
    config.model.schedule = ConfigDict({"name": "cosine", "gamma_min": -10.1, "gamma_max": 12.9})
    config.model.timesteps = 999
    config.model.parameterization = "eps"
    config.model.weighting = ConfigDict({"name": "simple"})
    config.model.time_sampler = "uniform"
    config.model.likelihood = "discretized_gaussian"
    config.model.base = "zero"
    config.model.output_scale = "none"
    with config.ignore_type():
        config.sample.sampler = ConfigDict({"name": "ancestral", "variance": "fitted"})
    return config
