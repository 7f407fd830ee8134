"""CIFAR-10 with the model and hyperparameters of Kingma et al. 2021 (30.6 M parameters, no augmentation).

    TFDS_DATA_DIR=... python -m vdm_jax.main --config=configs/cifar10.py

For accelerators; not run here. The paper reports 2.65 bits/dim after 10 M steps. Compiled for a CPU, a step has
42 GiB of temporary arrays. --config.model.network.scan=True with --config.model.network.remat=save_conv reduces
them to 13 GiB, and remat=full to 9 GiB (docs/speed.md).
"""

from ml_collections import ConfigDict, config_dict

from vdm_jax.config import default


def get_config():
    config = default()
    config.data.name = "cifar10"
    config.model.network = ConfigDict(
        {
            "name": "vdm_unet",
            "channels": 128,
            "blocks": 32,
            "dropout": 0.1,
            "fourier": (7, 8),
            "dtype": "float32",
            "scan": False,
            "remat": "none",
        }
    )
    config.model.schedule.name = "learned_linear"
    config.model.base = "input"
    config.model.output_scale = "none"
    config.model.time_sampler = "uniform"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.decay_steps = config_dict.placeholder(int)
    config.optimizer.clip_norm = config_dict.placeholder(float)
    config.train.batch_size = 128
    config.train.steps = 10_000_000
    config.train.steps_per_dispatch = 10
    config.train.ema_decay = 0.9999
    config.train.ema_warmup = False
    config.train.log_every = 100
    config.train.checkpoint_every = 10_000
    config.evaluate.draws = 1
    config.evaluate.batch_size = 500
    config.sample.steps = 1000
    return config
