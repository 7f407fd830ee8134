"""The bound of a Markov chain of latents, eq. (2), (3), and the model that a chain and a likelihood make.

    −ELBO = −E log p(x|z_1) + Σ_{t<T} E[log q(z_t|z_{t−1}) − log p(z_t|z_{t+1})] + E KL(q(z_T|z_{T−1}) ‖ p(z_T))

term by term, or as the plain ratio log q(z|x) − log p(x, z) at one draw of the latents. In a chain that knows
q(z_t|z_{t+1}, x_0), Bayes' rule turns the terms into the divergences of the diffusion ELBO, eq. (10).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.elbo import Elbo, check_steps, mean_of_draws
from vdm_jax.gaussian import Gaussian, cross_entropy, kl, standard_normal
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.chain import Chain
from vdm_jax.models.keys import example_keys, fold_each
from vdm_jax.models.model import Model, Statistics, encoded
from vdm_jax.typing import Array, Keys, Params

PATH_POINTS = 9  # of an interpolation, its two ends included


class Level(NamedTuple):
    """One latent of a batch, drawn upwards, and the two laws that its term compares.

    Attributes:
      z: [B, *d], drawn from q.
      q: q(z_t | z_{t−1}).
      p: p(z_t | z_{t+1}), N(0, I) at the top.
      exact: the law whose divergence from p is the term: q at the top, or q(z_t | z_{t+1}, x_0) where it is
        known. None: the term is E[log q − log p] at the draw.
    """

    z: Array
    q: Gaussian
    p: Gaussian
    exact: Gaussian | None


class Draw(NamedTuple):
    """All levels of one draw of the latents, from the first, and the observation that decodes the data."""

    levels: list[Level]
    observation: Gaussian


def ascend(
    chain: Chain,
    params: Params,
    keys: Keys,
    x0: Array,
    drop: Keys | None = None,
    *,
    first: Any = None,
) -> Draw:
    """Draw z_1 … z_T given encoded data [B, *d], and evaluate both directions on them.

    Args:
      keys: [B], one for each example.
      drop: [B], of dropout; None switches it off.
      first: q(z_1 | x), if it has been computed.
    """
    top = len(chain.shapes)
    below, zs, qs = x0, [], []
    for t in range(1, top + 1):
        q = first if t == 1 and first is not None else chain.up(params, below, t, drop)
        below = jax.vmap(Gaussian.sample)(q, fold_each(keys, t))
        zs, qs = [*zs, below], [*qs, q]
    downs = [chain.down(params, z, t, drop) for t, z in enumerate(zs, start=1)]
    ps = [*downs[1:], _normal_like(zs[-1])]
    exact: list[Gaussian | None] = [*[None] * (top - 1), qs[-1]]
    if chain.given_data is not None:
        above = [*zs[1:], None]
        exact = [chain.given_data(params, x0, z, t) for t, z in enumerate(above, start=1)]
    levels = [Level(*level) for level in zip(zs, qs, ps, exact, strict=True)]
    return Draw(levels, downs[0])


def level_terms(level: Level) -> Array:
    """What a level adds to −ELBO, nats [B]."""
    if level.exact is not None:
        return jax.vmap(kl)(level.exact, level.p)
    # the expectation of log q under q itself is exact; that of log p is not known
    entropy = jax.vmap(cross_entropy)(level.q, level.q)
    return -entropy - jax.vmap(Gaussian.log_prob)(level.p, level.z)


def log_ratio(draw: Draw) -> Array:
    """Σ_t log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), nats [B]: the latents' part of the plain ratio."""
    log_prob = jax.vmap(Gaussian.log_prob)
    ratios = [log_prob(level.q, level.z) - log_prob(level.p, level.z) for level in draw.levels]
    return jnp.sum(jnp.stack(ratios), 0)


def gains(draw: Draw) -> list[Array]:
    """How much each latent is used, nats [B] for each: 0, on average, for one that has collapsed.

    For the first KL(q(z_1|x) ‖ N(0, I)); for another what it adds to the bound of the chain that ends below it,
    log p(z_{t−1}|z_t) N(z_t) − log q(z_t|z_{t−1}) N(z_{t−1}).
    """
    log_prob = jax.vmap(Gaussian.log_prob)
    priors = [log_prob(_normal_like(level.z), level.z) for level in draw.levels]
    used = [jax.vmap(kl)(draw.levels[0].q, _normal_like(draw.levels[0].z))]
    for t in range(1, len(draw.levels)):
        below, level = draw.levels[t - 1], draw.levels[t]
        generated = log_prob(below.p, below.z) + priors[t]
        used.append(generated - log_prob(level.q, level.z) - priors[t - 1])
    return used


def hierarchy(
    statistics: Statistics,
    chain: Chain,
    likelihood: Likelihood,
    *,
    draws: Any,
    prior_weight: Any,
    components: str,
    where: str = "model",
) -> Model:
    """The model of a chain and a likelihood.

    Args:
      statistics: of the data.
      chain: of `CHAINS`, built.
      likelihood: of `LIKELIHOODS`, built.
      draws: L Monte Carlo draws of the latents in the training loss, eq. (2).
      prior_weight: β on the latents' terms of the training loss. 0 is the plain autoencoder, whose code is
        the mean of q(z_1|x), without noise.
      components: words for the report.
      where: config path, for messages.

    Raises:
      ValueError: draws below 1, a negative or infinite prior_weight, or 0 with more than one latent.
    """
    top = len(chain.shapes)
    check_steps(draws, f"{where}.draws: must be at least 1")
    if not isinstance(prior_weight, int | float) or not 0 <= prior_weight < math.inf:
        raise ValueError(
            f"{where}.prior_weight: must be finite and not negative, found {prior_weight}"
        )
    if prior_weight == 0 and top > 1:
        raise ValueError(
            f"{where}.prior_weight: 0 makes an autoencoder of one latent, found {top} latents, of which those "
            "above the first would not be trained"
        )
    bits = 1 / (math.prod(statistics.shape) * math.log(2))

    def nats_of(x, observation):
        return -jax.vmap(likelihood.log_prob)(x, *observation)

    def autoencoder_loss(params, key, batch):
        batch, x0 = encoded(batch, statistics, likelihood)
        _, drop = example_keys(key, batch.index, 2)
        code = chain.up(params, x0, 1, drop).mean
        value = bits * jnp.mean(nats_of(batch.x, chain.down(params, code, 1, drop)))
        return value, {"loss": value, "reconstruction": value}

    def loss(params, key, batch):
        batch, x0 = encoded(batch, statistics, likelihood)
        draw_keys, drop = example_keys(key, batch.index, 2)
        first = chain.up(params, x0, 1, drop)
        many = _repeat((batch.x, x0, first, drop), draws)
        draw_keys = jnp.concatenate([fold_each(draw_keys, i) for i in range(draws)])
        one = ascend(chain, params, draw_keys, many[1], many[3], first=many[2])
        levels = [bits * jnp.mean(level_terms(level)) for level in one.levels]
        reconstruction = bits * jnp.mean(nats_of(many[0], one.observation))
        total = reconstruction + sum(levels)
        value = reconstruction + prior_weight * sum(levels)
        metrics = {"loss": value, "bits_per_dim": total, "reconstruction": reconstruction}
        metrics |= {f"level_{t}": part for t, part in enumerate(levels, start=1)}
        for t, used in enumerate(gains(one), start=1):
            metrics["kl_1" if t == 1 else f"gain_{t}"] = bits * jnp.mean(used)
        return value, metrics

    def elbo(params, key, batch, draws=1):
        check_steps(draws, "draws must be at least 1")
        batch, x0 = encoded(batch, statistics, likelihood)
        (draw_keys,) = example_keys(key, batch.index, 1)

        def one_draw(i):
            one = ascend(chain, params, fold_each(draw_keys, i), x0)
            *inner, last = [level_terms(level) for level in one.levels]
            matching = sum(inner, jnp.zeros_like(last))
            return Elbo(nats_of(batch.x, one.observation), matching, last)

        return mean_of_draws(one_draw, draws)

    def importance(params, key, batch, samples):
        check_steps(samples, "importance samples must be at least 1")
        batch, x0 = encoded(batch, statistics, likelihood)
        (draw_keys,) = example_keys(key, batch.index, 1)

        def log_weight(i):
            one = ascend(chain, params, fold_each(draw_keys, i), x0)
            return -nats_of(batch.x, one.observation) - log_ratio(one)

        def add(log_sum, i):
            return jnp.logaddexp(log_sum, log_weight(i)), None

        numbers = jnp.arange(samples)
        nothing = jnp.full_like(jax.eval_shape(log_weight, numbers[0]), -jnp.inf)
        log_sum, _ = jax.lax.scan(add, nothing, numbers)
        return math.log(samples) - log_sum

    def sample(params, key, n, draw=True):
        keys = example_keys(key, jnp.arange(n), 1)[0]
        z = jax.vmap(lambda key: jax.random.normal(key, chain.shapes[-1]))(fold_each(keys, top))
        for t in range(top, 1, -1):
            z = jax.vmap(Gaussian.sample)(chain.down(params, z, t), fold_each(keys, t - 1))
        return show(chain.down(params, z, 1), fold_each(keys, 0) if draw else None)

    def show(observation, keys=None):
        """Data as stored: drawn with the keys [B], or else the level nearest to the expectation."""
        if keys is not None:
            return jax.vmap(likelihood.sample)(keys, *observation)
        return likelihood.decode(jax.vmap(likelihood.expected)(*observation))

    def codes(params, x):
        return chain.up(params, likelihood.encode(x), 1).mean

    def reconstructions(params, x):
        """Data [n, *d] beside what their codes decode to, [n, 2, *d]."""
        return jnp.stack([x, show(chain.down(params, codes(params, x), 1))], 1)

    def interpolations(params, x):
        """Decoded points between the codes of each two examples in a row, [max(1, n // 2), 9, *d]."""
        z = codes(params, x)
        start, end = (z[0 : 2 * (len(x) // 2) : 2], z[1::2]) if len(x) > 1 else (z, z)
        weights = jnp.linspace(0, 1, PATH_POINTS, dtype=z.dtype)
        paths = [start + w * (end - start) for w in weights]
        return jnp.stack([show(chain.down(params, path, 1)) for path in paths], 1)

    pictures = {"reconstructions": reconstructions, "interpolations": interpolations}
    if prior_weight == 0:
        return Model(
            chain.init,
            autoencoder_loss,
            elbo=_refuse,
            sample=_refuse,
            bound="none",
            components=components,
            pictures=pictures,
            refusal=AUTOENCODER,
        )
    bound = f"ELBO, {top} latent{'s' if top > 1 else ''}"
    return Model(
        chain.init, loss, elbo, sample, bound, components, importance=importance, pictures=pictures
    )


AUTOENCODER = (
    "an autoencoder (prior_weight = 0) has neither a likelihood, for without the prior term its objective "
    "bounds none, nor samples, for no prior says where its codes lie; it reconstructs"
)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ValueError(AUTOENCODER)


def _normal_like(z: Array) -> Gaussian:
    """N(0, I) for each example of a batch."""
    one = standard_normal(z.shape[1:], z.dtype)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (z.shape[0], *leaf.shape)), one)


def _repeat(tree: Any, times: int) -> Any:
    """The batch, `times` times over."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), tree)
