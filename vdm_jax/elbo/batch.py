"""The diffusion process of a model for a batch, and the terms of its bound, eq. (10)–(15).

The mathematics is per example and mapped over the batch; the network sees the whole batch. Training, evaluation
and the likelihood estimators all read a model through its `Process`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import Interval, data_interval, marginal
from vdm_jax.elbo.terms import (
    Denoise,
    Elbo,
    NoisySample,
    draw_noisy,
    draw_times,
    matching,
    mean_of_draws,
    output_of,
    prior,
)
from vdm_jax.keys import fold_each, split_each
from vdm_jax.likelihoods import Likelihood, observation
from vdm_jax.parameterizations import Parameterization, regression_target, to_x0
from vdm_jax.schedules import Schedule
from vdm_jax.typing import Array, ArrayLike, Keys, Params, PyTree, Real, Reals


class Process(NamedTuple):
    """A diffusion process with the params of its denoiser and its schedule, for batches.

    Attributes:
      predict: (xt, intervals) -> x̂_0 [B, *d] of latents [B, *d]; `intervals` is an `Interval` of arrays [B].
      error: noisy -> x_0 − x̂_0 [B, *d] of a `NoisySample` of arrays [B, ...], without the cancellation of
        computing x̂_0 first.
      parameterization: of the denoiser's output.
      schedule, schedule_params: γ of the bound.
      likelihood: p(x | observation).
    """

    predict: Callable[[Array, Interval], Array]
    error: Callable[[NoisySample], Array]
    parameterization: Parameterization
    schedule: Schedule
    schedule_params: Params
    likelihood: Likelihood

    def gamma(self, t: Real) -> Reals:
        """Return γ at times in [0, 1]."""
        return self.schedule.gamma(self.schedule_params, t)


class Draw(NamedTuple):
    """One draw of the bound of each example of a batch.

    Attributes:
      times: [B], of `training_interval`: steps of a chain, or times in [0, 1).
      noisy: the noisy samples.
      error: x_0 − x̂_0, [B, *d].
      bound: the terms of −ELBO, [B] each.
    """

    times: Array
    noisy: NoisySample
    error: Array
    bound: Elbo


def process_of(
    denoise: Denoise,
    *,
    parameterization: Parameterization,
    schedule: Schedule,
    schedule_params: Params,
    likelihood: Likelihood,
) -> Process:
    """Return the process of a denoiser (xt, gamma_t) -> F of one example."""

    def predict(xt: Array, interval: Interval) -> Array:
        return to_x0(output_of(denoise, xt, interval.gamma_t), xt, parameterization(interval))

    def error(noisy: NoisySample) -> Array:
        output = output_of(denoise, noisy.xt, noisy.interval.gamma_t)
        target = regression_target(noisy.x0, noisy.eps, parameterization.target(noisy.interval))
        return parameterization(noisy.interval).out * (target - output)

    return Process(
        jax.vmap(predict),
        jax.vmap(error),
        parameterization,
        schedule,
        schedule_params,
        likelihood,
    )


def same_for_all(interval: Interval, xt: Array) -> Interval:
    """Repeat one interval for each example of a batch `xt` [B, *d]."""
    return jax.tree.map(lambda value: jnp.broadcast_to(value, xt.shape[:1]), interval)


def corrupt(
    schedule: Schedule,
    schedule_params: Params,
    keys: Keys,
    x0: Array,
    times: Array,
    timesteps: int | None,
    params_axes: dict[str, int | None] | None = None,
) -> NoisySample:
    """Draw the latents of a batch at the given times.

    Args:
      schedule: the path of the times.
      schedule_params: its params, some of which may have an axis of examples.
      keys: [B].
      x0: [B, *d].
      times: [B], of `training_interval`.
      timesteps: T, or None for continuous time.
      params_axes: name -> 0 for params with an axis of examples, None for the others; None if none has one.
    """

    def corrupt_example(key, x0, t, params):
        return draw_noisy(
            key, x0, t, schedule=schedule, schedule_params=params, timesteps=timesteps
        )

    return jax.vmap(corrupt_example, (0, 0, 0, params_axes))(keys, x0, times, schedule_params)


def terms(
    process: Process, x: ArrayLike, x0: Array, noisy: NoisySample, keys: Keys
) -> tuple[Elbo, Array]:
    """Return the terms of −ELBO, [B] each, and the error x_0 − x̂_0 [B, *d] of a noisy sample.

    Args:
      process: the process of the model.
      x: data [B, *d] as stored.
      x0: the encoded data.
      noisy: arrays with a leading axis [B].
      keys: [B], which draw the least noisy latents.
    """
    reconstruction, prior_nats = ends(process, x, x0, keys)
    error = process.error(noisy)
    return Elbo(reconstruction, jax.vmap(matching)(noisy, error), prior_nats), error


def ends(process: Process, x: ArrayLike, x0: Array, keys: Keys) -> tuple[Reals, Reals]:
    """Return reconstruction and prior, nats [B] each, eq. (11), (12). The arguments are those of `terms`."""
    gamma_0, gamma_1 = process.gamma(0.0), process.gamma(1.0)
    latent = jax.vmap(lambda key, x0: marginal(x0, gamma_0).sample(key))(keys, x0)
    return -log_prob_of_data(process, x, latent), jax.vmap(prior, (0, None))(x0, gamma_1)


def log_prob_of_data(process: Process, x: ArrayLike, latent: Array) -> Reals:
    """Return log p(x | x_{t=0}) of the least noisy latents [B, *d], nats [B]."""
    likelihood, gamma_0 = process.likelihood, process.gamma(0.0)
    x0_hat = None
    if (
        likelihood.uses_prediction
    ):  # otherwise the latent is the observation: no call of the network
        x0_hat = process.predict(latent, same_for_all(data_interval(gamma_0), latent))

    def log_prob(x, latent, x0_hat):
        return likelihood.log_prob(x, *observation(likelihood, latent, x0_hat, gamma_0))

    return jax.vmap(log_prob)(x, latent, x0_hat)


def mean_over_draws(
    process: Process,
    x: ArrayLike,
    x0: Array,
    keys: Keys,
    timesteps: int | None,
    draws: int,
    value: Callable[[Draw], PyTree],
) -> PyTree:
    """Return the mean of `value` over draws of each example, whose times are stratified, eq. (15).

    Args:
      process, x, x0, timesteps: as in `draw_terms`.
      keys: [B].
      draws: number of draws.
      value: of a draw, a pytree of arrays.
    """
    # one time key for all draws: with the phases i / draws, their times are stratified
    time_keys, draw_keys = split_each(keys, 2)

    def one_draw(i):
        draw_key, phase = fold_each(draw_keys, i), i / draws
        return value(draw_terms(process, x, x0, time_keys, draw_key, phase, timesteps))

    return mean_of_draws(one_draw, draws)


def draw_terms(
    process: Process,
    x: ArrayLike,
    x0: Array,
    time_keys: Keys,
    keys: Keys,
    phase: Real,
    timesteps: int | None,
) -> Draw:
    """Draw one time and one noisy sample of each example, and score it.

    Args:
      process: the process of the model.
      x: data [B, *d] as stored.
      x0: the encoded data.
      time_keys: [B], which draw the times; equal for all draws of an example that are stratified by `phase`.
      keys: [B], which draw the noise.
      phase: shift of the times in [0, 1), eq. (15).
      timesteps: T, or None for continuous time.
    """
    noise_keys, end_keys = split_each(keys, 2)
    times = jax.vmap(lambda key: draw_times(key, phase, timesteps))(time_keys)
    noisy = corrupt(process.schedule, process.schedule_params, noise_keys, x0, times, timesteps)
    bound, error = terms(process, x, x0, noisy, end_keys)
    return Draw(times, noisy, error, bound)
