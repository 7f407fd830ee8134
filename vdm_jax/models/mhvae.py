"""The Markovian hierarchical VAE, eq. (3): a chain of T latents, each made from the one below it.

With one latent it is the VAE. With the fixed linear-Gaussian chain of eq. (7), latents of the data's shape and
a standard normal last one, it is the variational diffusion model. Source: Luo 2022, arXiv 2208.11970.
"""

from typing import Any

from vdm_jax.models.chain import CHAINS
from vdm_jax.models.hierarchy import hierarchy
from vdm_jax.models.model import Model, Statistics, check_statistics, likelihood_for
from vdm_jax.specs import build, name_of


def mhvae(
    statistics: Statistics,
    *,
    chain: Any,
    likelihood: Any = "histogram",
    draws: Any = 1,
    prior_weight: Any = 1.0,
) -> Model:
    """Build a hierarchical VAE. Every component is a name, a spec or a built object.

    Args:
      statistics: of the training split.
      chain: of `CHAINS`: {"name": "gaussian", "latents": [d_1, …, d_T], ...} is learned both ways,
        {"name": "diffusion", "timesteps": T − 1, ...} has the diffusion's fixed encoder.
      likelihood: of `LIKELIHOODS`.
      draws: L Monte Carlo draws of the latents in the training loss.
      prior_weight: β on the latents' terms of the training loss; the bound is reported with 1.

    Raises:
      ValueError: no latent or a dimension below 1, draws below 1, a negative prior_weight, a likelihood of
        another kind than the data, networks that do not fit these shapes.
    """
    check_statistics(statistics)
    built = likelihood_for(statistics, likelihood)
    levels = build(
        CHAINS,
        chain,
        "chain",
        statistics=statistics,
        likelihood=built,
    )
    latents = ", ".join(
        str(shape[0]) if len(shape) == 1 else "×".join(map(str, shape)) for shape in levels.shapes
    )
    words = [f"chain {name_of(chain)}", f"latents [{latents}]"]
    words += [f"likelihood {name_of(likelihood)}", f"prior weight {prior_weight}"]
    return hierarchy(
        statistics,
        levels,
        built,
        draws=draws,
        prior_weight=prior_weight,
        components=f"mhvae: {', '.join(words)}",
    )
