"""From noise to data: steps that see only (x_t, x̂_0, interval), and the loop over them, eq. (19), (20).

Any sampler works with any parameterization and any network. The chain runs from t = 1 to t = 0 in `steps`
intervals and ends with the step to the data, which are the latent with γ = −∞: there (9) is x̂_0 without noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import Interval, alpha, log_sigma, posterior
from vdm_jax.elbo import Denoise, check_steps, output_of, predict_data
from vdm_jax.parameterizations import PARAMETERIZATIONS, to_x0
from vdm_jax.schedules import SCHEDULES, Schedule, interval
from vdm_jax.specs import build
from vdm_jax.typing import Data, Key, Params, Scalar

SamplerStep = Callable[[Key, Data, Data, Interval], Data]
"""(key, xt, x0_hat, interval) -> xs, for one example or a batch of them."""


def ancestral() -> SamplerStep:
    """x_s ~ q(x_s | x_t, x̂_0), eq. (19) (Ho et al. 2020)."""
    return lambda key, xt, x0_hat, step: posterior(xt, x0_hat, step).sample(key)


def ddim() -> SamplerStep:
    """x_s = α_s x̂_0 + σ_s ε̂, eq. (20), deterministic (Song et al. 2021)."""

    def sample(key, xt, x0_hat, step):
        del key
        keep = jnp.exp(log_sigma(step.gamma_s) - log_sigma(step.gamma_t))
        return keep * xt - alpha(step.gamma_s) * jnp.expm1(-0.5 * step.delta) * x0_hat

    return sample


SAMPLERS: dict[str, Callable[..., SamplerStep]] = {"ancestral": ancestral, "ddim": ddim}
"""name -> factory of a `SamplerStep`."""


def sample_chain(
    predict: Callable[[Data, Scalar, Interval], Data],
    final: Callable[[Data], Data],
    x1: Data,
    key: Key,
    *,
    schedule: Schedule,
    schedule_params: Params,
    sampler: SamplerStep,
    steps: int,
) -> Data:
    """Scan a sampler from x_{t=1} down to the data.

    Args:
      predict: (xt, t, interval) -> x̂_0, of one example or of a whole batch, as x1 is.
      final: x_{t=0} -> x̂_0.
      x1: the starting noise.
    """

    def body(xt, i):
        t = (i + 1) / steps
        step = interval(schedule, schedule_params, i / steps, t)
        index = i.astype(jnp.int32)
        return sampler(jax.random.fold_in(key, index), xt, predict(xt, t, step), step), None

    times = jnp.arange(steps - 1, -1, -1).astype(x1.dtype)
    x_first, _ = jax.lax.scan(body, x1, times)
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
      sampler: a step, or its name or spec of `SAMPLERS`.
      steps: number of intervals ≥ 1; the network is called once for each and once for the data.

    Returns:
      x, floats of that shape: x̂_0 from the least noisy latent.

    Raises:
      ValueError: unknown names, steps < 1, an output of another shape than asked for.

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
    check_steps(steps, "steps must be at least 1")

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
        sampler=build(SAMPLERS, sampler, "sampler"),
        steps=steps,
    )
