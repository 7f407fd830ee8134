"""Draws of the reverse process, with the variance of the posterior or another one, eq. (19), (24)."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vdm_jax.checks import check_callable, real_number
from vdm_jax.diffusion import Interval, posterior
from vdm_jax.samplers.base import Sampler, noise_like, without_memory
from vdm_jax.typing import Data, Key, Keys, Real, Reals

FITTED = "fitted"
"""The variance that is measured on training examples."""


def ancestral(*, variance: Any = None) -> Sampler:
    """Return the sampler that draws x_s ~ N(μ_q, σ_q² (1 + r)), eq. (19), (24), from μ_q and σ_q² with x̂_0.

    With r = 0 it draws from q(x_s | x_t, x̂_0) (Ho et al. 2020). The variance of these draws is too small,
    because x̂_0 is not x_0; the error grows as the steps get fewer. The r that is best for the bound corrects it
    (Bao et al. 2022).

    Args:
      variance: r > −1, a number or a function of γ_t; None for 0; "fitted" for the r that is measured on
        training examples, as `TrainedModel.sample` does.

    Raises:
      ValueError: another name than "fitted", or a number that is not above −1.
      TypeError: a function that does not take one argument.
    """
    if variance is None:
        return without_memory(draw_posterior)
    if callable(variance):
        check_callable(variance, ("gamma_t",), "variance")
        return _gaussian(lambda interval: jnp.log1p(jnp.asarray(variance(interval.gamma_t))))
    if isinstance(variance, str):
        if variance != FITTED:
            raise ValueError(
                f"variance: expected {FITTED!r}, a number or a function of γ_t, found {variance!r}"
            )
        return without_memory(_not_fitted)._replace(fitted=_fitted)
    words = "a finite number above −1"
    r = real_number(variance, "variance", words, lambda value: -1 < value < math.inf)
    return _gaussian(lambda interval: jnp.log1p(r))


def log_excess(gammas: Reals, squares: Reals) -> Callable[[Interval], Reals]:
    """Return log r as a function of the interval, for r = expm1(Δ) E(ε − ε̂)².

    The mean is interpolated in γ_t between the noise levels, in logarithms, because it spans orders of
    magnitude.

    Args:
      gammas: noise levels [n], which do not fall.
      squares: E(ε − ε̂)² at these noise levels, [n].
    """
    # of equal noise levels, on a flat stretch of the schedule, the largest mean: others may be unknown, and 0
    same = gammas[:, None] == gammas[None, :]
    squares = jnp.max(jnp.where(same, squares[None, :], 0), 1).astype(gammas.dtype)
    log_squares = jnp.log(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))

    def at(interval):
        _, gamma_t, delta = interval
        # log expm1(Δ), which does not overflow
        return delta + jnp.log(-jnp.expm1(-delta)) + jnp.interp(gamma_t, gammas, log_squares)

    return at


def draw_posterior(
    key: Key | Keys | None, xt: Data, x0_hat: Data, interval: Interval, log_widening: Real = 0.0
) -> Data:
    """Draw x_s ~ N(μ_q, σ_q² (1 + r)), eq. (19), (24), with `log_widening` = log(1 + r)."""
    assert key is not None
    q = posterior(xt, x0_hat, interval)
    return q.mean + jnp.exp(0.5 * (q.log_var + log_widening)) * noise_like(key, q.mean)


def _gaussian(log_widening: Callable[[Interval], Any]) -> Sampler:
    """Return the ancestral sampler with log(1 + r) as a function of the interval."""

    def move(key, xt, x0_hat, interval):
        return draw_posterior(key, xt, x0_hat, interval, log_widening(interval))

    return without_memory(move)


def _fitted(gammas: Reals, squares: Reals) -> Sampler:
    """Return the ancestral sampler with the r of `log_excess`."""
    log_r = log_excess(gammas, squares)
    return _gaussian(lambda interval: jnp.logaddexp(0.0, log_r(interval)))


def _not_fitted(key: Key | Keys | None, xt: Data, x0_hat: Data, interval: Interval) -> Data:
    del key, xt, x0_hat, interval
    raise ValueError(
        "variance: 'fitted' is measured on the training examples of a run, expected a number or a function of "
        "γ_t"
    )
