"""Check that skip and out of a parameterization invert its target."""

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import alpha, sigma
from vdm_jax.elbo import training_interval
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule

TOLERANCE = 1e-3  # relative to the terms of skip·x_t + out·target, whose sum may cancel


def inconsistencies(
    name: str, parameterization: Parameterization, schedule: Schedule, timesteps: int | None
) -> list[str]:
    """Return a list with a note if skip·x_t + out·target is not x_0, else an empty list."""
    params = schedule.init(jax.random.key(0))
    times = jnp.linspace(0.0, 1.0, 102)[:-1]
    intervals = jax.vmap(lambda t: training_interval(schedule, params, t, timesteps)[0])(times)
    skip, out = jax.vmap(parameterization)(intervals)
    target = jax.vmap(parameterization.target)(intervals)
    # the coefficients of x_0 and ε in skip·(α x_0 + σ ε) + out·target, which should be 1 and 0
    skip_x0, skip_eps = skip * alpha(intervals.gamma_t), skip * sigma(intervals.gamma_t)
    error_x0 = jnp.abs(skip_x0 + out * target.x0 - 1) / (1 + jnp.abs(skip_x0))
    error_eps = jnp.abs(skip_eps + out * target.eps) / (1 + jnp.abs(skip_eps))
    error = float(jnp.max(jnp.maximum(error_x0, error_eps)))
    if error < TOLERANCE:
        return []
    return [
        f"{name!r} is inconsistent: skip·x_t + out·target differs from x_0 by up to {100 * error:.2g} % of its "
        "terms, so that its weight is wrong and its numbers are no bound"
    ]
