"""Check that a parameterization's two numbers invert its own target."""

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import alpha, sigma
from vdm_jax.elbo import training_interval
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule

INCONSISTENT = 1e-3  # of the terms of skip·x_t + out·target


def inconsistencies(
    name: str, row: Parameterization, schedule: Schedule, timesteps: int | None
) -> list[str]:
    """Return a note for a row whose two numbers do not give x_0 back from its own target."""
    params = schedule.init(jax.random.key(0))
    t = jnp.linspace(0.0, 1.0, 102)[:-1]
    steps = jax.vmap(lambda t: training_interval(schedule, params, t, timesteps)[0])(t)
    mix, target = jax.vmap(row.mix)(steps), jax.vmap(row.target)(steps)
    a, s = alpha(steps.gamma_t), sigma(steps.gamma_t)
    of_x0 = jnp.abs(mix.skip * a + mix.out * target.x0 - 1) / (1 + jnp.abs(mix.skip * a))
    of_eps = jnp.abs(mix.skip * s + mix.out * target.eps) / (1 + jnp.abs(mix.skip * s))
    off = float(jnp.max(jnp.maximum(of_x0, of_eps)))
    if off < INCONSISTENT:
        return []
    return [
        f"{name!r} is inconsistent: skip·x_t + out·target is not x_0 but off by up to {100 * off:.2g} % of its "
        "terms, so that its weight is wrong and its numbers are no bound"
    ]
