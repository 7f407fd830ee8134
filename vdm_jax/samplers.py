"""Solvers of the reverse process, and the chain from noise to data that they make, eq. (19), (20).

Any sampler works with any parameterization and any network. The chain runs from t = 1 to t = 0 in `steps`
intervals and ends with the interval to the data, which are the latent with γ = −∞: there (9) is x̂_0 without
noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import (
    MAX_STEPS,
    check_callable,
    check_key,
    check_sizes,
    is_key,
    whole_number,
)
from vdm_jax.diffusion import Interval, alpha, log_sigma, posterior
from vdm_jax.elbo import Denoise, check_ends, output_of, predict_data
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, to_x0
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params, interval
from vdm_jax.specs import build
from vdm_jax.typing import Data, Key, Keys, Params, PyTree, Scalar, Spec

Predict = Callable[[Data, Interval], Data]
"""(xt, interval) -> x̂_0 of a latent at the noise level `interval.gamma_t`."""


class Sampler(NamedTuple):
    """A solver of the reverse process for one example or a batch.

    Attributes:
      init: x1 -> the solver's state, a pytree of arrays; () for solvers without memory.
      step: (key, xt, interval, predict, state) -> (xs, state). A solver of several stages calls `predict`
        several times; a multistep solver keeps earlier predictions in its state. `key` is one key, or the keys
        [B] of a batch; `noise_like` accepts both. A deterministic solver ignores it.

    Examples:
      >>> sampler = vdm.samplers.ddim()
      >>> interval = vdm.interval(vdm.schedules.linear(), None, 0.4, 0.5)
      >>> xt = jnp.asarray([1.0, -1.0])
      >>> predict = lambda xt, interval: 0.5 * xt
      >>> xs, state = sampler.step(None, xt, interval, predict, sampler.init(xt))
      >>> print(xs.round(3))
      [ 0.703 -0.703]
    """

    init: Callable[[Data], PyTree]
    step: Callable[[Key | Keys | None, Data, Interval, Predict, PyTree], tuple[Data, PyTree]]


def without_memory(move: Callable[[Key | Keys | None, Data, Data, Interval], Data]) -> Sampler:
    """Return a sampler without state that predicts once per interval, from `move`.

    Args:
      move: (key, xt, x0_hat, interval) -> xs.
    """

    def step(key, xt, interval, predict, state):
        return move(key, xt, predict(xt, interval), interval), state

    return Sampler(lambda x1: (), step)


def ancestral() -> Sampler:
    """Return the sampler that draws x_s ~ q(x_s | x_t, x̂_0), eq. (19) (Ho et al. 2020)."""

    def move(key, xt, x0_hat, interval):
        q = posterior(xt, x0_hat, interval)
        return q.mean + jnp.exp(0.5 * q.log_var) * noise_like(key, q.mean)

    return without_memory(move)


def ddim() -> Sampler:
    """Return the deterministic sampler x_s = α_s x̂_0 + σ_s ε̂, eq. (20) (Song et al. 2021)."""

    def move(key, xt, x0_hat, interval):
        del key
        gamma_s, gamma_t, delta = interval
        # the second form of (20), which is free of cancellation
        xt_coefficient = jnp.exp(log_sigma(gamma_s) - log_sigma(gamma_t))
        return xt_coefficient * xt - alpha(gamma_s) * jnp.expm1(-0.5 * delta) * x0_hat

    return without_memory(move)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"ancestral": ancestral, "ddim": ddim}
"""name -> factory of a `Sampler`."""


def noise_like(key: Key | Keys, x: Data) -> Data:
    """Draw standard normal noise with the shape and type of x, from one key or from one key per example [B]."""
    if is_key(key):
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(key)


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
      predict: (xt, t, interval) -> x̂_0, for one example or a batch, like `x1`.
      final: x_{t=0} -> x̂_0.
      x1: the starting noise, [*d] or [B, *d].
      key: one key, or one per example [B]. With one per example, a sample does not depend on the rest of the
        batch.
      schedule, schedule_params: the schedule and its params.
      sampler: the solver of each interval.
      steps: number of intervals.
    """
    fold_in = jax.random.fold_in if is_key(key) else jax.vmap(jax.random.fold_in, (0, None))

    def body(carry, i):  # the interval (i/T, (i+1)/T)
        xt, state = carry
        t = (i + 1) / steps
        chain_interval = interval(schedule, schedule_params, i / steps, t)
        # keys depend on the position in the chain only, not on the draws before it
        step_key = fold_in(key, i.astype(jnp.int32))

        def predict_at_t(xt, interval):
            return predict(xt, t, interval)

        return sampler.step(step_key, xt, chain_interval, predict_at_t, state), None

    # in the type of the latents, in which the times are computed
    positions = jnp.arange(steps - 1, -1, -1).astype(x1.dtype)
    (least_noisy, _), _ = jax.lax.scan(body, (x1, sampler.init(x1)), positions)
    return final(least_noisy)


def generate(
    denoise: Denoise,
    key: Key,
    shape: tuple[int, ...],
    *,
    schedule: Spec | Schedule,
    schedule_params: Params = None,
    parameterization: Spec | Parameterization = "eps",
    sampler: Spec | Sampler = "ancestral",
    steps: int = 1000,
) -> Data:
    """Generate one sample; `vmap` over keys for more.

    Args:
      denoise: (xt, gamma_t) -> F in the given parameterization. With `mean`, F is the mean of the posterior
        over an interval of this chain.
      key: randomness of the start and of every interval.
      shape: [*d].
      schedule, schedule_params, parameterization: as in `negative_elbo`.
      sampler: a `Sampler`, or a name or spec of `SAMPLERS`.
      steps: number of intervals ≥ 1; the network is called once for each and once for the data.

    Returns:
      x, floats [*d]: x̂_0 from the least noisy latent.

    Raises:
      ValueError: an unknown name, steps < 1, a size below 1, an output whose shape is not `shape`, params that
        do not match the learned schedule, or a schedule that ends in SNR = 0 with a parameterization that
        divides by α.
      TypeError: `denoise` is not a callable of two arguments, its output is not an array of floats, `key` is
        not a typed key, or `shape` is not a tuple.

    Examples:
      A denoiser with a constant prediction generates that constant:

      >>> sample = vdm.generate(
      ...     lambda xt, gamma_t: jnp.full_like(xt, 0.5),
      ...     jax.random.key(0),
      ...     (3,),
      ...     schedule="cosine",
      ...     parameterization="x0",
      ...     steps=4,
      ... )
      >>> print(sample)
      [0.5 0.5 0.5]
    """
    schedule = build(SCHEDULES, schedule, "schedule")
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    sampler = build(SAMPLERS, sampler, "sampler")
    whole_number(steps, "steps", 1, MAX_STEPS)
    check_schedule_params(schedule, schedule_params)
    check_ends(schedule, parameterization)
    check_callable(denoise, ("xt", "gamma_t"), "denoise")
    check_key(key)
    shape = check_sizes(shape, "shape")

    def predict(xt, t, interval):
        del t
        output = output_of(denoise, xt, interval.gamma_t)
        return to_x0(output, xt, parameterization(interval))

    def final(latent):
        gamma_0 = schedule.gamma(schedule_params, jnp.zeros((), latent.dtype))
        return predict_data(denoise, latent, gamma_0, parameterization)

    start_key, chain_key = jax.random.split(key)
    return sample_chain(
        predict,
        final,
        jax.random.normal(start_key, shape),
        chain_key,
        schedule=schedule,
        schedule_params=schedule_params,
        sampler=sampler,
        steps=steps,
    )
