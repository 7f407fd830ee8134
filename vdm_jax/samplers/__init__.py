"""Solvers of the reverse process, eq. (19), (20), (24), (28)–(30), and samples of a user's denoiser.

    name               order  predictions  draws                                 paper
    ancestral          1      1            from q(x_s | x_t, x̂_0), or wider      Ho et al. 2020
    ddim               1      1            if η > 0                              Song et al. 2021
    euler              1      1            no                                    Karras et al. 2022
    heun               2      2            no                                    Karras et al. 2022
    dpm_solver_pp      1–3    1            no                                    Lu et al. 2022
    sde_dpm_solver_pp  1–2    1            from q(x_s | x_t, D)                  Lu et al. 2022

The order is that of the error in the length of a step; predictions are those per interval. All solvers see
predictions of x_0 only and exact differences Δ, so that they work with every parameterization, base and
schedule. The noise levels between which they step are those of a grid of `GRIDS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, check_callable, check_key, check_sizes, whole_number
from vdm_jax.elbo import Denoise, check_ends, output_of, predict_data
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, to_x0
from vdm_jax.samplers.ancestral import FITTED, ancestral, log_excess
from vdm_jax.samplers.base import Predict, Sampler, noise_like, without_memory
from vdm_jax.samplers.chain import sample_chain
from vdm_jax.samplers.ddim import ddim
from vdm_jax.samplers.grids import GRIDS, Grid, build_path
from vdm_jax.samplers.heun import euler, heun
from vdm_jax.samplers.inverse import inpainting, reconstruction_guidance
from vdm_jax.samplers.multistep import dpm_solver_pp, sde_dpm_solver_pp
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build
from vdm_jax.typing import Data, Key, Params, Spec

__all__ = [
    "FITTED",
    "GRIDS",
    "SAMPLERS",
    "Grid",
    "Predict",
    "Sampler",
    "ancestral",
    "build_path",
    "ddim",
    "dpm_solver_pp",
    "euler",
    "generate",
    "heun",
    "inpainting",
    "log_excess",
    "noise_like",
    "reconstruction_guidance",
    "sample_chain",
    "sde_dpm_solver_pp",
    "without_memory",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
    "sde_dpm_solver_pp": sde_dpm_solver_pp,
}
"""name -> factory of a `Sampler`."""


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
    grid: Spec | Grid = "schedule",
) -> Data:
    """Generate one sample; `vmap` over keys for more.

    Args:
      denoise: (xt, gamma_t) -> F in the given parameterization. With `mean`, F is the mean of the posterior
        over an interval of this chain.
      key: randomness of the start and of every interval.
      shape: [*d].
      schedule, schedule_params, parameterization: as in `negative_elbo`.
      sampler: a `Sampler`, or a name or spec of `SAMPLERS`.
      steps: number of intervals ≥ 1; the network is called once or twice for each and once for the data.
      grid: the noise levels between the intervals, a name or spec of `GRIDS`; for `mean`, "schedule".

    Returns:
      x, floats [*d]: x̂_0 from the least noisy latent.

    Raises:
      ValueError: an unknown name, steps < 1, a grid that does not decrease or has another number of steps, a
        size below 1, an output whose shape is not `shape`, params that do not match the learned schedule, or a
        schedule that ends in SNR = 0 with a parameterization that divides by α.
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

    path = build_path(grid, parameterization, schedule, schedule_params, steps)

    def predict(xt, t, interval):
        del t
        output = output_of(denoise, xt, interval.gamma_t)
        return to_x0(output, xt, parameterization(interval))

    def final(latent):
        gamma_0 = path.gamma(None, jnp.zeros((), latent.dtype))
        return predict_data(denoise, latent, gamma_0, parameterization)

    start_key, chain_key = jax.random.split(key)
    return sample_chain(
        predict,
        final,
        jax.random.normal(start_key, shape),
        chain_key,
        schedule=path,
        schedule_params=None,
        sampler=sampler,
        steps=steps,
    )
