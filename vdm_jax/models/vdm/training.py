"""The training loss of a variational diffusion model.

`training_draw` has the steps in order: sample times, corrupt, predict and score (`terms`), weigh.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_key
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import (
    Elbo,
    NoisySample,
    corrupt,
    terms,
    training_interval,
    weighted_square,
)
from vdm_jax.keys import example_keys
from vdm_jax.models.model import BatchLike, Metrics, TrainingDraw, check_params, encoded
from vdm_jax.models.vdm.bound import split_by_noise
from vdm_jax.models.vdm.parts import VDM, process
from vdm_jax.time_samplers import TimeSample, TrainingPath
from vdm_jax.typing import Array, Key, Keys, Params, PyTree, Reals, Scalar
from vdm_jax.variance import per_example_params, record_loss
from vdm_jax.weightings import training_weight


def init(model: VDM, key: Key) -> Params:
    """Initialize the params of the network and the schedule."""
    check_key(key)
    network_key, schedule_key = jax.random.split(key)
    return {
        "network": model.denoiser.init(network_key),
        "schedule": model.schedule.init(schedule_key),
    }


def init_model_state(model: VDM, params: Params) -> PyTree:
    """Return the initial state of the time sampler, which is None for a sampler that does not adapt."""
    return model.time_sampler.init(training_path(model, params))


def loss(
    model: VDM, params: Params, key: Key, batch: BatchLike, model_state: PyTree = None
) -> tuple[Scalar, Metrics | tuple[Metrics, PyTree]]:
    """Return the training loss of a batch and its metrics, bits/dim.

    With a model state, the metrics are paired with the next model state.
    """
    draw, next_state = training_draw(model, params, key, batch, model_state)
    bits = model.statistics.bits
    metrics = {name: bits * jnp.mean(term) for name, term in draw.bound._asdict().items()}
    value = bits * jnp.mean(draw.loss.total)
    metrics |= {"loss": value, "bits_per_dim": bits * jnp.mean(draw.bound.total)}
    return value, metrics if model_state is None else (metrics, next_state)


def loss_per_noise_level(
    model: VDM,
    params: Params,
    key: Key,
    batch: BatchLike,
    edges: Array | np.ndarray,
    model_state: PyTree = None,
) -> Array:
    """Return the training loss by bin of γ, [K], without reconstruction and prior, bits/dim."""
    draw, _ = training_draw(model, params, key, batch, model_state)
    return model.statistics.bits * jnp.mean(
        split_by_noise(draw.interval, draw.loss.matching, edges), 0
    )


def training_draw(
    model: VDM,
    params: Params,
    key: Key,
    batch: BatchLike,
    model_state: PyTree = None,
    *,
    dropout: bool = True,
) -> tuple[TrainingDraw, PyTree]:
    """Draw one noisy sample of each example, and score it.

    Args:
      model_state: the state of the time sampler; None for the initial state.
      dropout: True to apply the network's dropout.

    Returns:
      The scored draw, and the next state of the time sampler.
    """
    check_params(params)
    check_key(key)
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    time_key, key = jax.random.split(key)
    noise_keys, end_keys, dropout_keys = example_keys(key, batch.index, 3)

    times, state = sample_times(model, params, time_key, batch.phase, model_state)
    noisy, handle = corrupt_for_training(model, params, noise_keys, x0, times.t)
    diffusion = process(model, params, dropout_keys if dropout else None)
    bound, error = terms(diffusion, batch.x, x0, noisy, end_keys)
    losses = weigh(model, noisy, error, bound.matching)
    # the sampler learns where the loss is large, and so takes the losses before their importance weights
    state = model.time_sampler.update(state, times, losses["loss"] / model.statistics.dim)
    if times.weight is not None:
        losses = {name: times.weight * value for name, value in losses.items()}
    if handle is not None:  # the schedule is learned, for which the loss is the bound
        recorded = record_loss(losses["bound"], model.statistics.bits * handle)
        losses = losses | {"bound": recorded, "loss": recorded}
    return as_draw(noisy.interval, bound, losses), state


def as_draw(interval: Interval, bound: Elbo, losses: dict[str, Reals]) -> TrainingDraw:
    """Return the draw of a bound whose matching term is replaced by the weighted losses."""
    return TrainingDraw(
        interval=interval,
        bound=bound._replace(matching=losses["bound"]),
        loss=bound._replace(matching=losses["loss"]),
        squared_error=losses["squared_error"],
    )


def sample_times(
    model: VDM, params: Params, key: Key, phase: Reals, state: PyTree = None
) -> tuple[TimeSample, PyTree]:
    """Return the training times of a batch, and the state of the time sampler that drew them."""
    path = training_path(model, params)
    state = model.time_sampler.init(path) if state is None else state
    return model.time_sampler.sample(state, path, key, phase), state


def training_path(model: VDM, params: Params) -> TrainingPath:
    """Return the noise levels at the training times, and the losses there of a network with output zero."""
    schedule, schedule_params = model.train_schedule, params["schedule"]

    def interval_at(t):
        return training_interval(schedule, schedule_params, t, model.timesteps)

    def expected_loss(t):
        interval, time_weight = jax.vmap(interval_at)(t)
        deviation = model.denoiser.deviation(interval)
        return jax.vmap(partial(training_loss, model))(interval, time_weight, deviation)

    return TrainingPath(model.timesteps, partial(schedule.gamma, schedule_params), expected_loss)


def corrupt_for_training(
    model: VDM, params: Params, keys: Keys, x0: Array, times: Array
) -> tuple[NoisySample, Array | None]:
    """Draw the latents of a batch along the path of the training times.

    Returns:
      The latents. If the interior of the schedule is trained on the variance of the loss, also the handle for
      `record_loss`: each example then has its own copy of the interior.
    """
    schedule, schedule_params = model.schedule, params["schedule"]
    if not model.by_variance:
        path = model.train_schedule
        return corrupt(path, schedule_params, keys, x0, times, model.timesteps), None
    # eq. (39) multiplies the gradient of each example by its loss, which needs a copy for each example
    interior, handle = per_example_params(
        schedule_params[schedule.interior], jnp.zeros(times.shape)
    )
    axes = {name: 0 if name == schedule.interior else None for name in schedule_params}
    per_example = schedule_params | {schedule.interior: interior}
    noisy = corrupt(schedule, per_example, keys, x0, times, model.timesteps, axes)
    return noisy, handle


def weigh(model: VDM, noisy: NoisySample, error: Array, matching: Reals) -> dict[str, Reals]:
    """Return the bound, the loss and the network's squared error of the noisy samples, [B] each."""

    def squared_error(interval: Interval, error: Array) -> Scalar:
        # x_0 − x̂_0 = out · (target − F)
        scale = 1 / model.denoiser.parameterization(interval).out
        return weighted_square(jnp.ones_like(interval.delta), scale, error)

    if model.weighting.bound:
        loss = matching  # equal in exact arithmetic: this way, loss and bound agree to the bit
    else:
        loss = jax.vmap(partial(training_loss, model))(noisy.interval, noisy.time_weight, error)
    squared_errors = jax.vmap(squared_error)(noisy.interval, error)
    return {"bound": matching, "loss": loss, "squared_error": squared_errors}


def training_loss(model: VDM, interval: Interval, time_weight: Scalar, error: Array) -> Scalar:
    """Return the training loss of an error x_0 − x̂_0 of one example at one time, nats."""
    weight, scale = training_weight(
        interval, time_weight, model.denoiser.parameterization, model.loss_space, model.weighting
    )
    return weighted_square(weight, scale, error)
