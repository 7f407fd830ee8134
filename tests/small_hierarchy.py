"""Small latent-variable models of data on five levels, and encoders and decoders of a user."""

import math

import flax.linen as nn
import jax
import numpy as np

from vdm_jax.models import Statistics, mhvae
from vdm_jax.nets import Network

SHAPE, LEVELS = (2, 3), 5
STATISTICS = Statistics(SHAPE, LEVELS, 0.4, np.zeros((*SHAPE, LEVELS), np.float32))
TINY = {"name": "mlp", "width": 8, "depth": 1}
PARTS = {"encoder": TINY, "decoder": TINY}
X = np.random.default_rng(0).integers(0, LEVELS, (6, *SHAPE)).astype(np.uint8)
MILD = {"name": "linear", "gamma_min": -4.0, "gamma_max": 5.0}


def perturbed(params, scale=0.3, seed=5):
    """Return the parameters moved away from their start."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    leaves = [leaf + scale * rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, leaves)


def small_hierarchy(latents, statistics=STATISTICS, **settings):
    """Return a hierarchy whose conditionals are small networks."""
    spec = {"name": "gaussian", "latents": latents, "level": TINY, **PARTS}
    return mhvae(statistics, chain=spec, **settings)


def fixed_network(function):
    """Return a network without parameters that applies `function`."""
    return Network(
        lambda key, x, gamma_t=None, extra=None: {},
        lambda params, x, gamma_t=None, extra=None, keys=None: function(x),
    )


class Map(nn.Module):
    """A dense layer of a user, from any shape to `outputs`."""

    outputs: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        out = nn.Dense(math.prod(self.outputs))(x.reshape(len(x), -1))
        return out.reshape(len(x), *self.outputs)


def map_pair(outputs):
    """Return `Map` as a pair of init and apply."""
    module = Map(outputs)
    return module.init, module.apply
