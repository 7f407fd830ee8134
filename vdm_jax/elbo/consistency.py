"""The consistency form of the bound, eq. (16), and the published variant of it that is no bound (Luo 2022)."""

from functools import partial

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import bridge, data_interval, marginal, posterior, transition
from vdm_jax.elbo.terms import Elbo, output_of, reconstruction
from vdm_jax.gaussian import cross_entropy, kl, standard_normal
from vdm_jax.parameterizations import to_x0
from vdm_jax.schedules import interval
from vdm_jax.typing import Scalar


def _consistency(term, denoise, x, key, schedule, params, row, likelihood, timesteps) -> Elbo:
    """Draw one of the T terms of eq. (16), over (x_r, x_s, x_t) = (i−2, i−1, i)."""
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

    latent_key, last_key = jax.random.split(end_key)
    nats = reconstruction(denoise, x, x0, latent_key, first.gamma_t, row, likelihood)
    last = interval(schedule, params, jnp.asarray(1 - 1 / timesteps, x0.dtype), 1.0)
    before_last = marginal(x0, last.gamma_s).sample(last_key)
    end = kl(transition(before_last, last), standard_normal(x0.shape, x0.dtype))
    return Elbo(nats, timesteps * c, end)


def _log_ratio(keys, q, generative, between, after) -> Scalar:
    """Log ratio, log q(x_s | x_r) − log p(x_s | x_t), at three samples of one trajectory."""
    del between
    xs = q.sample(keys[0])
    xt = transition(xs, after).sample(keys[1])
    return q.log_prob(xs) - generative(xt).log_prob(xs)


def _bridge(keys, q, generative, between, after) -> Scalar:
    """The log ratio with x_s integrated out under the bridge (17) between the two outer samples."""
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    b = between(xt)
    return cross_entropy(b, generative(xt)) - cross_entropy(b, q)


def _printed(keys, q, generative, between, after) -> Scalar:
    """KL(q(x_s | x_r) ‖ p(x_s | x_t)), Luo's eq. (45): wrong, since x_s is not free of x_t under q."""
    del between
    xt = transition(q.sample(keys[0]), after).sample(keys[1])
    return kl(q, generative(xt))


consistency_log_ratio = partial(_consistency, _log_ratio)
"""Eq. (16) by a ratio of densities at three samples of one trajectory."""

consistency_bridge = partial(_consistency, _bridge)
"""Eq. (16) with the middle sample integrated out."""

consistency_printed = partial(_consistency, _printed)
"""Luo's eq. (45), which is no bound; kept to show the error, docs/equations.md §5."""
