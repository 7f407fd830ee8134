"""The evidence lower bound of a diffusion model, per example and in nats, eq. (10)–(18).

    −ELBO = reconstruction + matching + prior                                        (10)
    prior = KL(q(x_{t=1} | x_0) ‖ N(0, I))                                             (11)
    reconstruction = −E log p(x_0 | x_{t=0})                                           (12)
    matching = T E_i ½ e^{−γ_t} expm1(Δ) ‖x_0 − x̂_0‖²,  or  ½ E_t γ'(t) e^{−γ_t} ‖x_0 − x̂_0‖²   (13), (14)

`negative_elbo` estimates the bound for one example and any denoising function. Sources: Kingma et al. 2021; Luo
2022 for the consistency form.
"""

from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.checks import check_array, check_callable, check_key
from vdm_jax.elbo.batch import (
    Draw,
    Process,
    corrupt,
    log_prob_of_data,
    mean_over_draws,
    process_of,
    same_for_all,
    terms,
)
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
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build, choose
from vdm_jax.typing import Key, Numbers, Params, Spec

__all__ = [
    "FORMS",
    "Denoise",
    "Draw",
    "Elbo",
    "NoisySample",
    "Process",
    "check_ends",
    "check_timesteps",
    "consistency_bridge",
    "consistency_log_ratio",
    "consistency_printed",
    "corrupt",
    "denoising",
    "draw_noisy",
    "draw_times",
    "log_prob_of_data",
    "matching",
    "mean_of_draws",
    "mean_over_draws",
    "negative_elbo",
    "output_of",
    "predict_data",
    "prior",
    "process_of",
    "reconstruction",
    "same_for_all",
    "terms",
    "training_interval",
    "weighted_square",
]


# the positional arguments of an estimator of the bound
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
"""name -> estimator of the bound, a function of `FORM_ARGUMENTS`; for `negative_elbo`."""


def negative_elbo(
    denoise: Denoise,
    x: Numbers,
    key: Key,
    *,
    schedule: Spec | Schedule,
    schedule_params: Params = None,
    parameterization: Spec | Parameterization = "eps",
    likelihood: Spec | Likelihood = "gaussian",
    timesteps: int | None = None,
    form: str | Callable[..., Elbo] = "denoising",
) -> Elbo:
    """Return an unbiased estimate of −ELBO of one example from one draw of the time and the latents.

    Args:
      denoise: (xt, gamma_t) -> F, the network's output in the given parameterization.
      x: [*d], as stored (integers for K levels).
      key: randomness of the draw.
      schedule: a `Schedule`, or a name or spec of `SCHEDULES`.
      schedule_params: params of a learned schedule.
      parameterization: a `Parameterization`, or a name or spec of `PARAMETERIZATIONS`.
      likelihood: a `Likelihood`, or a name or spec of `LIKELIHOODS`.
      timesteps: T ≥ 1, or None for continuous time.
      form: a name of `FORMS`, or a function with their signature. The consistency forms, eq. (16), need
        `timesteps`.

    Returns:
      `Elbo` in nats, summed over the data's axes.

    Raises:
      ValueError: an unknown name, `mean` or a consistency form in continuous time, an output whose shape is not
        that of the data, or params that do not match the learned schedule.
      TypeError: `form` is not such a function, `x` has floats where K levels are expected, `denoise` is not a
        callable of two arguments, its output is not an array of floats, or `key` is not a typed key.

    Examples:
      With one step and a prediction of zero, every draw gives ½ (SNR(0) − SNR(1)) ‖x‖², eq. (13).

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
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    likelihood = build(LIKELIHOODS, likelihood, "likelihood")
    estimate = choose(FORMS, form, "form") if isinstance(form, str) else form
    check_callable(estimate, FORM_ARGUMENTS, "form")
    check_timesteps(timesteps, parameterization)
    check_schedule_params(schedule, schedule_params)
    check_callable(denoise, ("xt", "gamma_t"), "denoise")
    check_key(key)
    check_array(x, "x")
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    check_ends(schedule, parameterization)
    timesteps = None if timesteps is None else int(timesteps)
    # only the denoising form is known to have a continuous-time limit
    if timesteps is None and estimate is not denoising:
        raise ValueError(f"form {form!r} needs a chain: give timesteps=T, found None")
    return estimate(
        denoise, x, key, schedule, schedule_params, parameterization, likelihood, timesteps
    )
