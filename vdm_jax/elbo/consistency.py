"""The consistency form of the bound, eq. (16), and a published variant that is not a bound (Luo 2022)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import Interval, bridge, data_interval, marginal, posterior, transition
from vdm_jax.elbo.terms import Denoise, Elbo, output_of, reconstruction
from vdm_jax.gaussian import Gaussian, cross_entropy, kl, standard_normal
from vdm_jax.likelihoods import Likelihood
from vdm_jax.parameterizations import Parameterization, to_x0
from vdm_jax.schedules import Schedule, interval
from vdm_jax.typing import ArrayLike, Data, Key, Params, Scalar

Conditional = Callable[[Data], Gaussian]
"""x_t -> a Gaussian of x_s."""


def _consistency(
    term: Callable[..., Scalar],
    denoise: Denoise,
    x: ArrayLike,
    key: Key,
    schedule: Schedule,
    params: Params,
    parameterization: Parameterization,
    likelihood: Likelihood,
    timesteps: int,
) -> Elbo:
    """Estimate the bound from one of the T terms of eq. (16), over (x_r, x_s, x_t) = (i−2, i−1, i).

    Args:
      term: (keys, q(x_s | x_r), x_t -> p(x_s | x_t), x_t -> q(x_s | x_r, x_t), (s, t)) -> C_t of eq. (16).
      denoise, x, key, schedule, params, parameterization, likelihood, timesteps: as in `negative_elbo`, with
        components that are built.
    """
    x0 = likelihood.encode(x)
    time_key, past_key, end_key, *keys = jax.random.split(key, 6)
    i = jax.random.randint(time_key, (), 1, timesteps + 1).astype(x0.dtype)
    r, s, t = (i - 2) / timesteps, (i - 1) / timesteps, i / timesteps
    # for i = 1, x_r is the data and s = 0; `later` is then replaced, but needs times in [0, 1] with r < s
    first = data_interval(schedule.gamma(params, jnp.zeros_like(s)))
    later = interval(schedule, params, jnp.maximum(r, 0), jnp.maximum(s, 1 / timesteps))
    before = jax.tree.map(lambda a, b: jnp.where(i == 1, a, b), first, later)
    after = interval(schedule, params, s, t)

    # the data are known: they need no sample
    past = jnp.where(i == 1, x0, marginal(x0, later.gamma_s).sample(past_key))

    def generative(xt):
        output = output_of(denoise, xt, after.gamma_t)
        return posterior(xt, to_x0(output, xt, parameterization(after)), after)

    c = term(
        keys,
        transition(past, before),
        generative,
        lambda xt: bridge(past, xt, before, after),
        after,
    )

    latent_key, last_key = jax.random.split(end_key)
    nats = reconstruction(denoise, x, x0, latent_key, first.gamma_t, parameterization, likelihood)
    # the top term of (16) is exact, given one sample of the latent before the last
    last = interval(schedule, params, jnp.asarray(1 - 1 / timesteps, x0.dtype), 1.0)
    before_last = marginal(x0, last.gamma_s).sample(last_key)
    end = kl(transition(before_last, last), standard_normal(x0.shape, x0.dtype))
    return Elbo(nats, timesteps * c, end)


def _log_ratio(
    keys: list[Key],
    q: Gaussian,
    generative: Conditional,
    between: Conditional,
    after: Interval,
) -> Scalar:
    """Return log q(x_s | x_r) − log p(x_s | x_t) at three samples of one trajectory."""
    del between
    xs = q.sample(keys[0])
    xt = transition(xs, after).sample(keys[1])
    return q.log_prob(xs) - generative(xt).log_prob(xs)


def _bridge(
    keys: list[Key],
    q: Gaussian,
    generative: Conditional,
    between: Conditional,
    after: Interval,
) -> Scalar:
    """Return the log ratio with x_s integrated out under the bridge (17) between the two outer samples."""
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    b = between(xt)
    return cross_entropy(b, generative(xt)) - cross_entropy(b, q)


def _printed(
    keys: list[Key],
    q: Gaussian,
    generative: Conditional,
    between: Conditional,
    after: Interval,
) -> Scalar:
    """Return KL(q(x_s | x_r) ‖ p(x_s | x_t)), Luo's eq. (45), which wrongly takes x_s as independent of x_t."""
    del between
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    return kl(q, generative(xt))


consistency_log_ratio = partial(_consistency, _log_ratio)
"""Estimator of eq. (16) by a ratio of densities at three samples of one trajectory."""

consistency_bridge = partial(_consistency, _bridge)
"""Estimator of eq. (16) with the middle sample integrated out."""

consistency_printed = partial(_consistency, _printed)
"""Estimator of Luo's eq. (45), which is not a bound; kept to show the error, docs/equations.md §5."""
