"""Models of three-dimensional Gaussian data, and second moments that differ widely between bins of times."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.elbo import training_interval
from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import linear
from vdm_jax.time_samplers.bins import bin_edges

SHAPE, DIM = (3,), 3
FIRST, LAST = -4.0, 5.0
ENDS = {"gamma_min": FIRST, "gamma_max": LAST}
MILD = {"name": "linear"} | ENDS
CHAINS = [None, 1, 7, 1000]
BITS = 1 / (DIM * math.log(2))
RUGGED = np.random.default_rng(0).lognormal(0, 2, 64).astype(np.float32)


def gaussian_model(network, timesteps=None, second_moment=0.5, **settings):
    """Return a VDM of continuous data with the parameterization `v` and a short linear schedule."""
    settings = {"parameterization": "v", "schedule": MILD, "likelihood": "gaussian"} | settings
    statistics = Statistics(SHAPE, None, second_moment)
    return vdm(statistics, network=network, timesteps=timesteps, **settings)


def scaled(denoise):
    """Return a network of `denoise` times a parameter that starts at 1."""
    return Network(
        lambda key, xt, gamma_t, extra=None: jnp.ones(()),
        lambda scale, xt, gamma_t, extra=None, keys=None: scale * jax.vmap(denoise)(xt, gamma_t),
    )


def zero(xt, gamma_t):
    """Predict zero everywhere."""
    return 0 * xt


def keys(n, seed=0):
    """Return n independent keys."""
    return jax.random.split(jax.random.key(seed), n)


def moments_for(moments, timesteps):
    """Return as many of the moments as a chain has bins."""
    count = len(bin_edges(len(moments), timesteps)) - 1
    return jnp.asarray(moments[:count], float)


def matching_density(name, t, timesteps, second_moment):
    """Return the expected matching term of F = 0 per dimension, in float64."""
    with jax.enable_x64(True):
        row, path = PARAMETERIZATIONS[name](), linear(**ENDS)
        step, rate = jax.vmap(lambda t: training_interval(path, {}, t, timesteps))(t)
        out, target = row(step).out, row.target(step)
        square = out**2 * (second_moment * target.x0**2 + target.eps**2)
        return np.asarray(0.5 * rate * jnp.exp(-step.gamma_t) * square)
