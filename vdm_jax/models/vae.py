"""The variational autoencoder, eq. (2): one latent, a learned encoder and decoder.

    log p(x) ≥ E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ N(0, I)),   q(z|x) = N(μ(x), diag σ²(x))

It is the hierarchical VAE of one latent. Source: Kingma & Welling 2013, arXiv 1312.6114.
"""

from vdm_jax.checks import whole_number
from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.chain import gaussian
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.model import Model, likelihood_for
from vdm_jax.models.statistics import Statistics, check_statistics
from vdm_jax.specs import name_of
from vdm_jax.typing import Spec


def vae(
    statistics: Statistics,
    *,
    latent: int = 16,
    encoder: object = "mlp",
    decoder: object = "mlp",
    likelihood: Spec | Likelihood = "histogram",
    draws: int = 1,
    prior_weight: float | int = 1.0,
) -> Model:
    """Build a VAE. Every component is a name, a spec or a built object.

    Args:
      statistics: of the training split.
      latent: dimension of z.
      encoder: from the data to the mean and log-variance of z, [2, latent]: of `NETS`, a Linen module or
        (init, apply).
      decoder: the same from z to the mean and log-variance of the observation, [*d, 2].
      likelihood: of `LIKELIHOODS`.
      draws: L, the number of Monte Carlo draws of z in the training loss.
      prior_weight: β, the weight of the prior term in the training loss; the reported bound has weight 1. With
        0 the model is an autoencoder, whose code has no noise: it has reconstructions, but neither a bound nor
        samples.

    Raises:
      ValueError: `latent` or `draws` is below 1, `prior_weight` is negative, `likelihood` does not fit the
        levels of the data, or a network does not map between these shapes.
    """
    check_statistics(statistics)
    built_likelihood = likelihood_for(statistics, likelihood)
    whole_number(latent, "latent", 1)
    names = [f"encoder {name_of(encoder)}", f"decoder {name_of(decoder)}", f"latent {latent}"]
    names += [f"likelihood {name_of(likelihood)}", f"prior weight {prior_weight}"]
    chain = gaussian(statistics=statistics, latents=[latent], encoder=encoder, decoder=decoder)
    return hierarchy(
        statistics,
        chain,
        built_likelihood,
        draws=draws,
        prior_weight=prior_weight,
        components=f"vae: {', '.join(names)}",
    )
