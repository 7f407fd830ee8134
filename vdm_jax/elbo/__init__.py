"""The evidence lower bound of a diffusion model, per example and in nats, eq. (10)–(18).

    −ELBO = reconstruction + matching + prior                                        (10)
    prior = KL(q(x_{t=1} | x_0) ‖ N(0, I))                                             (11)
    reconstruction = −E log p(x_0 | x_{t=0})                                           (12)
    matching = T E_i ½ e^{−γ_t} expm1(Δ) ‖x_0 − x̂_0‖²,  or  ½ E_t γ'(t) e^{−γ_t} ‖x_0 − x̂_0‖²   (13), (14)

`negative_elbo` estimates the bound for one example and a plain function. Sources: Kingma et al. 2021; Luo 2022
for the consistency form.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vdm_jax.checks import check_array, check_callable, check_key
from vdm_jax.elbo.consistency import consistency_bridge, consistency_log_ratio, consistency_printed
from vdm_jax.elbo.denoising import denoising
from vdm_jax.elbo.terms import (
    Denoise,
    Elbo,
    NoisySample,
    check_ends,
    check_timesteps,
    draw_noisy,
    draw_times,
    matching,
    mean_of_draws,
    output_of,
    predict_data,
    prior,
    reconstruction,
    training_interval,
    weighted_square,
)
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import SCHEDULES, check_schedule_params
from vdm_jax.specs import build, choose
from vdm_jax.typing import Key, Params

__all__ = [
    "FORMS",
    "Denoise",
    "Elbo",
    "NoisySample",
    "check_ends",
    "check_timesteps",
    "consistency_bridge",
    "consistency_log_ratio",
    "consistency_printed",
    "denoising",
    "draw_noisy",
    "draw_times",
    "matching",
    "mean_of_draws",
    "negative_elbo",
    "output_of",
    "predict_data",
    "prior",
    "reconstruction",
    "training_interval",
    "weighted_square",
]


FORM_ARGUMENTS = (
    "denoise",
    "x",
    "key",
    "schedule",
    "schedule_params",
    "parameterization",
    "likelihood",
    "timesteps",
)

FORMS: dict[str, Callable[..., Elbo]] = {
    "denoising": denoising,
    "consistency_log_ratio": consistency_log_ratio,
    "consistency_bridge": consistency_bridge,
}
"""name -> estimator of the bound, for `negative_elbo`."""


def negative_elbo(
    denoise: Denoise,
    x: Any,
    key: Key,
    *,
    schedule: Any,
    schedule_params: Params = None,
    parameterization: Any = "eps",
    likelihood: Any = "gaussian",
    timesteps: int | None = None,
    form: str | Callable[..., Elbo] = "denoising",
) -> Elbo:
    """Estimate −ELBO of one example from one draw of the time and the latents; unbiased.

    Args:
      denoise: (xt, gamma_t) -> F, the network's output in the given parameterization.
      x: [*d], stored as the likelihood has it (integers for K levels).
      key: randomness of the draw.
      schedule: a `Schedule`, or a name or spec of `SCHEDULES`.
      schedule_params: params of a learned schedule.
      parameterization: a row, its name or its spec.
      likelihood: a `Likelihood`, its name or its spec.
      timesteps: T ≥ 1, or None for continuous time.
      form: one of `FORMS`, or a function such as these. The consistency forms, eq. (16), need timesteps.

    Returns:
      `Elbo` in nats, summed over the data's axes.

    Raises:
      ValueError: unknown names, `mean` or a consistency form in continuous time, an output of another shape
        than the data, params that are not those of the learned schedule.
      TypeError: a `form` that is no such function, floats where K levels are expected, a `denoise` that is no
        callable of two arguments, an output that is no array of floats, `key` no typed key.

    Examples:
      One step and a prediction of zero: ½ (SNR(0) − SNR(1)) ‖x‖² whatever is drawn, eq. (13).

      >>> x = jnp.asarray([1.0, 0.0])
      >>> bound = vdm.negative_elbo(
      ...     lambda xt, gamma_t: jnp.zeros_like(xt),
      ...     x,
      ...     jax.random.key(0),
      ...     schedule={"name": "linear", "gamma_min": -2.0, "gamma_max": 2.0},
      ...     parameterization="x0",
      ...     timesteps=1,
      ... )
      >>> print(f"{bound.matching:.3f}, {bound.prior:.3f}")
      3.627, 0.067
    """
    schedule = build(SCHEDULES, schedule, "schedule")
    row = build(PARAMETERIZATIONS, parameterization, "parameterization")
    likelihood = build(LIKELIHOODS, likelihood, "likelihood")
    estimate = choose(FORMS, form, "form") if isinstance(form, str) else form
    check_callable(estimate, FORM_ARGUMENTS, "form")
    check_timesteps(timesteps, row)
    check_schedule_params(schedule, schedule_params)
    check_callable(denoise, ("xt", "gamma_t"), "denoise")
    check_key(key)
    check_array(x, "x")
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    check_ends(schedule, row)
    timesteps = None if timesteps is None else int(timesteps)
    if timesteps is None and estimate is not denoising:
        raise ValueError(f"form {form!r} needs a chain: give timesteps=T, found None")
    return estimate(denoise, x, key, schedule, schedule_params, row, likelihood, timesteps)
