"""How far samples are from data: moments where the data are continuous, features where they are images.

    moments    KL of the Gaussian with the samples' mean and covariance from that of the data, nats; against
               the exact moments of a `Mixture`, else those of the test split
    features   squared kernel distance of features, (x·y/d + 1)³, unbiased at any number of samples and so
               sometimes below zero (Bińkowski et al. 2018, KID, with features of the user's choice)

Both are computed in NumPy and float64. The same distance of as many real examples says what is noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import Dataset
from vdm_jax.mixtures import Mixture

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


def quality_of(dataset: Dataset, law: Mixture | None, features: Features | None) -> Quality:
    """Choose the distance of a data set.

    Args:
      law: the density that continuous data were drawn from, if it is known.
      features: of images; None are the pixels themselves, scaled to [−1, 1].

    Raises:
      ValueError: features that are not [n, f].
    """
    train, test = dataset.train.images, dataset.test.images

    def first(n):
        return train[np.arange(min(n, len(train)))]

    if features is None and dataset.levels is None:
        few = test[np.arange(len(test))]
        mean, covariance = law.moments() if law is not None else sample_moments(few)

        def distance(x):
            return gaussian_kl(*sample_moments(x), mean, covariance)

        moments = "exact moments" if law is not None else "moments of the test split"
        return Quality(f"KL of {moments}, nats", distance, lambda n: distance(first(n)))

    name = "pixels" if features is None else getattr(features, "__name__", "features")

    def of(x):
        found = np.asarray(
            pixels(x, dataset.levels) if features is None else features(x), np.float64
        )
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(
                f"features: expected [n, f] for {len(x)} examples, found {found.shape}"
            )
        return found

    real = of(test[np.arange(len(test))])
    return Quality(
        f"kernel distance of {name}",
        lambda x: kernel_distance(of(x), real),
        lambda n: kernel_distance(of(first(n)), real),
    )


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


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features [n, f], [m, f], unbiased; polynomial kernel of degree 3."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):  # without the diagonal
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
