"""MNIST (60,000 train / 10,000 test images of 28×28, 256 levels), prepared by TFDS.

TFDS_DATA_DIR=... python -m vdm_jax.main --config=configs/mnist.py
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.data.name = "mnist"
    config.model.network = ConfigDict(
        {"name": "unet", "channels": (64, 64), "blocks": 2, "patch": 2, "dropout": 0.0}
    )
    config.optimizer.decay_steps = 2200
    config.train.steps = 2200
    config.train.checkpoint_every = 500
    config.evaluate.draws = 1
    config.evaluate.batch_size = 250
    return config
