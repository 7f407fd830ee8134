"""Detection of the XLA:CPU fault that compiles some of this package's sums to wrong numbers.

`vdm_jax.xla` sets a flag that avoids the fault. The flag has no effect if JAX computed anything before
`import vdm_jax`, as often happens in notebooks.
"""

import warnings
from functools import cache

import jax
import numpy as np

from vdm_jax.diffusion import Interval, bridge, posterior
from vdm_jax.gaussian import cross_entropy
from vdm_jax.typing import Array
from vdm_jax.xla import came_late

EXAMPLES = 4096  # sums over fewer examples are compiled correctly


@cache
def warn_of_wrong_reductions() -> None:
    """Warn once if compiled sums are wrong; the test costs a compilation if JAX was imported first."""
    if came_late() and jax.default_backend() == "cpu" and not _right():
        warnings.warn(
            "JAX had computed before vdm_jax was imported, so that this jaxlib compiles some sums to wrong "
            "numbers on the CPU (jax-ml/jax issue 39103); import vdm_jax before anything is computed",
            stacklevel=3,
        )


def _right() -> bool:
    """Return True if a cross-entropy compiled for many examples equals the one computed without `jit`."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, EXAMPLES, 4)).astype(np.float32)
    # γ and Δ of each example
    intervals = rng.uniform([[-10.0], [0.1]], [[3.0], [1.0]], (2, EXAMPLES)).astype(np.float32)
    compiled = jax.jit(jax.vmap(_sum))(*latents, *intervals)
    expected = jax.vmap(_sum)(*latents, *intervals)
    return bool(np.allclose(compiled, expected, rtol=1e-3, atol=1e-3))


def _sum(xr: Array, xt: Array, x0_hat: Array, gamma: Array, delta: Array) -> Array:
    before = Interval(gamma, gamma + delta, delta)
    after = Interval(gamma + delta, gamma + 2 * delta, delta)
    return cross_entropy(bridge(xr, xt, before, after), posterior(xt, x0_hat, after))
