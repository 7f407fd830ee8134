"""A small VDM of data on four levels whose frequencies are known, and networks without parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.parameterizations import PARAMETERIZATIONS

LEVELS, SHAPE = 4, (2, 3)
DIM = math.prod(SHAPE)
BITS = 1 / (DIM * math.log(2))
FIRST, LAST = -4.0, 5.0
ENDS = {"gamma_min": FIRST, "gamma_max": LAST}
MILD = {"name": "linear"} | ENDS
NETWORK = {"name": "mlp", "width": 16, "depth": 1}
ROWS = [row() for row in PARAMETERIZATIONS.values()]
CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]
FREQUENCIES = np.random.default_rng(3).dirichlet(np.full(LEVELS, 0.7), SHAPE)
STATISTICS = Statistics(SHAPE, LEVELS, 0.4, np.log(FREQUENCIES).astype(np.float32))
NO_PARAMS = {"network": {}, "schedule": {}}


def levels_data(n, seed=0):
    """Draw uint8 examples [n, *SHAPE], each position from its own frequencies."""
    uniform = np.random.default_rng(seed).uniform(size=(n, *SHAPE, 1))
    return np.sum(uniform > np.cumsum(FREQUENCIES, -1)[..., :-1], -1).astype(np.uint8)


def model_of(**settings):
    """Return a VDM of the known frequencies with a small network and a short linear schedule."""
    return vdm(STATISTICS, **{"network": NETWORK, "schedule": MILD} | settings)


def init_params(model):
    """Return parameters of the model's shapes, zero where the network starts at zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = np.zeros(leaf.shape) if "'out'" in str(path) else rng.standard_normal(leaf.shape)
        return jnp.asarray(0.1 * values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def keys(n, seed=0):
    """Return n independent keys."""
    return jax.random.split(jax.random.key(seed), n)


def constant_network(denoise):
    """Return a network without parameters from a function of one example."""
    return Network(
        lambda key, xt, gamma_t, extra=None: {},
        lambda params, xt, gamma_t, extra=None, keys=None: jax.vmap(denoise)(xt, gamma_t),
    )


def zeros_of(xt, gamma_t):
    """Predict zero everywhere."""
    return jnp.zeros_like(xt)
