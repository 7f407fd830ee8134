"""The terms of the bound, and the noisy sample that they score, eq. (10)–(15).

One example at a time: `draw_noisy` draws a latent, the caller predicts x̂_0 from it, `matching` scores the
error. A batched model maps those two over a batch and applies its network in between.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import MAX_STEPS, check_floats, is_traced, whole_number
from vdm_jax.diffusion import Interval, data_interval, marginal
from vdm_jax.gaussian import check_shape, kl, standard_normal
from vdm_jax.likelihoods import Likelihood, observation
from vdm_jax.parameterizations import Parameterization, bound_weight, to_x0
from vdm_jax.schedules import Schedule, interval
from vdm_jax.typing import (
    Array,
    Data,
    Key,
    Params,
    PyTree,
    Real,
    Reals,
    Scalar,
    as_float,
    in_precision_of,
)

Denoise = Callable[[Data, Scalar], Data]
"""(xt, gamma_t) -> F, for one example."""


class Elbo(NamedTuple):
    """The parts of −ELBO in nats; −ELBO is their sum. Scalars of one example, or [B] of a batch.

    Examples:
      >>> bound = vdm.elbo.Elbo(*jnp.asarray([0.5, 2.0, 0.25]))
      >>> float(bound.total)
      2.75
    """

    reconstruction: Reals
    matching: Reals
    prior: Reals

    @property
    def total(self) -> Reals:
        return self.reconstruction + self.matching + self.prior


class NoisySample(NamedTuple):
    """One noisy latent of one example, and what scores a prediction made from it.

    Attributes:
      x0, eps, xt: [*d], x_t = α_t x_0 + σ_t ε.
      interval: the step (s, t); s = t in continuous time.
      time_weight: T expm1(Δ) of a chain of T steps, γ'(t) in continuous time.
    """

    x0: Data
    eps: Data
    xt: Data
    interval: Interval
    time_weight: Scalar


def mean_of_draws(draw: Callable[[Any], PyTree], draws: int) -> PyTree:
    """Mean of `draw(i)`, a tree of arrays, over i < draws, one after the other."""

    def add(total, i):
        return jax.tree.map(jnp.add, total, draw(i)), None

    numbers = jnp.arange(draws)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, numbers[0]))
    total, _ = jax.lax.scan(add, nothing, numbers)
    return jax.tree.map(lambda sum_: sum_ / draws, total)


def check_timesteps(
    timesteps: int | None, parameterization: Parameterization, name: str = "parameterization"
) -> None:
    """Raise ValueError for a T that is no chain, and for a row that has no continuous-time limit without T."""
    if timesteps is not None:
        whole_number(timesteps, "timesteps", 1, MAX_STEPS)
    if timesteps is None and not parameterization.continuous:
        raise ValueError(
            f"{name}: 'mean' has no finite form in continuous time, nor has another row of intervals: "
            "give timesteps=T, found None"
        )


def check_ends(schedule: Schedule, parameterization: Parameterization) -> None:
    """Raise ValueError for a schedule that the mathematics or the parameterization cannot follow to its ends.

    Only a schedule with SNR(1) = 0 depends on the parameterization. The ends of a schedule that is learned or
    traced are not known, and not checked.
    """
    if schedule.no_signal and parameterization.needs_signal:
        raise ValueError(
            "parameterization: 'eps' and 'score' divide by α, which is 0 at this schedule's end (SNR = 0); "
            "use 'x0' or 'v', or make the last beta at most 0.999"
        )
    if schedule.learned:
        return
    with jax.ensure_compile_time_eval():
        params = schedule.init(jax.random.key(0))
        ends = [schedule.gamma(params, t) for t in (0.0, 1.0)]
    if any(map(is_traced, ends)):
        return
    first, last = (float(end) for end in ends)
    if not -math.inf < first < last < math.inf:
        raise ValueError(
            f"schedule: expected γ(0) < γ(1), both finite, found {first:.6g} and {last:.6g}; for SNR(1) = 0 "
            "use 'from_betas' or stop at γ(1) = 60"
        )


def training_interval(
    schedule: Schedule, params: Params, t: Real, timesteps: int | None
) -> tuple[Interval, Scalar]:
    """Return the interval that a time falls in, and its weight (see `NoisySample`).

    In continuous time the interval is (t, t). With T steps it is (i/T, (i+1)/T), for a time t in [0, 1) or,
    which is exact for any T, for the integer i itself.
    """
    if timesteps is None:
        gamma_t, dgamma = schedule.gamma_and_dgamma(params, t)
        return Interval(gamma_t, gamma_t, jnp.zeros_like(gamma_t)), dgamma
    t = jnp.asarray(t)
    i = t if jnp.issubdtype(t.dtype, jnp.integer) else jnp.floor(t * timesteps)
    i = as_float(jnp.clip(i, 0, timesteps - 1))
    step = interval(schedule, params, i / timesteps, (i + 1) / timesteps)
    return step, timesteps * jnp.expm1(step.delta)


def draw_times(key: Key, phase: Real, timesteps: int | None) -> Array:
    """Times for `training_interval`, uniform and shifted by `phase` in [0, 1), eq. (15).

    One key with the phases j/n of a batch gives times that are stratified over it. A chain's are integers:
    t·T of a float32 t would skip steps of a long one.
    """
    if timesteps is None:
        return jnp.mod(jax.random.uniform(key, ()) + phase, 1.0)
    # a little more than phase·T: a float32 j/n times T = n may fall just short of j
    shift = jnp.floor(jnp.asarray(phase) * timesteps + 2.0**-10).astype(jnp.int32)
    return (jax.random.randint(key, (), 0, timesteps) + shift) % timesteps


def draw_noisy(
    key: Key,
    x0: Data,
    t: Real,
    *,
    schedule: Schedule,
    schedule_params: Params,
    timesteps: int | None,
) -> NoisySample:
    """Draw the latent of `x0` at a time, as `training_interval` takes it."""
    step, time_weight = training_interval(schedule, schedule_params, t, timesteps)
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    q = marginal(x0, step.gamma_t)
    xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
    return NoisySample(x0, eps, xt, step, time_weight)


def matching(noisy: NoisySample, error: Data) -> Scalar:
    """Return the matching term of a prediction that is off by `error` = x_0 − x̂_0, eq. (13), (14)."""
    return weighted_square(*bound_weight(noisy.interval, noisy.time_weight, 1.0), error)


def weighted_square(weight: Real, scale: Scalar, error: Data) -> Scalar:
    """Return weight · ‖scale · error‖², which is 0 for a weight of 0 whatever the error.

    A schedule that is flat at a time gives it no weight in the bound. There `mean` has x̂_0 so far off that its
    square may overflow.
    """
    return weight * jnp.sum(jnp.square(jnp.where(weight == 0, 0, scale * error)))


def prior(x0: Data, gamma_1: Scalar) -> Scalar:
    """KL(q(x_{t=1} | x_0) ‖ N(0, I)), eq. (11)."""
    return kl(marginal(x0, gamma_1), standard_normal(x0.shape, x0.dtype))


def output_of(denoise: Denoise, xt: Data, gamma_t: Scalar) -> Data:
    """Return F, in the precision of the latent at least.

    Raises:
      ValueError: it has another shape than the latent.
      TypeError: it is no array of floats.
    """
    output = denoise(xt, gamma_t)
    check_floats(output, "denoise: output")
    check_shape(jnp.shape(output), xt.shape, "denoise: output")
    return in_precision_of(jnp.asarray(output), xt)


def predict_data(denoise: Denoise, latent: Data, gamma_0: Scalar, row: Parameterization) -> Data:
    """x̂_0 from the least noisy latent: the step from γ_0 to the data, which are the latent with γ = −∞."""
    return to_x0(output_of(denoise, latent, gamma_0), latent, row(data_interval(gamma_0)))


def reconstruction(
    denoise: Denoise,
    x: Any,
    x0: Data,
    key: Key,
    gamma_0: Scalar,
    row: Parameterization,
    likelihood: Likelihood,
) -> Scalar:
    """Return −log p(x | x_{t=0}) at one draw of the least noisy latent, nats, eq. (12)."""
    latent = marginal(x0, gamma_0).sample(key)
    x0_hat = predict_data(denoise, latent, gamma_0, row) if likelihood.uses_prediction else None
    return -likelihood.log_prob(x, *observation(likelihood, latent, x0_hat, gamma_0))
