"""Score prediction on the embedded digits (1,500 train / 297 test images of 8×8, 17 levels).

python -m vdm_jax.main --config=configs/score.py
"""

from vdm_jax.config import default


def get_config():
    config = default()
    config.model.parameterization = "score"
    return config
