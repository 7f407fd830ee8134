"""Improved DDPM: noise prediction on the cosine schedule, sampled with a tuned reverse variance.

    python -m vdm_jax.main --config=configs/recipes/iddpm.py

Nichol, Dhariwal 2021, arXiv:2102.09672: the cosine schedule, `simple` weights of the error of ε, uniform
steps. The paper learns the reverse variance by a second loss, L_vlb with weight 0.001; here the variance is
fitted on training examples after training (Bao et al. 2022). Further deviations: network, optimizer and data
are those of the default config; the chain has 999 latents where the paper has 1000 or 4000, without the last,
whose β is clipped; the decoder is trained by the bound's reconstruction term.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    # γ of the first and of the 999th latent of the paper's chain of 1000
    config.model.schedule = ConfigDict({"name": "cosine", "gamma_min": -10.1, "gamma_max": 12.9})
    config.model.timesteps = 998
    config.model.parameterization = "eps"
    config.model.weighting = ConfigDict({"name": "simple"})
    config.model.time_sampler = "uniform"
    config.model.likelihood = "discretized_gaussian"
    config.model.base = "zero"
    config.model.output_scale = "none"
    with config.ignore_type():
        config.sample.sampler = ConfigDict({"name": "ancestral", "variance": "fitted"})
    return config
