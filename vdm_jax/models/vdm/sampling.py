"""Samples of a variational diffusion model, eq. (19), (20)."""

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import data_interval
from vdm_jax.likelihoods import observation
from vdm_jax.models.denoiser import same_for_all
from vdm_jax.models.keys import example_keys
from vdm_jax.models.model import check_params
from vdm_jax.models.vdm.parts import VDM
from vdm_jax.samplers import build_sampler, sample_chain
from vdm_jax.schedules import interval
from vdm_jax.typing import Array, Int, Key, Params


def sample(
    model: VDM,
    params: Params,
    key: Key,
    n: int,
    sampler: Any = "ancestral",
    steps: int | None = None,
    first: int | Int[Array, ""] = 0,
) -> Array:
    """Draw n examples [n, *d] as stored, from number `first` of a key on.

    Args:
      sampler: a `Sampler`, or its name or spec of `SAMPLERS`.
      steps: intervals of the chain; None for 1000, or T of a parameterization that knows no other chain.
    """
    check_params(params)
    n = whole_number(n, "n", 1)
    steps = default_steps(model) if steps is None else steps
    whole_number(steps, "steps", 1, MAX_STEPS)
    grid = model.timesteps or steps
    if not model.denoiser.parameterization.continuous and grid % steps != 0:
        raise ValueError(
            f"steps: 'mean' is a step of the training chain, expected a divisor of "
            f"timesteps = {grid}, found {steps}"
        )
    start_keys, chain_keys = example_keys(key, first + jnp.arange(n), 2)

    def predict(xt, t, step):
        if steps != grid and not model.denoiser.parameterization.continuous:
            # the interval of a `mean` is that of the training chain
            earlier = jnp.maximum(t - 1 / grid, 0)
            step = interval(model.schedule, params["schedule"], earlier, t)
        return model.denoiser.predict(params["network"], xt, same_for_all(step, xt))

    x0 = sample_chain(
        predict,
        lambda latent: predict_data(model, params, latent),
        jax.vmap(lambda key: jax.random.normal(key, model.statistics.shape))(start_keys),
        chain_keys,
        schedule=model.schedule,
        schedule_params=params["schedule"],
        sampler=build_sampler(sampler),
        steps=steps,
    )
    return model.likelihood.decode(x0)


def default_steps(model: VDM) -> int:
    """Return 1000, or T of a parameterization that knows no chain but its own."""
    if model.denoiser.parameterization.continuous or model.timesteps is None:
        return 1000
    return model.timesteps


def predict_data(model: VDM, params: Params, latent: Array) -> Array:
    """Predict x_0 of the least noisy latents [n, *d]."""
    gamma_0 = model.schedule.gamma(params["schedule"], 0.0)
    if model.timesteps is not None and not model.likelihood.uses_prediction:
        # no loss has called the network there
        given = observation(model.likelihood, latent, None, gamma_0)
        return jax.vmap(model.likelihood.expected, (0, None))(*given)
    last = same_for_all(data_interval(gamma_0), latent)
    return model.denoiser.predict(params["network"], latent, last)
