"""The denoising form of the bound, eq. (13), (14), from one noisy sample (Kingma et al. 2021)."""

import jax

from vdm_jax.elbo.terms import (
    Denoise,
    Elbo,
    draw_noisy,
    draw_times,
    matching,
    output_of,
    prior,
    reconstruction,
)
from vdm_jax.likelihoods import Likelihood
from vdm_jax.parameterizations import Parameterization, regression_target
from vdm_jax.schedules import Schedule
from vdm_jax.typing import ArrayLike, Key, Params


def denoising(
    denoise: Denoise,
    x: ArrayLike,
    key: Key,
    schedule: Schedule,
    params: Params,
    row: Parameterization,
    likelihood: Likelihood,
    timesteps: int | None,
) -> Elbo:
    """Estimate the bound from one time and one noisy sample.

    The arguments are those of `negative_elbo`, with components that are built.
    """
    x0 = likelihood.encode(x)
    time_key, noise_key, end_key = jax.random.split(key, 3)
    t = draw_times(time_key, 0.0, timesteps)
    noisy = draw_noisy(
        noise_key, x0, t, schedule=schedule, schedule_params=params, timesteps=timesteps
    )
    output = output_of(denoise, noisy.xt, noisy.interval.gamma_t)
    target = regression_target(x0, noisy.eps, row.target(noisy.interval))
    # x_0 − x̂_0 from the error of F: x̂_0 itself would cancel against x_0
    error = row(noisy.interval).out * (target - output)

    gamma_0, gamma_1 = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
    nats = reconstruction(denoise, x, x0, end_key, gamma_0, row, likelihood)
    return Elbo(nats, matching(noisy, error), prior(x0, gamma_1))
