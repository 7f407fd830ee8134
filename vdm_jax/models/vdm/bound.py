"""The bound of a variational diffusion model, in total and by noise level, eq. (10)–(15)."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import whole_number
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import Draw, Elbo, mean_over_draws, training_interval
from vdm_jax.keys import key_of_each
from vdm_jax.models.model import BatchLike, check_params, encoded
from vdm_jax.models.vdm.parts import VDM, process
from vdm_jax.typing import Array, Key, Params


def elbo(model: VDM, params: Params, key: Key, batch: BatchLike, draws: int = 1) -> Elbo:
    """Estimate −ELBO of each example, nats [B], as the mean of `draws` draws."""
    # a single edge bounds no bin: the split by noise level is empty
    bound, _ = elbo_per_noise_level(model, params, key, batch, np.zeros(1), draws)
    return bound


def elbo_per_noise_level(
    model: VDM,
    params: Params,
    key: Key,
    batch: BatchLike,
    edges: Array | np.ndarray,
    draws: int = 1,
) -> tuple[Elbo, Array]:
    """Estimate −ELBO of each example, nats [B], and its matching term by bin of γ, [B, K].

    Args:
      edges: [K + 1], as in `PerNoiseLevel`.
      draws: number of draws per example, of which the mean is returned.
    """
    whole_number(draws, "draws", 1)
    check_params(params)
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    diffusion, keys = process(model, params), key_of_each(key, batch.index)

    def bound_and_split(draw: Draw) -> tuple[Elbo, Array]:
        return draw.bound, split_by_noise(draw.noisy.interval, draw.bound.matching, edges)

    return mean_over_draws(diffusion, batch.x, x0, keys, model.timesteps, draws, bound_and_split)


def split_by_noise(intervals: Interval, values: Array, edges: Array | np.ndarray) -> Array:
    """Return [B, K] with each of `values` [B] in the bin of its interval's midpoint, and zeros elsewhere."""
    middle = intervals.gamma_t - 0.5 * intervals.delta
    # without the first and the last edge, so that values beyond them fall into the first and the last bin
    bins = jnp.searchsorted(jnp.asarray(edges[1:-1], middle.dtype), middle, side="right")
    return jax.nn.one_hot(bins, len(edges) - 1, dtype=values.dtype) * values[:, None]


def output_gain(model: VDM, params: Params, t: Array) -> Array:
    """Return |∂x̂_0/∂net|, the effect of the network's output, at times t [n] of the schedule."""

    def interval_at(t):
        interval, _ = training_interval(model.schedule, params["schedule"], t, model.timesteps)
        return interval

    return jnp.abs(model.denoiser.output_gain(jax.vmap(interval_at)(t)))
