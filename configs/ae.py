"""The plain autoencoder: the VAE of `vae.py` without its prior term, eq. (2).

    python -m vdm_jax.main --config=configs/ae.py

It has no likelihood and no samples, and the report says so; it writes reconstructions and interpolations. Under
a minute on 2 CPU cores.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default_vae


def get_config():
    config = default_vae()
    config.model.prior_weight = 0.0
    config.sample = ConfigDict({"count": 64})
    return config
