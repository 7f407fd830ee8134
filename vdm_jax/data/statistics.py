"""Counts of the levels of a data set, from which baselines and initial values are computed."""

import math

import numpy as np

from vdm_jax.checks import check_array
from vdm_jax.data.datasets import Images

CHUNK_VALUES = 2**22
"""Values counted at a time: large enough for speed, small beside the images."""


def level_counts(
    images: Images, levels: int, *, per_position: bool = True, limit: int = 50_000
) -> np.ndarray:
    """Count how often each level occurs, at each position or in all: int64 [*d, K] or [K].

    Args:
      images: [n, *d] with integer values in [0, levels), read by index.
      levels: K.
      per_position: count each position alone, which takes K numbers for each.
      limit: of more examples, count only this many: a random sample with a fixed seed, because a split may be
        stored in any order.

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
    chosen = sample_places(len(images), limit)
    shape = images[chosen[:1]].shape[1:]
    positions = math.prod(shape)
    rows = positions if per_position else 1
    offsets = np.arange(rows) * levels
    counts = np.zeros(rows * levels, np.int64)
    chunk = max(1, CHUNK_VALUES // positions)
    for start in range(0, len(chosen), chunk):
        x = images[chosen[start : start + chunk]].reshape(-1, positions)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:  # would be counted at the neighbouring position
            raise ValueError(f"values in [{low}, {high}], expected [0, {levels - 1}]")
        counts += np.bincount((x + offsets).ravel(), minlength=counts.size)
    return counts.reshape(*(shape if per_position else ()), levels)


def sample_places(size: int, limit: int, seed: int = 0) -> np.ndarray:
    """Choose the places of at most `limit` of `size` examples at random: int64 [n], ascending, each once.

    Everything that is estimated from a part of a split reads these. The first examples are no sample of a split
    that is sorted, and evenly spaced ones are none where its order repeats.

    Examples:
      >>> from vdm_jax.data.statistics import sample_places
      >>> sample_places(3, 5).tolist(), len(sample_places(10**9, 4))
      ([0, 1, 2], 4)
    """
    if size <= limit:
        return np.arange(size)
    chosen = np.random.default_rng(seed).choice(size, limit, replace=False, shuffle=False)
    return np.sort(chosen.astype(np.int64))
