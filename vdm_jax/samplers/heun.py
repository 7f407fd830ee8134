"""Solvers of the probability flow in σ/α = e^{γ/2}, eq. (30) (Karras et al. 2022)."""

import jax.numpy as jnp

from vdm_jax.diffusion import Interval
from vdm_jax.samplers.base import Predict, Sampler
from vdm_jax.samplers.ddim import ddim, solve
from vdm_jax.typing import Data

MAX_DELTA = 10.0
"""The largest Δ with a second prediction, whose weight ½ e^{Δ/2} is then 74. Above it, such as on an interval
from SNR = 0, the trapezoidal rule is unstable."""


def euler() -> Sampler:
    """Return Euler's method, which is `ddim`, and also Euler's method of flow matching."""
    return ddim()


def heun() -> Sampler:
    """Return the trapezoidal rule, of order 2, which predicts twice per interval.

    The second prediction is made at the end of the interval, from x_s of `euler`. An interval of more than
    `MAX_DELTA` is a step of `euler`.
    """

    def step(key, xt, interval, predict, state):
        del key
        gamma_s, gamma_t, delta = interval
        x0_hat = predict(xt, interval)
        too_long = delta > MAX_DELTA
        # on too long an interval, to the data for instance, any level that is finite
        level = interval._replace(gamma_s=jnp.where(too_long, gamma_t, gamma_s))
        change = change_of_prediction(xt, x0_hat, level, predict)
        # eq. (30) solved for the constant prediction that leads to the same x_s
        weight = 0.5 * jnp.exp(0.5 * jnp.minimum(delta, MAX_DELTA))
        # selects after the product: the prediction of `mean` at a single level may overflow
        return solve(xt, x0_hat + jnp.where(too_long, 0, weight * change), interval), state

    return Sampler(lambda x1: (), step)


def change_of_prediction(xt: Data, x0_hat: Data, interval: Interval, predict: Predict) -> Data:
    """Return the change of the prediction from x̂_0 at the start of an interval to its end.

    The second prediction is made from x_s of Euler's method.
    """
    gamma_s = interval.gamma_s
    end = Interval(gamma_s, gamma_s, jnp.zeros_like(gamma_s))
    return predict(solve(xt, x0_hat, interval), end) - x0_hat
