"""The components of a variational diffusion model, and the terms of its bound for a batch.

The mathematics is per example and mapped over the batch; the network sees the whole batch.
"""

from typing import NamedTuple

import jax

from vdm_jax.diffusion import data_interval, marginal
from vdm_jax.elbo import Elbo, NoisySample, draw_noisy, matching, prior
from vdm_jax.likelihoods import Likelihood, observation
from vdm_jax.models.denoiser import Denoiser, same_for_all
from vdm_jax.models.model import Statistics
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule
from vdm_jax.time_samplers import TimeSampler
from vdm_jax.typing import Array, ArrayLike, Keys, Params, Reals
from vdm_jax.weightings import Weighting


class VDM(NamedTuple):
    """The built components of a variational diffusion model.

    Attributes:
      statistics: shape, levels and moments of the training split.
      denoiser: network, base and parameterization.
      schedule: γ of the bound and of sampling.
      train_schedule: γ along which training draws its times; `schedule` unless another path is set.
      likelihood: p(x | observation).
      loss_space: the parameterization whose error the weighting may refer to.
      weighting: of the error in the training loss.
      time_sampler: the density of the training times.
      timesteps: T, or None for continuous time.
    """

    statistics: Statistics
    denoiser: Denoiser
    schedule: Schedule
    train_schedule: Schedule
    likelihood: Likelihood
    loss_space: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    timesteps: int | None

    @property
    def by_variance(self) -> bool:
        """True if the interior of the schedule is trained on the variance of the loss.

        This needs continuous time, because the bound of a chain of T steps depends on the interior.
        """
        return self.timesteps is None and self.schedule.interior is not None


def corrupt(
    model: VDM,
    schedule: Schedule,
    schedule_params: Params,
    keys: Keys,
    x0: Array,
    times: Array,
    params_axes: dict[str, int | None] | None = None,
) -> NoisySample:
    """Draw the latents of a batch at the given times.

    Args:
      schedule: the path, `model.schedule` or `model.train_schedule`.
      schedule_params: its params, some of which may have an axis of examples.
      keys: [B].
      x0: [B, *d].
      times: [B].
      params_axes: name -> 0 for params with an axis of examples, None for the others; None if none has one.
    """

    def corrupt_example(key, x0, t, params):
        return draw_noisy(
            key, x0, t, schedule=schedule, schedule_params=params, timesteps=model.timesteps
        )

    return jax.vmap(corrupt_example, (0, 0, 0, params_axes))(keys, x0, times, schedule_params)


def terms(
    model: VDM,
    params: Params,
    x: ArrayLike,
    x0: Array,
    noisy: NoisySample,
    keys: Keys,
    dropout_keys: Keys | None = None,
) -> tuple[Elbo, Array]:
    """Return the terms of −ELBO, [B] each, and the error x_0 − x̂_0 [B, *d] of a noisy sample.

    Args:
      x: data [B, *d] as stored.
      x0: the encoded data.
      noisy: arrays with a leading axis [B].
      keys: [B], which draw the least noisy latents.
      dropout_keys: [B], or None for no dropout.
    """
    reconstruction, prior_nats = ends(model, params, x, x0, keys, dropout_keys)
    error = model.denoiser.error(params["network"], noisy, dropout_keys)
    return Elbo(reconstruction, jax.vmap(matching)(noisy, error), prior_nats), error


def ends(
    model: VDM,
    params: Params,
    x: ArrayLike,
    x0: Array,
    keys: Keys,
    dropout_keys: Keys | None = None,
) -> tuple[Reals, Reals]:
    """Return reconstruction and prior, nats [B] each, eq. (11), (12). The arguments are those of `terms`."""
    likelihood = model.likelihood
    gamma_0 = model.schedule.gamma(params["schedule"], 0.0)
    gamma_1 = model.schedule.gamma(params["schedule"], 1.0)
    latent = jax.vmap(lambda key, x0: marginal(x0, gamma_0).sample(key))(keys, x0)
    x0_hat = None
    if (
        likelihood.uses_prediction
    ):  # otherwise the latent is the observation, and saves a call of the network
        last = same_for_all(data_interval(gamma_0), x0)
        x0_hat = model.denoiser.predict(params["network"], latent, last, dropout_keys)

    def log_prob(x, latent, x0_hat):
        return likelihood.log_prob(x, *observation(likelihood, latent, x0_hat, gamma_0))

    nats = -jax.vmap(log_prob)(x, latent, x0_hat)
    return nats, jax.vmap(prior, (0, None))(x0, gamma_1)
