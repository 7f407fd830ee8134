"""Samples of a variational diffusion model, eq. (19), (20), (24)."""

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import Interval, data_interval
from vdm_jax.elbo import same_for_all
from vdm_jax.estimators.variance import node_levels, squared_errors
from vdm_jax.keys import example_keys, key_of_each
from vdm_jax.likelihoods import observation
from vdm_jax.models.model import BatchLike, Measure, check_params, encoded
from vdm_jax.models.vdm.parts import VDM, process
from vdm_jax.samplers import SAMPLERS, Sampler, sample_chain
from vdm_jax.schedules import interval
from vdm_jax.specs import build
from vdm_jax.typing import Array, Int, Key, Params, Spec


def sample(
    model: VDM,
    params: Params,
    key: Key,
    n: int,
    sampler: Spec | Sampler = "ancestral",
    steps: int | None = None,
    first: int | Int[Array, ""] = 0,
    fitted: Array | None = None,
) -> Array:
    """Draw the examples `first` to `first + n − 1` of a key, [n, *d] as stored.

    Args:
      sampler: a `Sampler`, or a name or spec of `SAMPLERS`.
      steps: number of intervals of the chain; None for `default_steps`.
      fitted: the mean of `fit_sampler` over training examples, for a sampler with a fitted variance.

    Raises:
      ValueError: `n` or `steps` is out of range; with `mean`, `steps` does not divide `timesteps`; the variance
        of the sampler is "fitted" and `fitted` is None.
    """
    check_params(params)
    n = whole_number(n, "n", 1)
    steps = default_steps(model) if steps is None else steps
    whole_number(steps, "steps", 1, MAX_STEPS)
    grid = model.timesteps or steps
    if not model.denoiser.parameterization.continuous and grid % steps != 0:
        raise ValueError(
            f"steps: 'mean' predicts x_s of an interval of the training chain, expected a divisor of "
            f"timesteps = {grid}, found {steps}"
        )
    solver = build(SAMPLERS, sampler, "sampler")
    if solver.fitted is not None and fitted is not None:
        solver = solver.fitted(node_levels(process(model, params), steps), fitted)
    start_keys, chain_keys = example_keys(key, first + jnp.arange(n), 2)

    def predict(xt: Array, t: Array, chain_interval: Interval) -> Array:
        predicted_interval = chain_interval
        if steps != grid and not model.denoiser.parameterization.continuous:
            # the network has learned the `mean` of intervals of the training chain, which are shorter
            earlier = jnp.maximum(t - 1 / grid, 0)
            predicted_interval = interval(model.schedule, params["schedule"], earlier, t)
        return model.denoiser.predict(params["network"], xt, same_for_all(predicted_interval, xt))

    x0 = sample_chain(
        predict,
        lambda latent: predict_data(model, params, latent),
        jax.vmap(lambda key: jax.random.normal(key, model.statistics.shape))(start_keys),
        chain_keys,
        schedule=model.schedule,
        schedule_params=params["schedule"],
        sampler=solver,
        steps=steps,
    )
    return model.likelihood.decode(x0)


def fit_sampler(
    model: VDM, sampler: Spec | Sampler = "ancestral", steps: int | None = None
) -> Measure | None:
    """Return the measurement on training examples that a sampler needs, or None if it needs none.

    Returns:
      (params, key, batch) -> [B, n], the mean of (ε − ε̂)² of each example at n noise levels.

    Raises:
      ValueError: with `mean`, a number of steps other than `timesteps`.
    """
    if build(SAMPLERS, sampler, "sampler").fitted is None:
        return None
    count = default_steps(model) if steps is None else steps
    whole_number(count, "steps", 1, MAX_STEPS)
    if not model.denoiser.parameterization.continuous and count != model.timesteps:
        raise ValueError(
            f"steps: the variance of 'mean' is fitted on the training chain, expected {model.timesteps}, "
            f"found {count}"
        )

    def measure(params: Params, key: Key, batch: BatchLike) -> Array:
        batch, x0 = encoded(batch, model.statistics, model.likelihood)
        keys = key_of_each(key, batch.index)
        return squared_errors(process(model, params), x0, keys, count)

    return measure


def default_steps(model: VDM) -> int:
    """Return the number of sampling steps: 1000, or T for a parameterization without continuous time."""
    if model.denoiser.parameterization.continuous or model.timesteps is None:
        return 1000
    return model.timesteps


def predict_data(model: VDM, params: Params, latent: Array) -> Array:
    """Predict x_0 of the least noisy latents [n, *d]."""
    gamma_0 = model.schedule.gamma(params["schedule"], 0.0)
    if model.timesteps is not None and not model.likelihood.uses_prediction:
        # the T matching terms never call the network at γ_0; the likelihood has the expectation of x_0 there
        mean, log_var = observation(model.likelihood, latent, None, gamma_0)
        return jax.vmap(model.likelihood.expected, (0, None))(mean, log_var)
    last = same_for_all(data_interval(gamma_0), latent)
    return model.denoiser.predict(params["network"], latent, last)
