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
from vdm_jax.elbo import Process, corrupt, training_interval
from vdm_jax.keys import fold_each
from vdm_jax.typing import Array, Int, Keys, Reals

FITTED = "fitted"
"""The variance that is measured on training examples."""

NODES = 64
"""The largest number of noise levels at which the variance is measured; it is interpolated between them."""

Excess = Callable[[Interval, Int[Array, ""]], Reals]
"""(interval, i) -> r of the step from i/T to (i + 1)/T, a scalar or an array [*d]."""


def residual(interval: Interval, error: Array) -> Array:
    """Return δ = (μ_q − μ_p)/σ_q of one step, elementwise, from the error x_0 − x̂_0 of one example."""
    scale = jnp.sqrt(jnp.expm1(interval.delta)) * jnp.exp(-0.5 * interval.gamma_t)
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
            self.fit = partial(mean_squared_error, timesteps=timesteps)
        elif callable(variance):
            check_callable(variance, ("gamma_t",), "variance")
            self.given = variance
        else:
            self.given = variance if hasattr(variance, "dtype") else np.asarray(variance)
            check_real(self.given, "variance")
            if not is_traced(variance) and not np.all(np.asarray(self.given) > -1):
                raise ValueError("variance: expected numbers above −1, found a smaller one")

    @property
    def words(self) -> str:
        """The variance in words, for reports."""
        return "" if self.name is None else f" with {self.name} variance"

    def excess(self, process: Process, shape: tuple[int, ...], fitted: Array | None) -> Excess:
        """Return r as a function of the step.

        Args:
          process: the process.
          shape: [*d] of one example.
          fitted: the mean of `fit` over batches of training examples, for "fitted".

        Raises:
          ValueError: numbers of another shape, or "fitted" without training examples.
        """
        given, steps = self.given, self.timesteps
        if given is None:
            if fitted is None:
                raise ValueError(
                    "variance: 'fitted' is measured on the training examples of a run, expected numbers or a "
                    "function of γ_t"
                )
            return interpolated(process, steps, fitted)
        if callable(given):
            return lambda interval, i: jnp.asarray(given(interval.gamma_t))
        r = jnp.asarray(given, jnp.result_type(float))
        if r.shape in ((steps,), (steps, *shape)):
            return lambda interval, i: r[i]
        if r.shape in ((), shape):
            return lambda interval, i: r
        raise ValueError(
            f"variance: expected shape (), {shape}, {(steps,)} or {(steps, *shape)}, found {r.shape}"
        )


def nodes(timesteps: int) -> np.ndarray:
    """Return the steps at which the variance is measured, at most `NODES` of them."""
    evenly_spaced = np.linspace(0, timesteps - 1, min(timesteps, NODES))
    return np.unique(evenly_spaced.round().astype(np.int32))


def mean_squared_error(process: Process, x0: Array, keys: Keys, timesteps: int) -> Array:
    """Return the mean of (ε − ε̂)² over a batch and its positions, at each of the `nodes`."""

    def at_step(i):
        times = jnp.full(x0.shape[:1], i)
        step_keys = fold_each(keys, i)
        schedule, params = process.schedule, process.schedule_params
        noisy = corrupt(schedule, params, step_keys, x0, times, timesteps)
        signal_to_noise = jnp.exp(-noisy.interval.gamma_t)
        flat = noisy.interval.delta == 0  # r is then 0, whatever the error
        mean_over_data = jax.vmap(lambda error: jnp.mean(jnp.square(error)))
        squared = jnp.where(flat, 0, mean_over_data(process.error(noisy)))
        return jnp.mean(signal_to_noise * squared)

    return jax.lax.map(at_step, jnp.asarray(nodes(timesteps)))


def interpolated(process: Process, timesteps: int, fitted: Array) -> Excess:
    """Return r = expm1(Δ) E(ε − ε̂)², with the mean interpolated between the nodes, linearly in γ."""

    def gamma_of_step(i):
        schedule, params = process.schedule, process.schedule_params
        return training_interval(schedule, params, i, timesteps)[0].gamma_t

    gammas = jax.vmap(gamma_of_step)(jnp.asarray(nodes(timesteps)))
    # in logarithms, because the mean spans orders of magnitude
    log_mean = jnp.log(jnp.maximum(fitted, jnp.finfo(fitted.dtype).tiny))

    def excess(interval, i):
        del i
        return jnp.expm1(interval.delta) * jnp.exp(jnp.interp(interval.gamma_t, gammas, log_mean))

    return excess
