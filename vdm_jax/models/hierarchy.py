"""Models of a Markov chain of latents and a likelihood: VAE, autoencoder, hierarchical VAE, eq. (2), (3)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import describe, real_number, whole_number
from vdm_jax.elbo import Elbo, mean_of_draws
from vdm_jax.gaussian import Gaussian
from vdm_jax.keys import example_keys, fold_each
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.chain import Chain
from vdm_jax.models.latents import ascend, latent_usage, level_terms, log_ratio
from vdm_jax.models.model import BatchLike, Metrics, Model, check_params, encoded
from vdm_jax.models.statistics import Statistics
from vdm_jax.typing import Array, ArrayLike, Int, Key, Keys, Params, Reals, Scalar

PATH_POINTS = 9  # points of an interpolation, including its two ends

AUTOENCODER = (
    "an autoencoder (prior_weight = 0) has no bound, because its loss lacks the prior term, and no samples, "
    "because its codes have no prior; it can only reconstruct"
)


class HierarchicalVAE(NamedTuple):
    """The built components of a hierarchical VAE.

    Attributes:
      statistics: of the data.
      chain: of the latents.
      likelihood: of the data given the observation that the chain decodes.
      draws: L, the number of Monte Carlo draws of the latents in the training loss, eq. (2).
      prior_weight: β, the weight of the latents' terms in the training loss.
    """

    statistics: Statistics
    chain: Chain
    likelihood: Likelihood
    draws: int
    prior_weight: float


def hierarchy(
    statistics: Statistics,
    chain: Chain,
    likelihood: Likelihood,
    *,
    draws: int,
    prior_weight: float | int,
    components: str,
) -> Model:
    """Build the model of a chain and a likelihood.

    Args:
      statistics, chain, likelihood, draws: as in `HierarchicalVAE`.
      prior_weight: β; 0 for an autoencoder, whose code is the mean of q(z_1|x), without noise.
      components: names of the components, for reports.

    Raises:
      ValueError: `draws` is below 1, or `prior_weight` is negative, infinite, or 0 with more than one latent.
    """
    top = len(chain.shapes)
    whole_number(draws, "draws", 1)
    real_number(
        prior_weight,
        "prior_weight",
        "a finite number that is not negative",
        lambda value: 0 <= value < math.inf,
    )
    if prior_weight == 0 and top > 1:
        raise ValueError(
            f"prior_weight: 0 makes an autoencoder of one latent, found {top} latents, of which those "
            "above the first would not be trained"
        )
    model = HierarchicalVAE(statistics, chain, likelihood, draws, prior_weight)
    plots: dict[str, Callable[[Params, Array | np.ndarray], Array]] = {
        "reconstructions": partial(reconstructions, model),
        "interpolations": partial(interpolations, model),
    }
    if prior_weight == 0:
        return Model(
            init=chain.init,
            loss=partial(autoencoder_loss, model),
            elbo=_refuse,
            sample=_refuse,
            bound="none",
            components=components,
            plots=plots,
            unsupported=AUTOENCODER,
        )
    return Model(
        init=chain.init,
        loss=partial(loss, model),
        elbo=partial(elbo, model),
        sample=partial(sample, model),
        bound=f"ELBO, {top} latent{'s' if top > 1 else ''}",
        components=components,
        importance=partial(importance, model),
        plots=plots,
    )


def autoencoder_loss(
    model: HierarchicalVAE, params: Params, key: Key, batch: BatchLike
) -> tuple[Scalar, Metrics]:
    """Return −log p(x | code), where the code is the mean of q(z_1|x), and its metrics, bits/dim."""
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    # the second of two keys, as in `loss`, where the first one draws the latents
    _, dropout_keys = example_keys(key, batch.index, 2)
    code = model.chain.up(params, x0, 1, dropout_keys).mean
    observation = model.chain.down(params, code, 1, dropout_keys)
    value = model.statistics.bits * jnp.mean(negative_log_prob(model, batch.x, observation))
    return value, {"loss": value, "reconstruction": value}


def loss(
    model: HierarchicalVAE, params: Params, key: Key, batch: BatchLike
) -> tuple[Scalar, Metrics]:
    """Return the training loss of a batch and its metrics, bits/dim."""
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    draw_keys, dropout_keys = example_keys(key, batch.index, 2)
    # q(z_1|x) is the same for all draws: it is computed once, before the batch is repeated for each draw
    first = model.chain.up(params, x0, 1, dropout_keys)
    x, x0, first, dropout_keys = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * model.draws), (batch.x, x0, first, dropout_keys)
    )
    draw_keys = jnp.concatenate([fold_each(draw_keys, i) for i in range(model.draws)])
    draw = ascend(model.chain, params, draw_keys, x0, dropout_keys, first=first)

    terms = [model.statistics.bits * jnp.mean(level_terms(level)) for level in draw.levels]
    reconstruction = model.statistics.bits * jnp.mean(negative_log_prob(model, x, draw.observation))
    value = reconstruction + model.prior_weight * sum(terms)
    bound = reconstruction + sum(terms)
    metrics = {"loss": value, "bits_per_dim": bound, "reconstruction": reconstruction}
    metrics |= {f"level_{t}": term for t, term in enumerate(terms, start=1)}
    for t, usage in enumerate(latent_usage(draw), start=1):
        metrics["kl_1" if t == 1 else f"gain_{t}"] = model.statistics.bits * jnp.mean(usage)
    return value, metrics


def elbo(
    model: HierarchicalVAE, params: Params, key: Key, batch: BatchLike, draws: int = 1
) -> Elbo:
    """Estimate −ELBO of each example, nats [B], as the mean of `draws` draws."""
    whole_number(draws, "draws", 1)
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    (draw_keys,) = example_keys(key, batch.index, 1)

    def one_draw(i):
        draw = ascend(model.chain, params, fold_each(draw_keys, i), x0)
        # as in (10): the term of the top latent is the prior term, those of the others are the matching term
        *inner, top = [level_terms(level) for level in draw.levels]
        matching = sum(inner, jnp.zeros_like(top))
        return Elbo(negative_log_prob(model, batch.x, draw.observation), matching, top)

    return mean_of_draws(one_draw, draws)


def importance(
    model: HierarchicalVAE, params: Params, key: Key, batch: BatchLike, samples: int
) -> Reals:
    """Return −log of the mean of `samples` importance weights p(x, z)/q(z|x), nats [B]."""
    whole_number(samples, "samples", 1)
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    (draw_keys,) = example_keys(key, batch.index, 1)

    def log_weight(i):
        draw = ascend(model.chain, params, fold_each(draw_keys, i), x0)
        return -negative_log_prob(model, batch.x, draw.observation) - log_ratio(draw)

    # the sum stays in logarithms: weights of exp(−nats) would underflow; one draw at a time saves memory
    def add(log_sum, i):
        return jnp.logaddexp(log_sum, log_weight(i)), None

    numbers = jnp.arange(samples)
    log_zero = jnp.full_like(jax.eval_shape(log_weight, numbers[0]), -jnp.inf)
    log_sum, _ = jax.lax.scan(add, log_zero, numbers)
    return math.log(samples) - log_sum


def sample(
    model: HierarchicalVAE,
    params: Params,
    key: Key,
    n: int,
    draw: bool = True,
    first: int | Int[Array, ""] = 0,
) -> Array:
    """Draw the examples `first` to `first + n − 1` of a key, [n, *d] as stored.

    Args:
      draw: True to draw the data from the likelihood, False for the level nearest to their expectation.
    """
    check_params(params, ())
    if not isinstance(draw, bool):
        raise ValueError(f"draw: expected True or False, found {describe(draw)}")
    n = whole_number(n, "n", 1)
    chain, top = model.chain, len(model.chain.shapes)
    keys = example_keys(key, first + jnp.arange(n), 1)[0]
    # the keys of an example are folded with the level that they draw: T … 1 for the latents, 0 for the data
    z = jax.vmap(lambda key: jax.random.normal(key, chain.shapes[-1]))(fold_each(keys, top))
    for t in range(top, 1, -1):
        z = jax.vmap(Gaussian.sample)(chain.down(params, z, t), fold_each(keys, t - 1))
    return as_stored(model, chain.down(params, z, 1), fold_each(keys, 0) if draw else None)


def negative_log_prob(model: HierarchicalVAE, x: ArrayLike, observation: Gaussian) -> Reals:
    """Return −log p(x | observation), nats [B]."""
    return -jax.vmap(model.likelihood.log_prob)(x, *observation)


def as_stored(model: HierarchicalVAE, observation: Gaussian, keys: Keys | None = None) -> Array:
    """Return data as stored, drawn with `keys` [B], or without keys the level nearest to the expectation."""
    if keys is not None:
        return jax.vmap(model.likelihood.sample)(keys, *observation)
    return model.likelihood.decode(jax.vmap(model.likelihood.expected)(*observation))


def codes(model: HierarchicalVAE, params: Params, x: BatchLike) -> Array:
    """Return the means of q(z_1 | x) of a batch."""
    check_params(params, ())
    _, x0 = encoded(x, model.statistics, model.likelihood)
    return model.chain.up(params, x0, 1).mean


def reconstructions(model: HierarchicalVAE, params: Params, x: Array | np.ndarray) -> Array:
    """Return data [n, *d] beside their reconstructions from the codes, [n, 2, *d]."""
    observation = model.chain.down(params, codes(model, params, x), 1)
    return jnp.stack([x, as_stored(model, observation)], 1)


def interpolations(model: HierarchicalVAE, params: Params, x: Array | np.ndarray) -> Array:
    """Return decoded points between the codes of examples 0 and 1, 2 and 3, …, [max(1, n // 2), 9, *d]."""
    z = codes(model, params, x)
    start = end = z  # of a single example
    if len(x) > 1:
        start, end = z[0 : 2 * (len(x) // 2) : 2], z[1::2]
    weights = jnp.linspace(0, 1, PATH_POINTS, dtype=z.dtype)
    paths = [model.chain.down(params, start + w * (end - start), 1) for w in weights]
    return jnp.stack([as_stored(model, observation) for observation in paths], 1)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    """Raise ValueError in place of a function that an autoencoder does not have."""
    raise ValueError(AUTOENCODER)
