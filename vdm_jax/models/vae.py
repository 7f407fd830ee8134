"""The variational autoencoder, eq. (2): one latent, a learned encoder and decoder.

    log p(x) ≥ E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ N(0, I)),   q(z|x) = N(μ(x), diag σ²(x))

It is the hierarchy of one latent. Source: Kingma & Welling 2013, arXiv 1312.6114.
"""

from typing import Any

from vdm_jax.checks import whole_number
from vdm_jax.models.chain import gaussian
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.model import Model, Statistics, check_statistics, likelihood_for
from vdm_jax.specs import name_of


def vae(
    statistics: Statistics,
    *,
    latent: Any = 16,
    encoder: Any = "mlp",
    decoder: Any = "mlp",
    likelihood: Any = "histogram",
    draws: Any = 1,
    prior_weight: Any = 1.0,
) -> Model:
    """Build a VAE. Every component is a name, a spec or a built object.

    Args:
      statistics: of the training split.
      latent: dimension of z.
      encoder: of `NETS`, a Linen module or (init, apply), from the data to z's mean and log-variance,
        [2, latent].
      decoder: the same, from z to the mean and log-variance that the likelihood takes, [*d, 2].
      likelihood: of `LIKELIHOODS`.
      draws: L Monte Carlo draws of z in the training loss.
      prior_weight: β on the prior term of the training loss; the bound is reported with 1. 0 is the plain
        autoencoder, without noise on its code: it reconstructs, and has neither a bound nor samples.

    Raises:
      ValueError: a dimension or draws below 1, a negative prior_weight, a likelihood of another kind than
        the data, a network that cannot map between these shapes.
    """
    check_statistics(statistics)
    likelihood_spec = likelihood
    likelihood = likelihood_for(statistics, likelihood)
    whole_number(latent, "latent", 1)
    words = [f"encoder {name_of(encoder)}", f"decoder {name_of(decoder)}", f"latent {latent}"]
    words += [f"likelihood {name_of(likelihood_spec)}", f"prior weight {prior_weight}"]
    chain = gaussian(statistics=statistics, latents=[latent], encoder=encoder, decoder=decoder)
    return hierarchy(
        statistics,
        chain,
        likelihood,
        draws=draws,
        prior_weight=prior_weight,
        components=f"vae: {', '.join(words)}",
    )
