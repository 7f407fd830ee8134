"""The latents of a Markov chain, drawn from the data upwards, and the terms of its bound, eq. (3).

    −ELBO = −E log p(x|z_1) + Σ_{t<T} E[log q(z_t|z_{t−1}) − log p(z_t|z_{t+1})] + E KL(q(z_T|z_{T−1}) ‖ p(z_T))

is computed term by term, or as the plain ratio log q(z|x) − log p(x, z) at one draw of the latents. In a chain
that knows q(z_t|z_{t+1}, x_0), Bayes' rule turns the terms into the divergences of the diffusion ELBO,
eq. (10).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.gaussian import Gaussian, cross_entropy, kl, standard_normal
from vdm_jax.keys import fold_each
from vdm_jax.models.chain import Chain
from vdm_jax.typing import Array, Keys, Params


class Level(NamedTuple):
    """One latent of a batch, drawn upwards, and the distributions that its term of the bound compares.

    Attributes:
      z: [B, *d], drawn from q.
      q: q(z_t | z_{t−1}).
      p: p(z_t | z_{t+1}), N(0, I) at the top.
      exact: the distribution whose divergence from p is the term: q at the top, or q(z_t | z_{t+1}, x_0) if the
        chain knows it. None if the term is E[log q − log p] at the draw.
    """

    z: Array
    q: Gaussian
    p: Gaussian
    exact: Gaussian | None


class LatentDraw(NamedTuple):
    """One draw of the latents: the levels from z_1 to z_T, and the observation that decodes the data."""

    levels: list[Level]
    observation: Gaussian


def ascend(
    chain: Chain,
    params: Params,
    keys: Keys,
    x0: Array,
    drop: Keys | None = None,
    *,
    first: Gaussian | None = None,
) -> LatentDraw:
    """Draw z_1 … z_T given encoded data [B, *d], and evaluate both directions of the chain on them.

    Args:
      keys: [B], one for each example.
      drop: [B], keys of dropout, or None to switch it off.
      first: q(z_1 | x), if it has been computed.
    """
    top = len(chain.shapes)
    zs: list[Array] = []
    qs: list[Gaussian] = []
    below = x0
    for t in range(1, top + 1):
        q = first if t == 1 and first is not None else chain.up(params, below, t, drop)
        below = jax.vmap(Gaussian.sample)(q, fold_each(keys, t))
        zs.append(below)
        qs.append(q)
    # chain.down at z_t is p(z_{t−1} | z_t): the first decodes the data, the others are the p of the level below
    observation, *ps = [chain.down(params, z, t, drop) for t, z in enumerate(zs, start=1)]
    ps.append(_normal_like(zs[-1]))
    exact: list[Gaussian | None] = [*[None] * (top - 1), qs[-1]]
    if chain.given_data is not None:
        above = [*zs[1:], None]
        exact = [chain.given_data(params, x0, z, t) for t, z in enumerate(above, start=1)]
    levels = [Level(*level) for level in zip(zs, qs, ps, exact, strict=True)]
    return LatentDraw(levels, observation)


def level_terms(level: Level) -> Array:
    """Return the term of a level in −ELBO, nats [B]."""
    if level.exact is not None:
        return jax.vmap(kl)(level.exact, level.p)
    # E[log q] under q has a closed form; E[log p] has none and is estimated at the draw
    entropy = jax.vmap(cross_entropy)(level.q, level.q)
    return -entropy - jax.vmap(Gaussian.log_prob)(level.p, level.z)


def log_ratio(draw: LatentDraw) -> Array:
    """Return Σ_t log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), nats [B], the plain ratio without log p(x|z_1)."""
    log_prob = jax.vmap(Gaussian.log_prob)
    ratios = [log_prob(level.q, level.z) - log_prob(level.p, level.z) for level in draw.levels]
    return jnp.sum(jnp.stack(ratios), 0)


def latent_usage(draw: LatentDraw) -> list[Array]:
    """Return how much each latent is used, nats [B] for each; 0 on average for a collapsed latent.

    The usage of z_1 is KL(q(z_1|x) ‖ N(0, I)). The usage of another latent is what it adds to the bound of the
    chain that ends below it, log p(z_{t−1}|z_t) N(z_t) − log q(z_t|z_{t−1}) N(z_{t−1}).
    """
    log_prob = jax.vmap(Gaussian.log_prob)
    priors = [log_prob(_normal_like(level.z), level.z) for level in draw.levels]
    usage = [jax.vmap(kl)(draw.levels[0].q, _normal_like(draw.levels[0].z))]
    for t in range(1, len(draw.levels)):
        below, level = draw.levels[t - 1], draw.levels[t]
        generated = log_prob(below.p, below.z) + priors[t]
        usage.append(generated - log_prob(level.q, level.z) - priors[t - 1])
    return usage


def _normal_like(z: Array) -> Gaussian:
    """Return N(0, I) for each example of a batch."""
    normal = standard_normal(z.shape[1:], z.dtype)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (z.shape[0], *leaf.shape)), normal)
