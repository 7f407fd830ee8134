"""The variational diffusion model: its parts, its bound, its training loss and its samples."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vdm_jax.elbo import check_ends, check_timesteps
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.model import (
    Model,
    PerNoiseLevel,
    Statistics,
    check_statistics,
    likelihood_for,
)
from vdm_jax.models.vdm.bound import elbo, elbo_per_noise_level, output_gain, split_by_noise
from vdm_jax.models.vdm.parts import VDM
from vdm_jax.models.vdm.sampling import sample
from vdm_jax.models.vdm.training import (
    init,
    init_model_state,
    loss,
    loss_per_noise_level,
    training_draw,
)
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import SCHEDULES, Schedule
from vdm_jax.specs import build, name_of
from vdm_jax.time_samplers import TIME_SAMPLERS
from vdm_jax.weightings import build_weighting

__all__ = ["VDM", "split_by_noise", "vdm"]


def vdm(
    statistics: Statistics,
    *,
    network: Any = "mlp",
    schedule: Any = "linear",
    train_schedule: Any = None,
    parameterization: Any = "eps",
    base: Any = "zero",
    output_scale: Any = "none",
    likelihood: Any = "softmax",
    timesteps: int | None = None,
    loss_space: Any = None,
    weighting: Any = "elbo",
    time_sampler: Any = "uniform",
) -> Model:
    """Build a variational diffusion model. Every component is a name, a spec or a built object.

    Args:
      statistics: shape, levels and moments of the training split.
      network: of `NETS`, or what `vdm_jax.nets.as_network` takes: Linen modules, (init, apply), callables.
      schedule: of `SCHEDULES`; a learned one is trained with the network on the bound, in continuous time what
        lies between its ends on the variance of the loss (`Schedule.interior`).
      train_schedule: of `SCHEDULES`, or None for `schedule`: where the training loss draws its times. The
        bound in continuous time does not depend on the path between the same two ends: another path spends the
        draws elsewhere, and under a weighting other than the bound weighs the noise levels by it.
      parameterization: what the network outputs, of `PARAMETERIZATIONS`.
      base: the fixed denoiser that the network corrects, of `BASES`.
      output_scale: of the network's correction, of `OUTPUT_SCALES`.
      likelihood: of `LIKELIHOODS`.
      timesteps: T ≥ 1 matching terms, or None for continuous time.
      space: in which the weighting `simple`, or a function as the weighting, takes the training error, of
        `PARAMETERIZATIONS`; None is the parameterization's. The loss of the other weightings does not depend on
        it.
      weighting: of the training error, of `WEIGHTINGS`, or a function (log_snr, exact) -> weight; the bound is
        reported whatever it is.
      time_sampler: the density of the training times, of `TIME_SAMPLERS`; the expectation of the loss is the
        same for all of them.

    Raises:
      ValueError: unknown names or arguments, a likelihood of another kind than the data, `mean` in
        continuous time, a learned schedule under another weighting than the bound, a train_schedule that
        is learned, of other ends, or not for continuous time.
    """
    check_statistics(statistics)
    others = {
        "base": base,
        "output scale": output_scale,
        "weighting": weighting,
        "loss space": loss_space,
        "likelihood": likelihood,
        "train schedule": train_schedule,
        "time sampler": None if time_sampler == "uniform" else time_sampler,
    }
    components = _component_names([network, schedule, parameterization], others)
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
    """Raise ValueError for parts that do not fit together."""
    check_timesteps(model.timesteps, model.denoiser.parameterization)
    check_timesteps(model.timesteps, model.loss_space, "loss_space")
    check_ends(model.schedule, model.denoiser.parameterization)
    if model.schedule.learned and not model.weighting.bound:
        raise ValueError("weighting: a learned schedule is trained on the bound, expected 'elbo'")


def _component_names(first: Sequence[Any], others: Mapping[str, Any]) -> str:
    """Return the names of the components as given, for reports."""
    words = [name_of(part) for part in first]
    words += [f"{key} {name_of(part)}" for key, part in others.items() if part is not None]
    return f"vdm: {', '.join(words)}"


def as_model(model: VDM, components: str) -> Model:
    """Return the functions of a variational diffusion model."""
    time = "continuous time" if model.timesteps is None else f"T = {model.timesteps}"

    def draw(params, key, batch, model_state=None, *, dropout=True):
        return training_draw(model, params, key, batch, model_state, dropout=dropout)[0]

    return Model(
        init=partial(init, model),
        loss=partial(loss, model),
        elbo=partial(elbo, model),
        sample=partial(sample, model),
        init_model_state=partial(init_model_state, model),
        bound=f"diffusion ELBO, {time}",
        components=components,
        per_noise_level=PerNoiseLevel(
            elbo=partial(elbo_per_noise_level, model),
            draw=draw,
            loss=partial(loss_per_noise_level, model),
            output_gain=partial(output_gain, model),
            gamma=lambda params, t: model.schedule.gamma(params["schedule"], t),
        ),
    )


def _training_path(schedule: Schedule, spec: Any, timesteps: int | None) -> Schedule:
    """Build the schedule of the training times, which has the ends of the model's schedule."""
    if spec is None:
        return schedule
    path = build(SCHEDULES, spec, "train_schedule")
    if timesteps is not None:
        raise ValueError(f"train_schedule: is for continuous time, found timesteps = {timesteps}")
    if schedule.learned or path.learned:
        raise ValueError("train_schedule: neither it nor the schedule may be learned")
    with jax.ensure_compile_time_eval():
        ends = [[float(s.gamma(None, t)) for t in (0.0, 1.0)] for s in (schedule, path)]
    if not np.allclose(*ends, rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"train_schedule: expected the ends {ends[0]} of the schedule, found {ends[1]}"
        )
    return path
