"""The components of a variational diffusion model, and its process for given params."""

from typing import NamedTuple

from vdm_jax.elbo import Process
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.denoiser import Denoiser
from vdm_jax.models.statistics import Statistics
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import Schedule
from vdm_jax.time_samplers import TimeSampler
from vdm_jax.typing import Keys, Params
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


def process(model: VDM, params: Params, dropout_keys: Keys | None = None) -> Process:
    """Return the process of a model with its params.

    Args:
      dropout_keys: [B], or None for no dropout.
    """
    network = params["network"]
    return Process(
        predict=lambda xt, intervals: model.denoiser.predict(network, xt, intervals, dropout_keys),
        error=lambda noisy: model.denoiser.error(network, noisy, dropout_keys),
        parameterization=model.denoiser.parameterization,
        schedule=model.schedule,
        schedule_params=params["schedule"],
        likelihood=model.likelihood,
    )
