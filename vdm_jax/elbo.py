"""The evidence lower bound of a diffusion model, per example and in nats, eq. (10)–(18).

    −ELBO = reconstruction + matching + prior                                        (10)
    prior = KL(q(x_{t=1} | x_0) ‖ N(0, I))                                             (11)
    reconstruction = −E log p(x_0 | x_{t=0})                                           (12)
    matching = T E_i ½ e^{−γ_t} expm1(Δ) ‖x_0 − x̂_0‖²,  or  ½ E_t γ'(t) e^{−γ_t} ‖x_0 − x̂_0‖²   (13), (14)

One example at a time: `probe` draws a latent, the caller predicts x̂_0 from it, `matching` scores the error.
A batched model maps those two over a batch and applies its network in between; `negative_elbo` is the same
for one example and a plain function. Sources: Kingma et al. 2021; Luo 2022 for the consistency form.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import Interval, bridge, data_interval, marginal, posterior, transition
from vdm_jax.gaussian import check_shape, cross_entropy, kl, standard_normal
from vdm_jax.likelihoods import LIKELIHOODS, least_noisy
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, regression_target, to_x0
from vdm_jax.schedules import SCHEDULES, Schedule, interval
from vdm_jax.specs import build, choose
from vdm_jax.typing import Array, Data, Key, Params, PyTree, Real, Reals, Scalar, as_float

Denoise = Callable[[Data, Scalar], Data]
"""(xt, gamma_t) -> F, for one example."""


class Elbo(NamedTuple):
    """The parts of −ELBO in nats; −ELBO is their sum. Scalars of one example, or [B] of a batch.

    Examples:
      >>> bound = vdm.Elbo(*jnp.asarray([0.5, 2.0, 0.25]))
      >>> float(bound.total)
      2.75
    """

    reconstruction: Reals
    matching: Reals
    prior: Reals

    @property
    def total(self) -> Reals:
        return self.reconstruction + self.matching + self.prior


class Probe(NamedTuple):
    """One noisy latent of one example, and what scores a prediction made from it.

    Attributes:
      x0, eps, xt: [*d], x_t = α_t x_0 + σ_t ε.
      interval: the step (s, t); s = t in continuous time.
      rate: T expm1(Δ) of a chain of T steps, γ'(t) in continuous time.
    """

    x0: Data
    eps: Data
    xt: Data
    interval: Interval
    rate: Scalar


MAX_STEPS = 2**24
"""Whole numbers up to here, and so the times i/T, are told apart by float32."""


def check_steps(steps: Any, what: str) -> None:
    """Raise ValueError unless `steps` is a whole number in [1, 2²⁴]."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not (whole and steps >= 1):
        raise ValueError(f"{what}, found {steps!r}")
    if steps > MAX_STEPS:
        raise ValueError(f"{what}, and at most 2**24 for float32 times, found {steps!r}")


def mean_of_draws(draw: Callable[[Any], PyTree], draws: int) -> PyTree:
    """Mean of `draw(i)`, a tree of arrays, over i < draws, one after the other."""

    def add(total, i):
        return jax.tree.map(jnp.add, total, draw(i)), None

    numbers = jnp.arange(draws)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, numbers[0]))
    total, _ = jax.lax.scan(add, nothing, numbers)
    return jax.tree.map(lambda sum_: sum_ / draws, total)


def check_timesteps(
    timesteps: int | None, row: Parameterization, where: str = "parameterization"
) -> None:
    """Raise ValueError for a T that is no chain, and for a row that has no continuous-time limit without T."""
    if timesteps is not None:
        check_steps(timesteps, "timesteps must be at least 1, or None")
    if timesteps is None and not row.continuous:
        raise ValueError(
            f"{where}: 'mean' has no finite form in continuous time, nor has another row of intervals: "
            "give timesteps=T, found None"
        )


def training_interval(
    schedule: Schedule, params: Params, t: Real, timesteps: int | None
) -> tuple[Interval, Scalar]:
    """The interval that a time falls in, and its rate (see `Probe`).

    In continuous time the interval is (t, t). With T steps it is (i/T, (i+1)/T), for a time t in [0, 1) or,
    which is exact for any T, for the integer i itself.
    """
    if timesteps is None:
        gamma_t, rate = schedule.rate(params, t)
        return Interval(gamma_t, gamma_t, jnp.zeros_like(gamma_t)), rate
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


def probe(
    key: Key,
    x0: Data,
    t: Real,
    *,
    schedule: Schedule,
    schedule_params: Params,
    timesteps: int | None,
) -> Probe:
    """Draw the latent of `x0` at a time, as `training_interval` takes it."""
    step, rate = training_interval(schedule, schedule_params, t, timesteps)
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    q = marginal(x0, step.gamma_t)
    return Probe(x0, eps, q.mean + jnp.exp(0.5 * q.log_var) * eps, step, rate)


def matching(at: Probe, error: Data) -> Scalar:
    """The matching term of a prediction that is off by `error` = x_0 − x̂_0, eq. (13), (14)."""
    scaled = jnp.exp(-0.5 * at.interval.gamma_t) * error
    return 0.5 * at.rate * jnp.sum(jnp.square(scaled))


def prior(x0: Data, gamma_1: Scalar) -> Scalar:
    """KL(q(x_{t=1} | x_0) ‖ N(0, I)), eq. (11)."""
    return kl(marginal(x0, gamma_1), standard_normal(x0.shape, x0.dtype))


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
    form: str = "denoising",
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
      form: one of `FORMS`. The consistency forms, eq. (16), need timesteps; "consistency_printed" is the
        published but wrong variant, kept for comparison only: it is not a bound.

    Returns:
      `Elbo` in nats, summed over the data's axes.

    Raises:
      ValueError: unknown names, `mean` or a consistency form in continuous time, an output of another shape
        than the data.
      TypeError: floats where K levels are expected.

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
    estimate = choose(FORMS, form, "form")
    check_timesteps(timesteps, row)
    if timesteps is None and form != "denoising":
        raise ValueError(f"form {form!r} needs a chain: give timesteps=T, found None")
    return estimate(denoise, x, key, schedule, schedule_params, row, likelihood, timesteps)


def _denoising(denoise, x, key, schedule, params, row, likelihood, timesteps) -> Elbo:
    x0 = likelihood.encode(x)
    time_key, noise_key, end_key = jax.random.split(key, 3)
    t = draw_times(time_key, 0.0, timesteps)
    at = probe(noise_key, x0, t, schedule=schedule, schedule_params=params, timesteps=timesteps)
    mix = row(at.interval)
    output = output_of(denoise, at.xt, at.interval.gamma_t)
    error = mix.out * (regression_target(x0, at.eps, row.target(at.interval)) - output)

    gamma_0, gamma_1 = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
    latent = marginal(x0, gamma_0).sample(end_key)
    x0_hat = predict_data(denoise, latent, gamma_0, row) if likelihood.denoised else None
    nats = -likelihood.log_prob(x, *least_noisy(likelihood, latent, x0_hat, gamma_0))
    return Elbo(nats, matching(at, error), prior(x0, gamma_1))


def output_of(denoise: Denoise, xt: Data, gamma_t: Scalar) -> Data:
    """F, checked to have the latent's shape.

    Raises:
      ValueError: it has another.
    """
    output = denoise(xt, gamma_t)
    check_shape(jnp.shape(output), xt.shape, "denoise: output")
    return output


def predict_data(denoise: Denoise, latent: Data, gamma_0: Scalar, row: Parameterization) -> Data:
    """x̂_0 from the least noisy latent: the step from γ_0 to the data, which are the latent with γ = −∞."""
    return to_x0(output_of(denoise, latent, gamma_0), latent, row(data_interval(gamma_0)))


def _log_ratio(keys, q, generative, between, after) -> Scalar:
    """log q(x_s | x_r) − log p(x_s | x_t) at three samples of one trajectory."""
    del between
    xs = q.sample(keys[0])
    xt = transition(xs, after).sample(keys[1])
    return q.log_prob(xs) - generative(xt).log_prob(xs)


def _bridge(keys, q, generative, between, after) -> Scalar:
    """The same with x_s integrated out under the bridge (17) between the two outer samples."""
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    b = between(xt)
    return cross_entropy(b, generative(xt)) - cross_entropy(b, q)


def _printed(keys, q, generative, between, after) -> Scalar:
    """KL(q(x_s | x_r) ‖ p(x_s | x_t)), Luo's eq. (45): wrong, since x_s is not free of x_t under q."""
    del between
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    return kl(q, generative(xt))


def _consistency(term, denoise, x, key, schedule, params, row, likelihood, timesteps) -> Elbo:
    """Eq. (16): T terms over (x_r, x_s, x_t) = (i−2, i−1, i), of which one at random is drawn."""
    x0 = likelihood.encode(x)
    time_key, past_key, end_key, *keys = jax.random.split(key, 6)
    i = jax.random.randint(time_key, (), 1, timesteps + 1).astype(x0.dtype)
    r, s, t = (i - 2) / timesteps, (i - 1) / timesteps, i / timesteps
    first = data_interval(schedule.gamma(params, jnp.zeros_like(s)))
    later = interval(schedule, params, jnp.maximum(r, 0), jnp.maximum(s, 1 / timesteps))
    before = jax.tree.map(lambda a, b: jnp.where(i == 1, a, b), first, later)
    after = interval(schedule, params, s, t)

    past = jnp.where(i == 1, x0, marginal(x0, later.gamma_s).sample(past_key))

    def generative(xt):
        output = output_of(denoise, xt, after.gamma_t)
        return posterior(xt, to_x0(output, xt, row(after)), after)

    c = term(
        keys,
        transition(past, before),
        generative,
        lambda xt: bridge(past, xt, before, after),
        after,
    )

    gamma_0 = first.gamma_t
    latent_key, last_key = jax.random.split(end_key)
    latent = marginal(x0, gamma_0).sample(latent_key)
    x0_hat = predict_data(denoise, latent, gamma_0, row) if likelihood.denoised else None
    nats = -likelihood.log_prob(x, *least_noisy(likelihood, latent, x0_hat, gamma_0))
    last = interval(schedule, params, jnp.asarray(1 - 1 / timesteps, x0.dtype), 1.0)
    before_last = marginal(x0, last.gamma_s).sample(last_key)
    end = kl(transition(before_last, last), standard_normal(x0.shape, x0.dtype))
    return Elbo(nats, timesteps * c, end)


FORMS: dict[str, Callable[..., Elbo]] = {
    "denoising": _denoising,
    "consistency_log_ratio": partial(_consistency, _log_ratio),
    "consistency_bridge": partial(_consistency, _bridge),
    "consistency_printed": partial(_consistency, _printed),
}
"""name -> estimator of the bound, for `negative_elbo`; the last is no bound, docs/equations.md §5."""
