"""The variational diffusion model: its components, bound, training loss and samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vdm_jax.bases import Base
from vdm_jax.elbo import check_ends, check_timesteps
from vdm_jax.estimators import time_of
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.model import BatchLike, Model, PerNoiseLevel, TrainingDraw, likelihood_for
from vdm_jax.models.statistics import Statistics, check_statistics
from vdm_jax.models.vdm.bound import elbo, elbo_per_noise_level, output_gain, split_by_noise
from vdm_jax.models.vdm.likelihood import build_estimator
from vdm_jax.models.vdm.parts import VDM
from vdm_jax.models.vdm.sampling import fit_sampler, sample
from vdm_jax.models.vdm.training import (
    init,
    init_model_state,
    loss,
    loss_per_noise_level,
    training_draw,
)
from vdm_jax.output_scales import OutputScale
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.schedules import SCHEDULES, Schedule
from vdm_jax.specs import build, name_of
from vdm_jax.time_samplers import TIME_SAMPLERS, TimeSampler
from vdm_jax.typing import Key, Params, PyTree, Spec
from vdm_jax.weightings import Weighting, build_weighting

__all__ = ["VDM", "split_by_noise", "vdm"]


def vdm(
    statistics: Statistics,
    *,
    network: object = "mlp",
    schedule: Spec | Schedule = "linear",
    train_schedule: Spec | Schedule | None = None,
    parameterization: Spec | Parameterization = "eps",
    base: Spec | Base = "zero",
    output_scale: Spec | OutputScale = "none",
    likelihood: Spec | Likelihood = "softmax",
    timesteps: int | None = None,
    loss_space: Spec | Parameterization | None = None,
    weighting: Spec | Weighting | Callable[..., Any] = "elbo",
    time_sampler: Spec | TimeSampler = "uniform",
) -> Model:
    """Build a variational diffusion model. Every component is a name, a spec or a built object.

    Args:
      statistics: shape, levels and moments of the training split.
      network: of `NETS`, or an argument of `vdm_jax.nets.as_network`: Linen module, (init, apply), callable, ….
      schedule: of `SCHEDULES`. A learned schedule is trained on the bound together with the network; in
        continuous time, its path between the ends is trained on the variance of the loss (`Schedule.interior`).
      train_schedule: of `SCHEDULES`, the path along which training draws its times; None for `schedule`. In
        continuous time the bound does not depend on the path between two ends. Another path changes how many
        draws a noise level gets and, for a weighting other than the bound, how much weight.
      parameterization: the quantity that the network outputs, of `PARAMETERIZATIONS`.
      base: the fixed denoiser that the network corrects, of `BASES`.
      output_scale: of the network's correction, of `OUTPUT_SCALES`.
      likelihood: of `LIKELIHOODS`.
      timesteps: T ≥ 1 matching terms, or None for continuous time.
      loss_space: the parameterization whose error the weighting `simple`, or a function as the weighting,
        weighs, of `PARAMETERIZATIONS`; None for `parameterization`. The losses of the other weightings do not
        depend on it.
      weighting: of the training error, of `WEIGHTINGS`, or a function (log_snr, exact) -> weight. The reported
        bound does not depend on it.
      time_sampler: the density of the training times, of `TIME_SAMPLERS`. The expectation of the loss does not
        depend on it.

    Raises:
      ValueError: a name or an argument is unknown, `likelihood` does not fit the levels of the data, `mean` is
        used in continuous time, a learned schedule is combined with another weighting than the bound, or
        `train_schedule` is learned, has other ends than `schedule`, or is set although `timesteps` is.
      TypeError: a component is of another type than its table's.
    """
    check_statistics(statistics)
    optional = {
        "base": base,
        "output scale": output_scale,
        "weighting": weighting,
        "loss space": loss_space,
        "likelihood": likelihood,
        "train schedule": train_schedule,
        "time sampler": None if time_sampler == "uniform" else time_sampler,
    }
    components = _component_names([network, schedule, parameterization], optional)
    net = denoiser(
        statistics,
        network=network,
        parameterization=parameterization,
        base=base,
        output_scale=output_scale,
    )
    schedule = build(SCHEDULES, schedule, "schedule")
    if loss_space is None:
        loss_space = net.parameterization
    model = VDM(
        statistics=statistics,
        denoiser=net,
        schedule=schedule,
        train_schedule=_training_path(schedule, train_schedule, timesteps),
        likelihood=likelihood_for(statistics, likelihood),
        loss_space=build(PARAMETERIZATIONS, loss_space, "loss_space"),
        weighting=build_weighting(weighting),
        time_sampler=build(TIME_SAMPLERS, time_sampler, "time_sampler"),
        timesteps=timesteps,
    )
    _check_parts(model)
    return as_model(model, components)


def _check_parts(model: VDM) -> None:
    """Raise ValueError for components that do not fit together."""
    check_timesteps(model.timesteps, model.denoiser.parameterization)
    check_timesteps(model.timesteps, model.loss_space, "loss_space")
    check_ends(model.schedule, model.denoiser.parameterization)
    if model.schedule.learned and not model.weighting.bound:
        raise ValueError("weighting: a learned schedule is trained on the bound, expected 'elbo'")


def _component_names(first: Sequence[object], optional: Mapping[str, object]) -> str:
    """Return the names of the components, for reports; optional components that are None are left out."""
    names = [name_of(spec) for spec in first]
    names += [f"{key} {name_of(spec)}" for key, spec in optional.items() if spec is not None]
    return f"vdm: {', '.join(names)}"


def as_model(model: VDM, components: str) -> Model:
    """Return the `Model` of a variational diffusion model: its functions, with the components bound."""

    def draw(
        params: Params,
        key: Key,
        batch: BatchLike,
        model_state: PyTree = None,
        *,
        dropout: bool = True,
    ) -> TrainingDraw:
        return training_draw(model, params, key, batch, model_state, dropout=dropout)[0]

    return Model(
        init=partial(init, model),
        loss=partial(loss, model),
        elbo=partial(elbo, model),
        sample=partial(sample, model),
        fit_sampler=partial(fit_sampler, model),
        init_model_state=partial(init_model_state, model),
        bound=f"diffusion ELBO, {time_of(model.timesteps)}",
        components=components,
        estimator=partial(build_estimator, model),
        per_noise_level=PerNoiseLevel(
            elbo=partial(elbo_per_noise_level, model),
            draw=draw,
            loss=partial(loss_per_noise_level, model),
            output_gain=partial(output_gain, model),
            gamma=lambda params, t: model.schedule.gamma(params["schedule"], t),
        ),
    )


def _training_path(
    schedule: Schedule, spec: Spec | Schedule | None, timesteps: int | None
) -> Schedule:
    """Build the schedule of the training times, whose ends must be those of the model's schedule."""
    if spec is None:
        return schedule
    path = build(SCHEDULES, spec, "train_schedule")
    if timesteps is not None:
        raise ValueError(f"train_schedule: is for continuous time, found timesteps = {timesteps}")
    if schedule.learned or path.learned:
        raise ValueError("train_schedule: neither it nor the schedule may be learned")
    with jax.ensure_compile_time_eval():  # models are built inside traced functions, too
        ends = [[float(s.gamma(None, t)) for t in (0.0, 1.0)] for s in (schedule, path)]
    if not np.allclose(*ends, rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"train_schedule: expected the ends {ends[0]} of the schedule, found {ends[1]}"
        )
    return path
