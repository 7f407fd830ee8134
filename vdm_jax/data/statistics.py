"""Level counts of a data set, for baselines and initial values."""

import math

import numpy as np

from vdm_jax.checks import check_array
from vdm_jax.data.datasets import Images

CHUNK_VALUES = 2**22
"""Number of values counted at a time: enough for speed, and little memory compared with the images."""


def level_counts(
    images: Images, levels: int, *, per_position: bool = True, limit: int = 50_000
) -> np.ndarray:
    """Count the occurrences of each level, at each position or in total: int64 [*d, K] or [K].

    Args:
      images: [n, *d] with integer values in [0, levels), read by index.
      levels: K.
      per_position: True to count each position separately, False for the total.
      limit: largest number of examples that are counted. Of more examples a random sample with a fixed seed is
        taken, because a split may be sorted.

    Raises:
      ValueError: no examples, or values out of range.

    Examples:
      >>> from vdm_jax.data import level_counts
      >>> images = np.asarray([[0, 1], [0, 0]], np.uint8)
      >>> level_counts(images, 2).tolist(), level_counts(images, 2, per_position=False).tolist()
      ([[2, 0], [1, 1]], [3, 1])
    """
    if min(len(images), limit) < 1:
        raise ValueError(f"no examples to count: {len(images)} images, limit {limit}")
    check_array(images, "images")
    places = sample_places(len(images), limit)
    shape = images[places[:1]].shape[1:]
    positions = math.prod(shape)
    histograms = positions if per_position else 1
    # one `bincount` for all positions: position i counts in [i K, (i + 1) K)
    offsets = np.arange(histograms) * levels
    counts = np.zeros(histograms * levels, np.int64)
    chunk = max(1, CHUNK_VALUES // positions)
    for start in range(0, len(places), chunk):
        x = images[places[start : start + chunk]].reshape(-1, positions)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:  # would be counted at a neighbouring position
            raise ValueError(f"values in [{low}, {high}], expected [0, {levels - 1}]")
        counts += np.bincount((x + offsets).ravel(), minlength=counts.size)
    return counts.reshape(*(shape if per_position else ()), levels)


def sample_places(size: int, limit: int, seed: int = 0) -> np.ndarray:
    """Draw the indices of at most `limit` of `size` examples, without replacement: int64 [n], ascending.

    All estimates from a part of a split use these. The first examples of a sorted split are not representative,
    nor are evenly spaced examples of a split with a periodic order.

    Examples:
      >>> from vdm_jax.data.statistics import sample_places
      >>> sample_places(3, 5).tolist(), len(sample_places(10**9, 4))
      ([0, 1, 2], 4)
    """
    if size <= limit:
        return np.arange(size)
    # no shuffle, because the indices are sorted next
    drawn = np.random.default_rng(seed).choice(size, limit, replace=False, shuffle=False)
    return np.sort(drawn.astype(np.int64))
