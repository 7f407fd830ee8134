"""Samples of a variational diffusion model, eq. (19), (20), (24), (28)–(30)."""

from functools import partial

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import Interval, data_interval
from vdm_jax.elbo import Process, same_for_all
from vdm_jax.estimators.variance import node_levels, squared_errors
from vdm_jax.keys import example_keys, key_of_each
from vdm_jax.likelihoods import observation
from vdm_jax.models.model import BatchLike, Measure, check_params, encoded
from vdm_jax.models.vdm.parts import VDM, process
from vdm_jax.samplers import GRIDS, SAMPLERS, Grid, Sampler, build_path, sample_chain
from vdm_jax.samplers.chain import choose
from vdm_jax.schedules import Schedule, interval
from vdm_jax.specs import build
from vdm_jax.typing import Array, Int, Key, Params, Scalar, Spec


def sample(
    model: VDM,
    params: Params,
    key: Key,
    n: int,
    sampler: Spec | Sampler = "ancestral",
    steps: int | None = None,
    grid: Spec | Grid = "schedule",
    first: int | Int[Array, ""] = 0,
    fitted: Array | None = None,
) -> Array:
    """Draw the examples `first` to `first + n − 1` of a key, [n, *d] as stored.

    Args:
      sampler: a `Sampler`, or a name or spec of `SAMPLERS`.
      steps: number of intervals of the chain; None for `default_steps`.
      grid: the noise levels between the intervals, a name or spec of `GRIDS`.
      fitted: the mean of `fit_sampler` over training examples, for a sampler with a fitted variance.

    Raises:
      ValueError: `n` or `steps` is out of range; with `mean`, `steps` does not divide `timesteps`, or the grid
        is not that of the schedule; an explicit grid for a chain that ends without the network; the variance of
        the sampler is "fitted" and `fitted` is None.
    """
    check_params(params)
    n = whole_number(n, "n", 1)
    steps = _checked_steps(model, steps, grid)
    trained = model.timesteps or steps
    continuous = model.denoiser.parameterization.continuous
    on_path = _on_path(model, params, grid, steps)
    solver = build(SAMPLERS, sampler, "sampler")
    if solver.fitted is not None and fitted is not None:
        solver = solver.fitted(node_levels(on_path, steps), fitted)
    start_keys, chain_keys = example_keys(key, first + jnp.arange(n), 2)

    def predict(xt: Array, t: Array, chain_interval: Interval) -> Array:
        predicted_interval = chain_interval
        if steps != trained and not continuous:
            # the network has learned the `mean` of intervals of the training chain, which are shorter
            earlier = jnp.maximum(t - 1 / trained, 0)
            shorter = interval(model.schedule, params["schedule"], earlier, t)
            predicted_interval = choose(t == 0, chain_interval, shorter)
        predict_x0 = partial(model.denoiser.predict, params["network"])
        if _trained_at_0(model):
            return predict_x0(xt, same_for_all(predicted_interval, xt))
        return jax.lax.cond(
            t == 0,
            lambda: predict_data(model, params, xt, chain_interval.gamma_t),
            lambda: predict_x0(xt, same_for_all(predicted_interval, xt)),
        )

    x0 = sample_chain(
        predict,
        lambda latent: predict_data(model, params, latent, on_path.gamma(0.0)),
        jax.vmap(lambda key: jax.random.normal(key, model.statistics.shape))(start_keys),
        chain_keys,
        schedule=on_path.schedule,
        schedule_params=None,
        sampler=solver,
        steps=steps,
    )
    return model.likelihood.decode(x0)


def fit_sampler(
    model: VDM,
    sampler: Spec | Sampler = "ancestral",
    steps: int | None = None,
    grid: Spec | Grid = "schedule",
) -> Measure | None:
    """Check the settings of samples, and return the measurement on training examples that the sampler needs.

    Returns:
      (params, key, batch) -> [B, n], the mean of (ε − ε̂)² of each example at n noise levels; None for a
      sampler that needs none.

    Raises:
      ValueError: as in `sample`; for a variance of `mean`, a number of steps other than `timesteps`.
    """
    count = _checked_steps(model, steps, grid)
    # the noise levels of a fixed schedule do not depend on the params
    _path(model, model.schedule.init(jax.random.key(0)), grid, count)
    if build(SAMPLERS, sampler, "sampler").fitted is None:
        return None
    if not model.denoiser.parameterization.continuous and count != model.timesteps:
        raise ValueError(
            f"steps: the variance of 'mean' is fitted on the training chain, expected {model.timesteps}, "
            f"found {count}"
        )

    def measure(params: Params, key: Key, batch: BatchLike) -> Array:
        batch, x0 = encoded(batch, model.statistics, model.likelihood)
        keys = key_of_each(key, batch.index)
        return squared_errors(_on_path(model, params, grid, count), x0, keys, count)

    return measure


def _checked_steps(model: VDM, steps: int | None, grid: Spec | Grid) -> int:
    """Return the number of steps, checked with the grid."""
    count = default_steps(model) if steps is None else steps
    whole_number(count, "steps", 1, MAX_STEPS)
    trained = model.timesteps or count
    if not model.denoiser.parameterization.continuous and trained % count != 0:
        raise ValueError(
            f"steps: 'mean' predicts x_s of an interval of the training chain, expected a divisor of "
            f"timesteps = {trained}, found {count}"
        )
    if not _trained_at_0(model) and not build(GRIDS, grid, "grid").keeps_ends:
        raise ValueError(
            "grid: the network of this chain is not trained at γ(0), expected a grid that ends there"
        )
    return count


def _trained_at_0(model: VDM) -> bool:
    """Return True if training calls the network at γ_0; the T matching terms of a chain do not."""
    return model.timesteps is None or model.likelihood.uses_prediction


def _path(model: VDM, params: Params, grid: Spec | Grid, steps: int) -> Schedule:
    """Return the path of a grid between the ends of the schedule with the given params."""
    return build_path(grid, model.denoiser.parameterization, model.schedule, params, steps)


def _on_path(model: VDM, params: Params, grid: Spec | Grid, steps: int) -> Process:
    """Return the process of a model along the path of a grid."""
    path = _path(model, params["schedule"], grid, steps)
    return process(model, params)._replace(schedule=path, schedule_params=None)


def default_steps(model: VDM) -> int:
    """Return the number of sampling steps: 1000, or T for a parameterization without continuous time."""
    if model.denoiser.parameterization.continuous or model.timesteps is None:
        return 1000
    return model.timesteps


def predict_data(model: VDM, params: Params, latent: Array, gamma_0: Scalar) -> Array:
    """Predict x_0 of the least noisy latents [n, *d]."""
    if not _trained_at_0(model):
        # the likelihood has the expectation of x_0 there
        mean, log_var = observation(model.likelihood, latent, None, gamma_0)
        return jax.vmap(model.likelihood.expected, (0, None))(mean, log_var)
    last = same_for_all(data_interval(gamma_0), latent)
    return model.denoiser.predict(params["network"], latent, last)
