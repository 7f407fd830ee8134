"""The chain from noise to data: a scan of a sampler over the intervals between t = 1 and t = 0.

Any sampler works with any parameterization and any network. After the last interval comes the one to the data,
which are the latent with γ = −∞: there (9) is x̂_0 without noise, and so is the step of every sampler.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import Interval, data_interval
from vdm_jax.keys import fold
from vdm_jax.samplers.base import Sampler
from vdm_jax.schedules import Schedule, interval
from vdm_jax.typing import Array, Bool, Data, Key, Keys, Params, Scalar


def sample_chain(
    predict: Callable[[Data, Scalar, Interval], Data],
    final: Callable[[Data], Data],
    x1: Data,
    key: Key | Keys,
    *,
    schedule: Schedule,
    schedule_params: Params,
    sampler: Sampler,
    steps: int,
) -> Data:
    """Scan a sampler from x_{t=1} down to the data.

    Args:
      predict: (xt, t, interval) -> x̂_0, for one example or a batch like `x1`. The interval is one of the path,
        ending at t, or the one to the data; for a later stage within an interval, a single noise level.
      final: x_{t=0} -> x̂_0.
      x1: the starting noise, [*d] or [B, *d].
      key: one key, or one per example [B]. With one per example, a sample does not depend on the rest of the
        batch.
      schedule, schedule_params: the path of the chain, and its params.
      sampler: the solver of each interval.
      steps: number of intervals.
    """

    def body(carry, i):  # the interval (i/T, (i+1)/T)
        xt, state = carry
        t = (i + 1) / steps
        chain_interval = interval(schedule, schedule_params, i / steps, t)
        # keys depend on the position in the chain only, not on the draws before it
        step_key = fold(key, i.astype(jnp.int32))

        def predict_at(xt, level):
            if level is chain_interval:
                return predict(xt, t, chain_interval)
            # a later stage of a solver; at the end of the interval it predicts as the next step does
            at_end = level.gamma_t <= chain_interval.gamma_s
            level = choose(at_end, _ending_at(schedule, schedule_params, i, steps), level)
            return predict(xt, jnp.where(at_end, i / steps, t), level)

        return sampler.step(step_key, xt, chain_interval, predict_at, state), None

    # in the type of the latents, in which the times are computed
    positions = jnp.arange(steps - 1, -1, -1).astype(x1.dtype)
    (least_noisy, _), _ = jax.lax.scan(body, (x1, sampler.init(x1)), positions)
    return final(least_noisy)


def _ending_at(schedule: Schedule, params: Params, i: Scalar, steps: int) -> Interval:
    """Return the interval of a chain that ends at time i/steps; for i = 0, the interval to the data."""
    chain_interval = interval(schedule, params, jnp.maximum(i - 1, 0) / steps, i / steps)
    return choose(i == 0, data_interval(chain_interval.gamma_t), chain_interval)


def choose(condition: Bool[Array, ""], yes: Interval, no: Interval) -> Interval:
    """Return one of two intervals."""
    return jax.tree.map(partial(jnp.where, condition), yes, no)
