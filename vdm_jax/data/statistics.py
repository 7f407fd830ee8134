"""Counts of the levels of a data set, from which baselines and initial values are computed."""

import math

import numpy as np

from vdm_jax.data.datasets import Images

CHUNK_VALUES = 2**22
"""Values counted at a time: large enough for speed, small beside the images."""


def level_counts(images: Images, levels: int, *, limit: int = 50_000) -> np.ndarray:
    """Count, at each position, how often each level occurs: int64 [*d, K].

    Args:
      images: [n, *d] with integer values in [0, levels), read by index.
      levels: K.
      limit: of more examples only so many are read, evenly spaced, for they may be sorted.

    Raises:
      ValueError: no examples, or values out of range.

    Examples:
      >>> from vdm_jax.data import level_counts
      >>> level_counts(np.asarray([[0, 1], [0, 0]], np.uint8), 2).tolist()
      [[2, 0], [1, 1]]
    """
    size = min(len(images), limit)
    if size < 1:
        raise ValueError(f"no examples to count: {len(images)} images, limit {limit}")
    chosen = spread(len(images), limit)
    shape = images[chosen[:1]].shape[1:]
    positions = math.prod(shape)
    offsets = np.arange(positions) * levels
    counts = np.zeros(positions * levels, np.int64)
    chunk = max(1, CHUNK_VALUES // positions)
    for start in range(0, size, chunk):
        x = images[chosen[start : start + chunk]].reshape(-1, positions)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:  # would be counted at the neighbouring position
            raise ValueError(f"values in [{low}, {high}], expected [0, {levels - 1}]")
        counts += np.bincount((x + offsets).ravel(), minlength=counts.size)
    return counts.reshape(*shape, levels)


def spread(size: int, limit: int) -> np.ndarray:
    """Places of at most `limit` of so many examples, evenly spaced: int64 [n], ascending, each once.

    Examples:
      >>> from vdm_jax.data.statistics import spread
      >>> spread(3, 5).tolist(), spread(10, 4).tolist()
      ([0, 1, 2], [0, 3, 6, 9])
    """
    return np.linspace(0, size - 1, min(size, limit)).astype(np.int64)
