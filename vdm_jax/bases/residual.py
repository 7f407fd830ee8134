"""The error of a base that has no closed form, measured on a sample of the data."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases.base import Base
from vdm_jax.diffusion import marginal
from vdm_jax.parameterizations import Preconditioning, TargetCoefficients
from vdm_jax.typing import Data, Key, Numbers


def measure_residual(
    base: Base, x0: Data, key: Key, gammas: Numbers
) -> tuple[np.ndarray, np.ndarray]:
    """Measure log √E[(x_0 − b)²] of an informative base on a sample `x0` [n, *d], for `deviation`.

    Returns:
      (gammas, log deviations), float32 vectors. Deviations are at least 10⁻³ σ, because smaller ones cannot be
      estimated from a finite sample.
    """
    # informative bases ignore them
    preconditioning = Preconditioning(jnp.zeros(()), jnp.zeros(()))
    target = TargetCoefficients(jnp.zeros(()), jnp.zeros(()))

    def mean_square_error(key, x0, gamma):
        q = marginal(x0, gamma)
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
        return jnp.mean(jnp.square(base.error(x0, eps, xt, gamma, preconditioning, target)))

    @jax.jit
    def log_deviation(gamma, key):
        keys = jax.random.split(key, x0.shape[0])
        mean_square = jnp.mean(jax.vmap(mean_square_error, (0, 0, None))(keys, x0, gamma))
        return 0.5 * jnp.log(jnp.maximum(mean_square, 1e-6 * jax.nn.sigmoid(gamma)))

    gammas = np.asarray(gammas, np.float32)
    # one key for all noise levels: with the same noise the curve is smooth
    deviations = [log_deviation(jnp.asarray(gamma), key) for gamma in gammas]
    return gammas, np.asarray(deviations, np.float32)
