"""Solvers of the probability flow in η = σ/α = e^{γ/2}: dy/dη = (y − x̂_0)/η for y = x/α, eq. (30)."""

import jax.numpy as jnp

from vdm_jax.diffusion import Interval
from vdm_jax.samplers.base import Predict, Sampler
from vdm_jax.samplers.ddim import ddim, solve
from vdm_jax.typing import Data


def euler() -> Sampler:
    """Return Euler's method in η (Karras et al. 2022), which is `ddim`, and Euler's method of flow matching."""
    return ddim()


def heun() -> Sampler:
    """Return the trapezoidal rule in η, of order 2, which predicts twice per interval (Karras et al. 2022).

    The second prediction is made at the end of the interval, from x_s of `euler`. On the interval to the data,
    where η_s = 0, the sampler is `euler`.
    """

    def step(key, xt, interval, predict, state):
        del key
        x0_hat = predict(xt, interval)
        # eq. (30) solved for the constant prediction that leads to the same x_s
        part = 0.5 * jnp.exp(0.5 * interval.delta)
        correction = part * change(xt, x0_hat, interval, predict)
        to_data = jnp.isinf(interval.delta)
        return solve(xt, x0_hat + jnp.where(to_data, 0, correction), interval), state

    return Sampler(lambda x1: (), step)


def change(xt: Data, x0_hat: Data, interval: Interval, predict: Predict) -> Data:
    """Return the change of the prediction x̂_0 on an interval, from one at the end of Euler's step."""
    gamma_s = interval.gamma_s
    end = Interval(gamma_s, gamma_s, jnp.zeros_like(gamma_s))
    return predict(solve(xt, x0_hat, interval), end) - x0_hat
