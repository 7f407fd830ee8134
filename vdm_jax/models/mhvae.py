"""The Markovian hierarchical VAE, eq. (3): a chain of T latents, each encoded from the one below it.

With one latent it is the VAE. With the fixed linear-Gaussian chain of eq. (7), whose latents have the data's
shape and whose last latent is standard normal, it is the variational diffusion model. Source: Luo 2022,
arXiv 2208.11970.
"""

from vdm_jax.likelihoods import Likelihood
from vdm_jax.models.chain import CHAINS, Chain
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.model import Model, likelihood_for
from vdm_jax.models.statistics import Statistics, check_statistics
from vdm_jax.specs import build, name_of
from vdm_jax.typing import Spec


def mhvae(
    statistics: Statistics,
    *,
    chain: Spec | Chain,
    likelihood: Spec | Likelihood = "histogram",
    draws: int = 1,
    prior_weight: float | int = 1.0,
) -> Model:
    """Build a hierarchical VAE. Every component is a name, a spec or a built object.

    Args:
      statistics: of the training split.
      chain: of `CHAINS`: {"name": "gaussian", "latents": [d_1, …, d_T], ...} is learned in both directions,
        {"name": "diffusion", "timesteps": T − 1, ...} has the fixed encoder of a diffusion.
      likelihood: of `LIKELIHOODS`.
      draws: L, the number of Monte Carlo draws of the latents in the training loss.
      prior_weight: β, the weight of the latents' terms in the training loss; the reported bound has weight 1.

    Raises:
      ValueError: there is no latent, a dimension or `draws` is below 1, `prior_weight` is negative,
        `likelihood` does not fit the levels of the data, or a network does not map between these shapes.
    """
    check_statistics(statistics)
    built_likelihood = likelihood_for(statistics, likelihood)
    built_chain = build(
        CHAINS,
        chain,
        "chain",
        statistics=statistics,
        likelihood=built_likelihood,
    )
    latents = ", ".join("×".join(map(str, shape)) for shape in built_chain.shapes)
    names = [f"chain {name_of(chain)}", f"latents [{latents}]"]
    names += [f"likelihood {name_of(likelihood)}", f"prior weight {prior_weight}"]
    return hierarchy(
        statistics,
        built_chain,
        built_likelihood,
        draws=draws,
        prior_weight=prior_weight,
        components=f"mhvae: {', '.join(names)}",
    )
