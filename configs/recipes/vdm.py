"""VDM: the bound in continuous time, with a learned schedule.

    python -m vdm_jax.main --config=configs/recipes/vdm.py

Kingma, Salimans, Poole, Ho 2021, arXiv:2107.00630: noise prediction with the base ε̂ = x_t and Fourier
features of x_t, a monotone network as schedule, trained on the variance of the loss, stratified times,
ancestral samples. Deviations: network, optimizer and data are those of the default config; the features are
for few levels; configs/cifar10.py has the network of the paper.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.network.fourier = (3, 4)
    config.model.schedule = ConfigDict({"name": "learned_monotone"})
    config.model.parameterization = "eps"
    config.model.base = "input"
    config.model.output_scale = "none"
    config.model.time_sampler = "uniform"
    return config
