"""Distances of samples from data: of moments for continuous data, of features for images.

    moments    KL of the Gaussian with the samples' mean and covariance from that of the data, nats; against
               the exact moments of a `Mixture`, else those of the test split
    features   squared kernel distance of features, (x·y/d + 1)³, unbiased at any number of samples and so
               sometimes below zero (Bińkowski et al. 2018, KID, with features of the user's choice)

Both are computed in NumPy and float64. The same distance of as many real examples shows its noise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import Dataset
from vdm_jax.mixtures import Mixture

MOST = 2000  # test examples that samples are compared with, at most
SETS = 8  # sets of real examples whose distances are averaged

Features = Callable[[np.ndarray], Any]
"""Function from data as stored [n, *d] to features [n, f]."""


class Quality(NamedTuple):
    """A distance from samples to data.

    Attributes:
      name: name of the distance, with its unit.
      distance: samples [n, *d], as stored -> distance.
      real: number of examples -> distance of that many real examples.
    """

    name: str
    distance: Callable[[np.ndarray], float]
    real: Callable[[int], float]


def quality_of(
    dataset: Dataset, law: Mixture | None, features: Features | None, samples: int
) -> Quality:
    """Choose the distance for a data set.

    Args:
      dataset: the data.
      law: the density that continuous data were drawn from, if it is known.
      features: features of images; None takes the values themselves, with levels scaled to [−1, 1].
      samples: number of samples that will be drawn. Without more samples and examples than dimensions,
        covariances are singular, and the kernel distance of the values replaces that of the moments.
    """
    train, test = dataset.train.images, dataset.test.images
    rng = np.random.default_rng(0)  # a random subset, because a file may be sorted
    test = test[np.sort(rng.permutation(len(test))[:MOST])]

    def distance_of_real(distance, n):
        """Average the distance of some sets of n training examples."""
        picked = (rng.choice(len(train), min(n, len(train)), replace=False) for _ in range(SETS))
        return float(np.mean([distance(train[np.sort(i)]) for i in picked]))

    dim = int(np.prod(dataset.shape))
    few = min(samples, len(train), len(test) if law is None else samples) <= dim
    if features is None and dataset.levels is None and not few:
        mean, covariance = law.moments() if law is not None else sample_moments(test)

        def moment_distance(x):
            return gaussian_kl(*sample_moments(x), mean, covariance)

        source = "exact moments" if law is not None else "moments of the test split"
        real = partial(distance_of_real, moment_distance)
        return Quality(f"KL of {source}, nats", moment_distance, real)

    def features_of(x):
        return pixels(x, dataset.levels) if features is None else _featured(features, x)

    # `kernel_distance`, with the terms of the test split computed once
    reference = features_of(test)
    reference_mean = mean_kernel(reference)

    def feature_distance(x):
        y = features_of(x)
        return mean_kernel(y) + reference_mean - 2 * float(kernel(y, reference).mean())

    name = "values" if features is None else getattr(features, "__name__", "features")
    real = partial(distance_of_real, feature_distance)
    return Quality(f"kernel distance of {name}", feature_distance, real)


def _featured(features: Features, x: np.ndarray) -> np.ndarray:
    """Return the user's features [n, f] of data, checked."""
    values = np.asarray(features(x), np.float64)
    if values.ndim != 2 or len(values) != len(x):
        raise ValueError(f"features: expected [n, f] for {len(x)} examples, found {values.shape}")
    return values


def pixels(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Flatten data as stored [n, *d], and scale levels to [−1, 1]."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return flat if levels is None else (2 * flat + 1) / levels - 1


def sample_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [d] and the covariance [d, d] of data [n, *d]."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    # np.cov of one dimension is a scalar
    return flat.mean(0), np.cov(flat.T).reshape(flat.shape[1], flat.shape[1])


def gaussian_kl(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    """Return KL(N(m1, c1) ‖ N(m2, c2)) in nats; infinite if a covariance is singular."""
    (sign_1, log_1), (sign_2, log_2) = np.linalg.slogdet(c1), np.linalg.slogdet(c2)
    if not (sign_1 > 0 and sign_2 > 0):
        return float("inf")
    shift = m2 - m1
    quadratic = np.trace(np.linalg.solve(c2, c1)) + shift @ np.linalg.solve(c2, shift) - len(m1)
    return float(0.5 * (quadratic + log_2 - log_1))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (x·y/d + 1)³ for features [n, d] and [m, d]: [n, m]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def mean_kernel(a: np.ndarray) -> float:
    """Return the mean of the kernel over the pairs of different rows of features [n, d], n ≥ 2."""
    k = kernel(a, a)
    # without the diagonal, whose pairs of equal rows would bias the estimate
    return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy of features [n, d] and [m, d], n, m ≥ 2."""
    return mean_kernel(x) + mean_kernel(y) - 2 * float(kernel(x, y).mean())
