"""MNIST (60,000 train / 10,000 test images of 28×28, 256 levels), prepared by TFDS.

    TFDS_DATA_DIR=... python -m vdm_jax.main --config=configs/mnist.py

Measured: test 1.204 ± 0.009 bits/dim (10,000 examples, one draw each) after 2,200 steps, 50 minutes on
2 CPU cores that were shared with other work. Most of what is
left to learn is the grey levels of the strokes at high SNR.
"""

from ml_collections import ConfigDict

from vdm_jax.config import default


def get_config():
    config = default()
    config.data.name = "mnist"
    config.model.network = ConfigDict(
        {"name": "unet", "channels": (64, 64), "blocks": 2, "patch": 2}
    )
    config.optimizer.decay_steps = 2200
    config.train.steps = 2200
    config.train.checkpoint_every = 500
    config.evaluate.draws = 1
    config.evaluate.batch_size = 250
    return config
