"""From noise to data: solvers of the reverse process, and the loop over their steps, eq. (19), (20).

Any sampler works with any parameterization and any network. The chain runs from t = 1 to t = 0 in `steps`
intervals and ends with the step to the data, which are the latent with γ = −∞: there (9) is x̂_0 without noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import (
    MAX_STEPS,
    check_callable,
    check_instance,
    check_key,
    check_sizes,
    is_key,
    whole_number,
)
from vdm_jax.diffusion import Interval, alpha, log_sigma, posterior
from vdm_jax.elbo import Denoise, check_ends, output_of, predict_data
from vdm_jax.parameterizations import PARAMETERIZATIONS, to_x0
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params, interval
from vdm_jax.specs import build
from vdm_jax.typing import Data, Key, Keys, Params, PyTree, Scalar

Predict = Callable[[Data, Interval], Data]
"""(xt, interval) -> x̂_0 of a latent at the noise level `interval.gamma_t`."""


class Sampler(NamedTuple):
    """A solver of the reverse process, for one example or a batch of them; a row of `SAMPLERS`.

    Attributes:
      init: x1 -> the solver's state, a tree of arrays; () for solvers without memory.
      step: (key, xt, interval, predict, state) -> (xs, state). A solver of several stages calls `predict`
        several times; a multistep solver keeps earlier predictions in its state. The key is one, or those [B]
        of a batch; `noise_like` draws for both.

    Examples:
      >>> sampler = vdm.samplers.ddim()
      >>> step = vdm.interval(vdm.schedules.linear(), None, 0.4, 0.5)
      >>> xt = jnp.asarray([1.0, -1.0])
      >>> xs, state = sampler.step(None, xt, step, lambda xt, interval: 0.5 * xt, sampler.init(xt))
      >>> print(xs.round(3))
      [ 0.703 -0.703]
    """

    init: Callable[[Data], PyTree]
    step: Callable[[Any, Data, Interval, Predict, PyTree], tuple[Data, PyTree]]


def without_memory(move: Callable[[Any, Data, Data, Interval], Data]) -> Sampler:
    """Return the sampler of one prediction a step: `move` is (key, xt, x0_hat, interval) -> xs."""

    def step(key, xt, interval, predict, state):
        return move(key, xt, predict(xt, interval), interval), state

    return Sampler(lambda x1: (), step)


def ancestral() -> Sampler:
    """x_s ~ q(x_s | x_t, x̂_0), eq. (19) (Ho et al. 2020)."""

    def move(key, xt, x0_hat, interval):
        q = posterior(xt, x0_hat, interval)
        return q.mean + jnp.exp(0.5 * q.log_var) * noise_like(key, q.mean)

    return without_memory(move)


def ddim() -> Sampler:
    """x_s = α_s x̂_0 + σ_s ε̂, eq. (20), deterministic (Song et al. 2021)."""

    def move(key, xt, x0_hat, step):
        del key
        keep = jnp.exp(log_sigma(step.gamma_s) - log_sigma(step.gamma_t))
        return keep * xt - alpha(step.gamma_s) * jnp.expm1(-0.5 * step.delta) * x0_hat

    return without_memory(move)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"ancestral": ancestral, "ddim": ddim}
"""name -> factory of a `Sampler`."""


def build_sampler(spec: Any) -> Sampler:
    """Build a sampler of a name, a spec or a `Sampler`.

    Raises:
      ValueError: an unknown name or argument.
      TypeError: no sampler.
    """
    sampler = build(SAMPLERS, spec, "sampler")
    check_instance(sampler, Sampler, "sampler", "vdm.samplers.ddim()")
    return sampler


def noise_like(key: Key | Keys, x: Data) -> Data:
    """Draw standard normal noise like x: from one key, or from the keys [B] of the examples of a batch."""
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
      predict: (xt, t, interval) -> x̂_0, of one example or of a whole batch, as x1 is.
      final: x_{t=0} -> x̂_0.
      x1: the starting noise.
      key: one, or those [B] of the examples of a batch, whose samples then do not depend on each other.
    """
    fold = jax.random.fold_in if is_key(key) else jax.vmap(jax.random.fold_in, (0, None))

    def body(carry, i):
        xt, state = carry
        t = (i + 1) / steps
        step = interval(schedule, schedule_params, i / steps, t)
        step_key = fold(key, i.astype(jnp.int32))
        return sampler.step(step_key, xt, step, lambda x, at: predict(x, t, at), state), None

    times = jnp.arange(steps - 1, -1, -1).astype(x1.dtype)
    (x_first, _), _ = jax.lax.scan(body, (x1, sampler.init(x1)), times)
    return final(x_first)


def generate(
    denoise: Denoise,
    key: Key,
    shape: tuple[int, ...],
    *,
    schedule: Any,
    schedule_params: Params = None,
    parameterization: Any = "eps",
    sampler: Any = "ancestral",
    steps: int = 1000,
) -> Data:
    """Generate one sample of a shape; `vmap` over keys for more.

    Args:
      denoise: (xt, gamma_t) -> F in the given parameterization. `mean` is read as the mean of the posterior
        over this chain's own steps.
      key: randomness of the start and of every step.
      shape: [*d].
      schedule, schedule_params, parameterization: as in `negative_elbo`.
      sampler: a `Sampler`, or its name or spec of `SAMPLERS`.
      steps: number of intervals ≥ 1; the network is called once for each and once for the data.

    Returns:
      x, floats of that shape: x̂_0 from the least noisy latent.

    Raises:
      ValueError: unknown names, steps < 1, a size below 1, an output of another shape than asked for, params
        that are not those of the learned schedule, a schedule that ends in SNR = 0 with a parameterization that
        divides by α.
      TypeError: a `denoise` that is no callable of two arguments, an output that is no array of floats, a `key`
        that is no typed key, a `shape` that is no tuple.

    Examples:
      A denoiser that is sure of its data ends there:

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
    row = build(PARAMETERIZATIONS, parameterization, "parameterization")
    sampler = build_sampler(sampler)
    whole_number(steps, "steps", 1, MAX_STEPS)
    check_schedule_params(schedule, schedule_params)
    check_ends(schedule, row)
    check_callable(denoise, ("xt", "gamma_t"), "denoise")
    check_key(key)
    shape = check_sizes(shape, "shape")

    def predict(xt, t, step):
        del t
        return to_x0(output_of(denoise, xt, step.gamma_t), xt, row(step))

    def final(latent):
        gamma_0 = schedule.gamma(schedule_params, jnp.zeros((), latent.dtype))
        return predict_data(denoise, latent, gamma_0, row)

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
