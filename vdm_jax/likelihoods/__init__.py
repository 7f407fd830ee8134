"""Likelihoods p(x | mean, variance) of data under a Gaussian observation, eq. (2), (12).

    softmax               K levels, softmax of −(mean − level)²/(2·variance)           (Kingma et al. 2021)
    histogram             as softmax, with each position's log-histogram added to the logits
    discretized_gaussian  K levels, N(mean, variance) integrated over each level's bin  (Ho et al. 2020)
    bernoulli             two levels, log-odds mean/variance
    gaussian              continuous data, N(mean, variance)

`mean` is on the scale of x_0.
"""

from collections.abc import Callable

from vdm_jax.likelihoods.base import Likelihood, observation
from vdm_jax.likelihoods.categorical import bernoulli, check_log_counts, histogram, softmax
from vdm_jax.likelihoods.gaussian import discretized_gaussian, gaussian
from vdm_jax.likelihoods.levels import level_values, nearest_level

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "bernoulli",
    "check_log_counts",
    "discretized_gaussian",
    "gaussian",
    "histogram",
    "level_values",
    "nearest_level",
    "observation",
    "softmax",
]


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "softmax": softmax,
    "histogram": histogram,
    "discretized_gaussian": discretized_gaussian,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
}
"""name -> factory of a `Likelihood`."""
