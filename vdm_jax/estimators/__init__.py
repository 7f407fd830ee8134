"""Estimators of the log-likelihood of a diffusion model, eq. (10), (24)–(27).

    elbo         the evidence lower bound, with T steps or in continuous time
    tuned        the ELBO of a reverse process whose variance is tuned
    importance   the importance-weighted bound of whole trajectories
    ode          the likelihood of the probability-flow ODE

The first three are bounds for the chain that generates samples; `ode` is of the flow, which is another model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_array, check_callable, check_key
from vdm_jax.elbo import Denoise, check_ends, process_of
from vdm_jax.estimators.base import Estimate, Estimator
from vdm_jax.estimators.bounds import elbo, time_of, tuned
from vdm_jax.estimators.dequantization import DEQUANTIZATIONS
from vdm_jax.estimators.importance import importance
from vdm_jax.estimators.ode import DIVERGENCES, EXACT_LIMIT, SOLVERS, ode
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build, located
from vdm_jax.typing import Key, Numbers, Params, Scalar, Spec

__all__ = [
    "DEQUANTIZATIONS",
    "DIVERGENCES",
    "ESTIMATORS",
    "EXACT_LIMIT",
    "SOLVERS",
    "Estimate",
    "Estimator",
    "elbo",
    "importance",
    "log_likelihood",
    "ode",
    "time_of",
    "tuned",
]

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "elbo": elbo,
    "tuned": tuned,
    "importance": importance,
    "ode": ode,
}
"""name -> factory of an `Estimator`."""


def log_likelihood(
    denoise: Denoise,
    x: Numbers,
    key: Key,
    *,
    schedule: Spec | Schedule,
    schedule_params: Params = None,
    parameterization: Spec | Parameterization = "eps",
    likelihood: Spec | Likelihood = "gaussian",
    estimator: Spec | Estimator = "elbo",
) -> Scalar:
    """Estimate log p(x) of one example, in nats: higher is better.

    The means of `elbo`, `tuned` and `importance` are lower bounds on log p(x). `ode` estimates the log-density
    of continuous data, and a lower bound on the log-probability of K-level data, up to the error of its grid.

    Args:
      denoise, x, key, schedule, schedule_params, parameterization, likelihood: as in `negative_elbo`. For
        continuous data, the density is that of x_t/α_t at t = 0, in the units of the data.
      estimator: an `Estimator`, or a name or spec of `ESTIMATORS`, such as
        {"name": "importance", "samples": 10, "timesteps": 500}.

    Raises:
      ValueError: an unknown name, an argument that an estimator does not take or that is out of range, an
        estimator of a chain without `timesteps`, the variance "fitted", which only a trained run has, `mean` in
        continuous time, a `dequantization` of continuous
        data, or the exact divergence in more than `EXACT_LIMIT` dimensions.
      TypeError: as in `negative_elbo`.

    Examples:
      For standard normal data the best denoiser is x̂_0 = α x_t, and the flow does not move:

      >>> log_prob = vdm.log_likelihood(
      ...     lambda xt, gamma_t: vdm.diffusion.alpha(gamma_t) * xt,
      ...     jnp.asarray([1.0, -1.0]),
      ...     jax.random.key(0),
      ...     schedule="linear",
      ...     parameterization="x0",
      ...     estimator={"name": "ode", "divergence": "exact", "steps": 8},
      ... )
      >>> print(f"{log_prob:.4f}")  # −1 − log 2π
      -2.8379
    """
    schedule = build(SCHEDULES, schedule, "schedule")
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    likelihood = build(LIKELIHOODS, likelihood, "likelihood")
    estimator = build(ESTIMATORS, estimator, "estimator")
    check_schedule_params(schedule, schedule_params)
    check_callable(denoise, ("xt", "gamma_t"), "denoise")
    check_key(key)
    check_array(x, "x")
    check_ends(schedule, parameterization)
    process = process_of(
        denoise,
        parameterization=parameterization,
        schedule=schedule,
        schedule_params=schedule_params,
        likelihood=likelihood,
    )
    with located("estimator", estimator.settings):
        batch = jnp.asarray(x)[None]
        estimator.check(parameterization, likelihood, batch.shape[1:])
        x0 = jax.vmap(likelihood.encode)(batch)
        return estimator.estimate(process, batch, x0, key[None]).log_prob[0]
