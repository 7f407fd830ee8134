"""Distances of samples from data: of moments where the data are continuous, of features where they are images.

    moments    KL of the Gaussian with the samples' mean and covariance from that of the data, nats; against
               the exact moments of a `Mixture`, else those of the test split
    features   squared kernel distance of features, (x·y/d + 1)³, unbiased at any number of samples and so
               sometimes below zero (Bińkowski et al. 2018, KID, with features of the user's choice)

Both are computed in NumPy and float64. The same distance of as many real examples says what is noise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import Dataset
from vdm_jax.mixtures import Mixture

MOST = 2000  # test examples that samples are compared with
SETS = 8  # of real examples

Features = Callable[[np.ndarray], Any]
"""Data as stored [n, *d] -> features [n, f]."""


class Quality(NamedTuple):
    """A distance from samples to data.

    Attributes:
      name: of the distance, with its unit.
      distance: samples [n, *d], as stored -> float.
      real: the same of examples, given how many.
    """

    name: str
    distance: Callable[[np.ndarray], float]
    real: Callable[[int], float]


def quality_of(
    dataset: Dataset, law: Mixture | None, features: Features | None, samples: int
) -> Quality:
    """Choose the distance of a data set.

    Args:
      law: the density that continuous data were drawn from, if it is known.
      features: of images; None are the values themselves, levels scaled to [−1, 1].
      samples: how many will be drawn. Moments need more of them than dimensions; with fewer, the kernel
        distance of the values is taken instead.
    """
    train, test = dataset.train.images, dataset.test.images
    order = np.random.default_rng(0)  # users' files are often sorted
    test = test[np.sort(order.permutation(len(test))[:MOST])]

    def of_real(distance, n):
        """Mean over some sets of n training examples."""
        picked = (order.choice(len(train), min(n, len(train)), replace=False) for _ in range(SETS))
        return float(np.mean([distance(train[np.sort(i)]) for i in picked]))

    dim = int(np.prod(dataset.shape))
    few = min(samples, len(train), len(test) if law is None else samples) <= dim
    if features is None and dataset.levels is None and not few:
        mean, covariance = law.moments() if law is not None else sample_moments(test)

        def moments(x):
            return gaussian_kl(*sample_moments(x), mean, covariance)

        of = "exact moments" if law is not None else "moments of the test split"
        return Quality(f"KL of {of}, nats", moments, partial(of_real, moments))

    def featured(x):
        return pixels(x, dataset.levels) if features is None else _featured(features, x)

    reference = featured(test)
    own = mean_kernel(reference)

    def distance(x):
        y = featured(x)
        return mean_kernel(y) + own - 2 * float(kernel(y, reference).mean())

    name = "values" if features is None else getattr(features, "__name__", "features")
    return Quality(f"kernel distance of {name}", distance, partial(of_real, distance))


def _featured(features: Features, x: np.ndarray) -> np.ndarray:
    found = np.asarray(features(x), np.float64)
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(f"features: expected [n, f] for {len(x)} examples, found {found.shape}")
    return found


def pixels(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Data as stored [n, *d], flat; levels are put on [−1, 1]."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return flat if levels is None else (2 * flat + 1) / levels - 1


def sample_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] of data [n, *d]."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return flat.mean(0), np.cov(flat.T).reshape(flat.shape[1], flat.shape[1])


def gaussian_kl(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    """KL(N(m1, c1) ‖ N(m2, c2)) in nats, full covariances; infinite if one of them has no density."""
    (sign_1, log_1), (sign_2, log_2) = np.linalg.slogdet(c1), np.linalg.slogdet(c2)
    if not (sign_1 > 0 and sign_2 > 0):
        return float("inf")
    off = m2 - m1
    inside = np.trace(np.linalg.solve(c2, c1)) + off @ np.linalg.solve(c2, off) - len(m1)
    return float(0.5 * (inside + log_2 - log_1))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ of features [n, d] and [m, d]: [n, m]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def mean_kernel(a: np.ndarray) -> float:
    """Its mean over the pairs of different ones of n ≥ 2."""
    k = kernel(a, a)
    return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features [n, d], [m, d] of at least 2, unbiased."""
    return mean_kernel(x) + mean_kernel(y) - 2 * float(kernel(x, y).mean())
