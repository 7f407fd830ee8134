"""A short linear schedule, the parameterizations of continuous time, and keys."""

import jax

from vdm_jax.parameterizations import PARAMETERIZATIONS

CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]
FIRST, LAST = -5.0, 3.0
MILD = {"name": "linear", "gamma_min": FIRST, "gamma_max": LAST}


def keys(n: int, seed: int = 0):
    """Return n independent keys."""
    return jax.random.split(jax.random.key(seed), n)
