"""The terms of the bound, and the noisy sample from which they are computed, eq. (10)–(15).

The functions take one example: `draw_noisy` draws a latent, the caller predicts x̂_0 from it, and `matching`
scores the error. A batched model maps these two over a batch and applies its network in between.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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
    ArrayLike,
    Data,
    Int,
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
    """The three terms of −ELBO in nats, which is their sum: scalars for one example, or [B] for a batch.

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
        """−ELBO."""
        return self.reconstruction + self.matching + self.prior


class NoisySample(NamedTuple):
    """A noisy latent of one example, with the values that weight the error of a prediction from it.

    Attributes:
      x0, eps, xt: [*d], x_t = α_t x_0 + σ_t ε.
      interval: the interval (s, t); s = t in continuous time.
      time_weight: T expm1(Δ) for a chain of T steps, γ'(t) in continuous time.
    """

    x0: Data
    eps: Data
    xt: Data
    interval: Interval
    time_weight: Scalar


def mean_of_draws(draw: Callable[[Int[Array, ""]], PyTree], draws: int) -> PyTree:
    """Return the mean of `draw(i)`, a pytree of arrays, over i < draws.

    The draws are computed one after the other, so that memory does not grow with their number.
    """

    def add(total, i):
        return jax.tree.map(jnp.add, total, draw(i)), None

    indices = jnp.arange(draws)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, indices[0]))
    total, _ = jax.lax.scan(add, zeros, indices)
    return jax.tree.map(lambda leaf: leaf / draws, total)


def check_timesteps(
    timesteps: int | None, parameterization: Parameterization, name: str = "parameterization"
) -> None:
    """Raise ValueError if T is invalid, or None for a parameterization without a continuous-time limit."""
    if timesteps is not None:
        whole_number(timesteps, "timesteps", 1, MAX_STEPS)
    if timesteps is None and not parameterization.continuous:
        raise ValueError(
            f"{name}: 'mean' has no finite form in continuous time, nor has a row with continuous=False: "
            "give timesteps=T, found None"
        )


def check_ends(schedule: Schedule, parameterization: Parameterization) -> None:
    """Raise ValueError unless a schedule has valid ends, at which the parameterization is defined.

    The ends of a learned or traced schedule have no known values and are not checked.
    """
    if schedule.no_signal and parameterization.needs_signal:
        raise ValueError(
            "parameterization: 'eps' and 'score' divide by α, which is 0 at this schedule's end (SNR = 0); "
            "use 'x0' or 'v', or make the last beta at most 0.999"
        )
    if schedule.learned:
        return
    with jax.ensure_compile_time_eval():  # the ends are constants even inside a traced function
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
    """Return the interval that contains a time, and its weight (see `NoisySample`).

    In continuous time the interval is (t, t). With T steps it is (i/T, (i+1)/T), where `t` is a time in [0, 1)
    or the integer i, which is exact for any T.
    """
    if timesteps is None:
        gamma_t, dgamma = schedule.gamma_and_dgamma(params, t)
        return Interval(gamma_t, gamma_t, jnp.zeros_like(gamma_t)), dgamma
    t = jnp.asarray(t)
    i = t if jnp.issubdtype(t.dtype, jnp.integer) else jnp.floor(t * timesteps)
    i = as_float(jnp.clip(i, 0, timesteps - 1))  # t = 1 belongs to the last interval
    chain_interval = interval(schedule, params, i / timesteps, (i + 1) / timesteps)
    return chain_interval, timesteps * jnp.expm1(chain_interval.delta)


def draw_times(key: Key, phase: Real, timesteps: int | None) -> Array:
    """Draw uniform times for `training_interval`, shifted by `phase` in [0, 1), eq. (15).

    One key with the phases j/n of a batch gives times that are stratified over the batch. The times of a chain
    are integers, because t·T of a float32 t would skip steps of a long chain.
    """
    if timesteps is None:
        return jnp.mod(jax.random.uniform(key, ()) + phase, 1.0)
    # a little more than phase·T, because j/n in float32 times T = n may be just below j
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
    """Draw the latent of `x0` at a time `t` of `training_interval`."""
    interval, time_weight = training_interval(schedule, schedule_params, t, timesteps)
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    q = marginal(x0, interval.gamma_t)
    xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
    return NoisySample(x0, eps, xt, interval, time_weight)


def matching(noisy: NoisySample, error: Data) -> Scalar:
    """Return the matching term of a prediction with `error` = x_0 − x̂_0, eq. (13), (14)."""
    return weighted_square(*bound_weight(noisy.interval, noisy.time_weight, 1.0), error)


def weighted_square(weight: Real, scale: Scalar, error: Data) -> Scalar:
    """Return weight · ‖scale · error‖², which is 0 for a weight of 0, whatever the error.

    Where a schedule is flat, the weight in the bound is 0, and the x̂_0 of `mean` has an error whose square may
    overflow.
    """
    # selects before squaring, so that 0 · ∞ appears neither in the value nor in the gradient
    return weight * jnp.sum(jnp.square(jnp.where(weight == 0, 0, scale * error)))


def prior(x0: Data, gamma_1: Scalar) -> Scalar:
    """Return KL(q(x_{t=1} | x_0) ‖ N(0, I)) in nats, eq. (11)."""
    return kl(marginal(x0, gamma_1), standard_normal(x0.shape, x0.dtype))


def output_of(denoise: Denoise, xt: Data, gamma_t: Scalar) -> Data:
    """Return F, in at least the precision of the latent.

    Raises:
      ValueError: F and the latent differ in shape.
      TypeError: F is not an array of floats.
    """
    output = denoise(xt, gamma_t)
    check_floats(output, "denoise: output")
    check_shape(jnp.shape(output), xt.shape, "denoise: output")
    return in_precision_of(jnp.asarray(output), xt)


def predict_data(denoise: Denoise, latent: Data, gamma_0: Scalar, row: Parameterization) -> Data:
    """Return x̂_0 from the least noisy latent, on the interval from the data (γ = −∞) to γ_0."""
    return to_x0(output_of(denoise, latent, gamma_0), latent, row(data_interval(gamma_0)))


def reconstruction(
    denoise: Denoise,
    x: ArrayLike,
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
