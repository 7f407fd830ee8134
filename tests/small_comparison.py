"""A comparison of small networks on small images, of two steps each, and networks and data of a user."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vdm_jax as vdm
from vdm_jax.comparison.setup import setup_comparison

NET = {"name": "mlp", "width": 8, "depth": 1}
FAST = {
    "steps": 2,
    "batch_size": 8,
    "draws": 1,
    "bins": 4,
    "gradient_batches": 0,
    "samples": 4,
    "sampling_steps": (),
    "network": NET,
    "progress": False,
}
FLOATS = np.random.default_rng(1).normal(0, 0.5, (40, 3)).astype(np.float32)


def images(n=40, levels=4, shape=(3, 3, 1)):
    """Return n random images of uint8."""
    return np.random.default_rng(0).integers(0, levels, (n, *shape)).astype(np.uint8)


def compare_small(**changes):
    """Compare `eps` and `v` on small images."""
    settings = FAST | {"data": images(), "levels": 4, "seeds": 2, "timesteps": 20}
    settings |= {
        "parameterizations": ("eps", "v"),
        "output_scales": ("none",),
        "weightings": ("elbo",),
    }
    return vdm.compare(**settings | changes)


def set_up(config=None, **changes):
    """Set up a comparison without training it."""
    names = ("base", "schedule", "likelihood", "optimizer")
    given = dict.fromkeys(names) | {"seeds": 2, "levels": 4, "data": images(), "network": NET}
    given |= {
        "parameterizations": ("mean", "v"),
        "output_scales": ("none", "unit_variance"),
        "timesteps": 20,
    }
    given |= {"weightings": ("elbo", "simple"), "steps": 2, "batch_size": 8, "draws": 1}
    return setup_comparison(config=config, **given | changes)


class Linen(nn.Module):
    """A Linen network of a user for images of nine pixels."""

    @nn.compact
    def __call__(self, xt, gamma_t):
        flat = jnp.concatenate([xt.reshape(len(xt), -1), gamma_t[:, None]], -1)
        return nn.Dense(9)(nn.silu(nn.Dense(4)(flat))).reshape(xt.shape)


def bare_init(key):
    """Return the parameters of a user's network that is a pair of functions."""
    return {"w": 0.01 * jax.random.normal(key, (9, 9))}
