"""DDPM: noise prediction with the plain squared error on a chain of 1000 latents.

    python -m vdm_jax.main --config=configs/recipes/ddpm.py

Ho, Jain, Abbeel 2020, arXiv:2006.11239: linear betas, `simple` weights of the error of ε, uniform steps, the
discretized Gaussian as decoder, ancestral samples with the variance of the posterior. A chain of 1000 latents
is 999 matching terms. Deviations: network, optimizer and data are those of the default config; the decoder is
trained by the bound's reconstruction term, where the paper gives the first latent the same weight as the
others.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.schedule = ConfigDict(
        {"name": "linear_betas", "steps": 1000, "first": 1e-4, "last": 0.02}
    )
    config.model.timesteps = 999
    config.model.parameterization = "eps"
    config.model.weighting = ConfigDict({"name": "simple"})
    config.model.time_sampler = "uniform"
    config.model.likelihood = "discretized_gaussian"
    config.model.base = "zero"
    config.model.output_scale = "none"
    config.sample.steps = 999
    return config
