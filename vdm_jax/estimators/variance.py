"""Variances of the reverse process, eq. (24): p(x_s | x_t) = N(mean of (9) with x̂_0, σ_q² (1 + r)).

q(x_s | x_t, x_0) has the variance σ_q² = σ_s² (1 − e^{−Δ}). The best reverse variance is larger, because x_0 is
not known: its r is the mean of

    ρ = expm1(Δ) (ε − ε̂)² = expm1(Δ) e^{−γ_t} (x_0 − x̂_0)²

Any r > −1 gives a bound, but not an r that is measured on the evaluated examples: the bound would then be of a
model that has seen them. Related: Bao et al. 2022, arXiv 2201.06503.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_callable, check_real, is_traced
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Process, corrupt
from vdm_jax.keys import fold_each
from vdm_jax.samplers import FITTED, log_excess
from vdm_jax.typing import Array, Int, Keys, Reals

NODES = 64
"""The largest number of noise levels at which the variance is measured; it is interpolated between them."""

Excess = Callable[[Interval, Int[Array, ""]], Reals]
"""(interval, i) -> r of the step from i/T to (i + 1)/T, a scalar or an array [*d]."""


def residual(interval: Interval, error: Array) -> Array:
    """Return δ = (μ_q − μ_p)/σ_q of one step, elementwise, from the error x_0 − x̂_0 of one example."""
    # equal to √expm1(Δ) e^{−γ_t/2}, without the overflow of expm1
    scale = jnp.sqrt(-jnp.expm1(-interval.delta)) * jnp.exp(-0.5 * interval.gamma_s)
    # selects before multiplying: on a flat stretch of the schedule, x̂_0 of `mean` may overflow
    return scale * jnp.where(interval.delta == 0, 0, error)


def squared_residual(interval: Interval, error: Array) -> Array:
    """Return ρ = δ², elementwise."""
    return jnp.square(residual(interval, error))


class ReverseVariance:
    """The variance of the reverse process in the argument `variance` of an estimator.

    Args:
      variance: r. None is 0; a function maps γ_t to r; numbers of shape [T] or [T, *d] have an r for each
        step, beginning with the least noisy one; numbers of shape [] or [*d] are used for all steps; "fitted"
        is a number for each step that is measured on training examples.
      timesteps: T.

    Raises:
      ValueError: another name than "fitted", or a number that is not above −1.
      TypeError: not a name, a function or real numbers.
    """

    def __init__(self, variance: Any, timesteps: int):
        self.timesteps = timesteps
        self.given: Any  # numbers, a function, or None for "fitted"
        self.name = None if variance is None else "given"
        self.fit: Callable[[Process, Array, Keys], Array] | None = None
        if variance is None:
            self.given = 0.0
        elif isinstance(variance, str):
            if variance != FITTED:
                raise ValueError(
                    f"variance: expected {FITTED!r}, numbers or a function, found {variance!r}"
                )
            self.name, self.given = FITTED, None
            self.fit = partial(squared_errors, timesteps=timesteps)
        elif callable(variance):
            check_callable(variance, ("gamma_t",), "variance")
            self.given = variance
        else:
            self.given = variance if hasattr(variance, "dtype") else np.asarray(variance)
            check_real(self.given, "variance")
            values = np.zeros(1) if is_traced(variance) else np.asarray(self.given)
            if not np.all((values > -1) & np.isfinite(values)):
                raise ValueError("variance: expected finite numbers above −1, found others")

    @property
    def words(self) -> str:
        """The variance in words, for reports."""
        return "" if self.name is None else f" with {self.name} variance"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless numbers are those of data of a shape [*d]."""
        shapes = (), shape, (self.timesteps,), (self.timesteps, *shape)
        found = jnp.shape(self.given) if hasattr(self.given, "dtype") else ()
        if found not in shapes:
            expected = ", ".join(map(str, dict.fromkeys(shapes)))
            raise ValueError(f"variance: expected one of the shapes {expected}, found {found}")

    def excess(self, process: Process, shape: tuple[int, ...], fitted: Array | None) -> Excess:
        """Return r as a function of the step.

        Args:
          process: the process of the model.
          shape: [*d] of one example.
          fitted: the mean of `fit` over training examples, for "fitted".

        Raises:
          ValueError: "fitted" without training examples, or a function whose result has another shape.
        """
        if self.given is None:
            if fitted is None:
                raise ValueError(
                    "variance: 'fitted' is measured on the training examples of a run, expected numbers or a "
                    "function of γ_t"
                )
            log_r = log_excess(node_levels(process, self.timesteps), fitted)
            return lambda interval, i: jnp.exp(log_r(interval))
        if callable(self.given):
            return partial(self._evaluate, shape)
        r = jnp.asarray(self.given, jnp.result_type(float))
        if r.shape in ((self.timesteps,), (self.timesteps, *shape)):
            return lambda interval, i: r[i]
        return lambda interval, i: r

    def _evaluate(self, shape: tuple[int, ...], interval: Interval, i: Array) -> Array:
        """Return r of a function, and check its shape."""
        del i
        r = jnp.asarray(self.given(interval.gamma_t))
        if r.shape not in ((), shape):
            raise ValueError(
                f"variance: expected a function to shape () or {shape}, found {r.shape}"
            )
        return r


def nodes(timesteps: int) -> np.ndarray:
    """Return the steps at which the variance is measured, at most `NODES` of them."""
    evenly_spaced = np.linspace(0, timesteps - 1, min(timesteps, NODES))
    return np.unique(evenly_spaced.round().astype(np.int32))


def squared_errors(process: Process, x0: Array, keys: Keys, timesteps: int) -> Array:
    """Return the mean of (ε − ε̂)² over the positions of each example, at each of the `nodes`, [B, n]."""

    def at_step(i):
        times = jnp.full(x0.shape[:1], i)
        step_keys = fold_each(keys, i)
        schedule, params = process.schedule, process.schedule_params
        noisy = corrupt(schedule, params, step_keys, x0, times, timesteps)
        mean_over_data = jax.vmap(lambda error: jnp.mean(jnp.square(error)))
        squared = jnp.exp(-noisy.interval.gamma_t) * mean_over_data(process.error(noisy))
        # `mean` may overflow on a flat stretch of the schedule, where r is 0 for any error
        return jnp.where(jnp.isfinite(squared), squared, 0)

    return jax.lax.map(at_step, jnp.asarray(nodes(timesteps))).T


def node_levels(process: Process, timesteps: int) -> Reals:
    """Return γ_t of the steps at which the variance is measured, [n]."""
    return process.gamma((jnp.asarray(nodes(timesteps), jnp.result_type(float)) + 1) / timesteps)
