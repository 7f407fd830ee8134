"""What a data set consists of, in a few digits: a run is continued on the images that it began with."""

import hashlib
import json

import numpy as np

from vdm_jax.data.datasets import Dataset

IMAGES = 64  # of each split, evenly spaced: the counts say nothing of the order


def fingerprint(dataset: Dataset, counts: np.ndarray) -> str:
    """Digest the shape, sizes and images of a data set: 16 hexadecimal digits.

    Args:
      counts: of `level_counts` on the training split.
    """
    found = hashlib.sha256()
    sizes = [len(split.images) for split in (dataset.train, dataset.test)]
    found.update(json.dumps([[*dataset.shape], dataset.levels, sizes]).encode())
    found.update(np.ascontiguousarray(counts, "<i8").tobytes())
    for split in (dataset.train, dataset.test):
        places = np.linspace(0, len(split.images) - 1, IMAGES).astype(np.int64)
        found.update(np.ascontiguousarray(split.images[places], np.uint8).tobytes())
    return found.hexdigest()[:16]
