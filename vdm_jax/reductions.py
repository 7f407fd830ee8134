"""Does XLA compile this package's sums to right numbers here? See `vdm_jax.xla` for those that it does not.

Its flag comes too late where JAX had computed something before `import vdm_jax`, as notebooks do.
"""

import warnings
from functools import cache

import jax
import numpy as np

from vdm_jax.diffusion import Interval, bridge, posterior
from vdm_jax.gaussian import cross_entropy
from vdm_jax.typing import Array
from vdm_jax.xla import came_late

EXAMPLES = 4096  # fewer come out right


@cache
def warn_of_wrong_reductions() -> None:
    """Warn, once, where a compiled sum is another number; costs a compilation if JAX was imported first."""
    if came_late() and jax.default_backend() == "cpu" and not _right():
        warnings.warn(
            "JAX had computed before vdm_jax was imported, so that this jaxlib compiles some sums to wrong "
            "numbers on the CPU (jax-ml/jax issue 39103); import vdm_jax before anything is computed",
            stacklevel=3,
        )


def _right() -> bool:
    """Return True if a cross-entropy, compiled for many examples, equals that of each alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, EXAMPLES, 4)).astype(np.float32)
    at = rng.uniform([[-10.0], [0.1]], [[3.0], [1.0]], (2, EXAMPLES)).astype(np.float32)
    found, expected = jax.jit(jax.vmap(_sum))(*x, *at), jax.vmap(_sum)(*x, *at)
    return bool(np.allclose(found, expected, rtol=1e-3, atol=1e-3))


def _sum(xr: Array, xt: Array, x0_hat: Array, gamma: Array, delta: Array) -> Array:
    before = Interval(gamma, gamma + delta, delta)
    after = Interval(gamma + delta, gamma + 2 * delta, delta)
    return cross_entropy(bridge(xr, xt, before, after), posterior(xt, x0_hat, after))
