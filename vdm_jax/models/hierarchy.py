"""The model of a Markov chain of latents and a likelihood: VAE, autoencoder, hierarchical VAE, eq. (2), (3)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import describe, real_number, whole_number
from vdm_jax.elbo import Elbo, mean_of_draws
from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.chain import Chain
from vdm_jax.models.keys import example_keys, fold_each
from vdm_jax.models.latents import ascend, latent_usage, level_terms, log_ratio
from vdm_jax.models.model import Metrics, Model, Statistics, check_params, encoded
from vdm_jax.typing import Array, Int, Key, Keys, Params, PyTree, Reals, Scalar

PATH_POINTS = 9  # of an interpolation, its two ends included

AUTOENCODER = (
    "an autoencoder (prior_weight = 0) has neither a likelihood, for without the prior term its objective "
    "bounds none, nor samples, for no prior says where its codes lie; it reconstructs"
)


class HierarchicalVAE(NamedTuple):
    """The built parts of a chain of latents over data.

    Attributes:
      statistics: of the data.
      chain: of `CHAINS`.
      likelihood: of `LIKELIHOODS`.
      draws: L Monte Carlo draws of the latents in the training loss, eq. (2).
      prior_weight: β on the latents' terms of the training loss.
    """

    statistics: Statistics
    chain: Chain
    likelihood: Likelihood
    draws: int
    prior_weight: float

    @property
    def bits(self) -> float:
        """Bits/dim of one nat of an example."""
        return 1 / (self.statistics.dim * math.log(2))


def hierarchy(
    statistics: Statistics,
    chain: Chain,
    likelihood: Likelihood,
    *,
    draws: Any,
    prior_weight: Any,
    components: str,
) -> Model:
    """Build the model of a chain and a likelihood.

    Args:
      statistics, chain, likelihood, draws: of `HierarchicalVAE`.
      prior_weight: β. 0 is the plain autoencoder, whose code is the mean of q(z_1|x), without noise.
      components: words for the report.

    Raises:
      ValueError: draws below 1, a negative or infinite prior_weight, or 0 with more than one latent.
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
    plots: dict[str, Callable[[Params, Any], Array]] = {
        "reconstructions": partial(reconstructions, model),
        "interpolations": partial(interpolations, model),
    }
    if prior_weight == 0:
        return Model(
            chain.init,
            partial(autoencoder_loss, model),
            elbo=_refuse,
            sample=_refuse,
            bound="none",
            components=components,
            plots=plots,
            unsupported=AUTOENCODER,
        )
    return Model(
        chain.init,
        partial(loss, model),
        partial(elbo, model),
        partial(sample, model),
        f"ELBO, {top} latent{'s' if top > 1 else ''}",
        components,
        importance=partial(importance, model),
        plots=plots,
    )


def autoencoder_loss(
    model: HierarchicalVAE, params: Params, key: Key, batch: Any
) -> tuple[Scalar, Metrics]:
    """Return the reconstruction error of the codes' means and its metrics, bits/dim."""
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    _, dropout_keys = example_keys(key, batch.index, 2)
    code = model.chain.up(params, x0, 1, dropout_keys).mean
    observation = model.chain.down(params, code, 1, dropout_keys)
    value = model.bits * jnp.mean(negative_log_prob(model, batch.x, observation))
    return value, {"loss": value, "reconstruction": value}


def loss(model: HierarchicalVAE, params: Params, key: Key, batch: Any) -> tuple[Scalar, Metrics]:
    """Return the training loss of a batch and its metrics, bits/dim."""
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    draw_keys, dropout_keys = example_keys(key, batch.index, 2)
    first = model.chain.up(params, x0, 1, dropout_keys)
    x, x0, first, dropout_keys = _repeat((batch.x, x0, first, dropout_keys), model.draws)
    draw_keys = jnp.concatenate([fold_each(draw_keys, i) for i in range(model.draws)])
    draw = ascend(model.chain, params, draw_keys, x0, dropout_keys, first=first)

    bits = model.bits
    levels = [bits * jnp.mean(level_terms(level)) for level in draw.levels]
    reconstruction = bits * jnp.mean(negative_log_prob(model, x, draw.observation))
    value = reconstruction + model.prior_weight * sum(levels)
    bound = reconstruction + sum(levels)
    metrics = {"loss": value, "bits_per_dim": bound, "reconstruction": reconstruction}
    metrics |= {f"level_{t}": part for t, part in enumerate(levels, start=1)}
    for t, used in enumerate(latent_usage(draw), start=1):
        metrics["kl_1" if t == 1 else f"gain_{t}"] = bits * jnp.mean(used)
    return value, metrics


def elbo(model: HierarchicalVAE, params: Params, key: Key, batch: Any, draws: int = 1) -> Elbo:
    """Estimate −ELBO of each example, nats [B], as the mean of some draws."""
    whole_number(draws, "draws", 1)
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    (draw_keys,) = example_keys(key, batch.index, 1)

    def one_draw(i):
        draw = ascend(model.chain, params, fold_each(draw_keys, i), x0)
        *inner, last = [level_terms(level) for level in draw.levels]
        matching = sum(inner, jnp.zeros_like(last))
        return Elbo(negative_log_prob(model, batch.x, draw.observation), matching, last)

    return mean_of_draws(one_draw, draws)


def importance(model: HierarchicalVAE, params: Params, key: Key, batch: Any, samples: int) -> Reals:
    """Return −log of the mean of some importance weights, nats [B]."""
    whole_number(samples, "samples", 1)
    check_params(params, ())
    batch, x0 = encoded(batch, model.statistics, model.likelihood)
    (draw_keys,) = example_keys(key, batch.index, 1)

    def log_weight(i):
        draw = ascend(model.chain, params, fold_each(draw_keys, i), x0)
        return -negative_log_prob(model, batch.x, draw.observation) - log_ratio(draw)

    def add(log_sum, i):
        return jnp.logaddexp(log_sum, log_weight(i)), None

    numbers = jnp.arange(samples)
    nothing = jnp.full_like(jax.eval_shape(log_weight, numbers[0]), -jnp.inf)
    log_sum, _ = jax.lax.scan(add, nothing, numbers)
    return math.log(samples) - log_sum


def sample(
    model: HierarchicalVAE,
    params: Params,
    key: Key,
    n: int,
    draw: bool = True,
    first: int | Int[Array, ""] = 0,
) -> Array:
    """Draw n examples [n, *d] as stored, from number `first` of a key on.

    Args:
      draw: draw the data from the likelihood, or else take the level nearest to its expectation.
    """
    check_params(params, ())
    if not isinstance(draw, bool):
        raise ValueError(f"draw: expected True or False, found {describe(draw)}")
    n, chain = whole_number(n, "n", 1), model.chain
    top = len(chain.shapes)
    keys = example_keys(key, first + jnp.arange(n), 1)[0]
    z = jax.vmap(lambda key: jax.random.normal(key, chain.shapes[-1]))(fold_each(keys, top))
    for t in range(top, 1, -1):
        z = jax.vmap(Gaussian.sample)(chain.down(params, z, t), fold_each(keys, t - 1))
    return as_stored(model, chain.down(params, z, 1), fold_each(keys, 0) if draw else None)


def negative_log_prob(model: HierarchicalVAE, x: Any, observation: Gaussian) -> Reals:
    """Return −log p(x | observation), nats [B]."""
    return -jax.vmap(model.likelihood.log_prob)(x, *observation)


def as_stored(model: HierarchicalVAE, observation: Gaussian, keys: Keys | None = None) -> Array:
    """Return data as stored: drawn with the keys [B], or else the level nearest to the expectation."""
    if keys is not None:
        return jax.vmap(model.likelihood.sample)(keys, *observation)
    return model.likelihood.decode(jax.vmap(model.likelihood.expected)(*observation))


def codes(model: HierarchicalVAE, params: Params, x: Any) -> Array:
    """Return the mean of q(z_1 | x)."""
    check_params(params, ())
    _, x0 = encoded(x, model.statistics, model.likelihood)
    return model.chain.up(params, x0, 1).mean


def reconstructions(model: HierarchicalVAE, params: Params, x: Any) -> Array:
    """Return data [n, *d] beside what their codes decode to, [n, 2, *d]."""
    observation = model.chain.down(params, codes(model, params, x), 1)
    return jnp.stack([x, as_stored(model, observation)], 1)


def interpolations(model: HierarchicalVAE, params: Params, x: Any) -> Array:
    """Return decoded points between the codes of each two examples in a row, [max(1, n // 2), 9, *d]."""
    z = codes(model, params, x)
    start, end = (z[0 : 2 * (len(x) // 2) : 2], z[1::2]) if len(x) > 1 else (z, z)
    weights = jnp.linspace(0, 1, PATH_POINTS, dtype=z.dtype)
    paths = [model.chain.down(params, start + w * (end - start), 1) for w in weights]
    return jnp.stack([as_stored(model, observation) for observation in paths], 1)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ValueError(AUTOENCODER)


def _repeat(tree: PyTree, times: int) -> PyTree:
    """Return a batch `times` times over."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), tree)
