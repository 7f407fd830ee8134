"""The plain autoencoder: the VAE of `vae.py` without its prior term, eq. (2).

    python -m vdm_jax.main --config=configs/ae.py

It has no likelihood and no samples, and says so; it writes reconstructions and interpolations. Under a minute
on 2 CPU cores.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    network = {"name": "mlp", "width": 256, "depth": 2, "dropout": 0.5}
    config.model = ConfigDict(
        {
            "name": "vae",
            "latent": 16,
            "encoder": dict(network),
            "decoder": dict(network),
            "likelihood": "histogram",
            "draws": 1,
            "prior_weight": 0.0,
        }
    )
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1.0
    config.optimizer.decay_steps = 2000
    config.train.batch_size = 128
    config.train.steps = 2000
    config.train.steps_per_dispatch = 20
    config.train.log_every = 50
    config.train.checkpoint_every = 1000
    config.evaluate.batch_size = 297
    config.sample = ConfigDict({"count": 64})
    return config
