"""The fingerprint depends on every value of a data set and on its shapes, not on its name."""

import importlib
import re

import numpy as np
import pytest

from vdm_jax.data import Dataset, Split, fingerprint
from vdm_jax.data.statistics import sample_places

MODULE = importlib.import_module("vdm_jax.data.fingerprint")  # the name is the function's, too


class Decoded:
    """Images that are decoded on access."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def dataset_of(train, test, levels=4):
    return Dataset("name", "1", train.shape[1:], levels, Split(train, "train"), Split(test, "test"))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fingerprint_depends_on_every_value(dtype, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", 7)
    rng = np.random.default_rng(0)
    parts = {
        "train": rng.integers(0, 4, (9, 2, 3)).astype(dtype),
        "test": rng.integers(0, 4, (5, 2, 3)).astype(dtype),
    }
    prints = {fingerprint(dataset_of(**parts)): "the same"}
    for name, images in parts.items():
        for place in np.ndindex(images.shape):
            changed = images.copy()
            changed[place] = 3 - changed[place]
            prints[fingerprint(dataset_of(**parts | {name: changed}))] = f"{name} {place}"
        prints[fingerprint(dataset_of(**parts | {name: images[::-1]}))] = f"{name} reversed"
        prints[fingerprint(dataset_of(**parts | {name: images[:-1]}))] = f"{name} shortened"
    prints[fingerprint(dataset_of(**parts, levels=5))] = "levels"
    reshaped = {name: images.reshape(-1, 3, 2) for name, images in parts.items()}
    prints[fingerprint(dataset_of(**reshaped))] = "shape"
    moved = {
        "train": parts["train"][:-1],
        "test": np.concatenate([parts["train"][-1:], parts["test"]]),
    }
    prints[fingerprint(dataset_of(**moved))] = "another split"
    assert len(prints) == 1 + 84 + 4 + 3
    strided = {name: np.repeat(images, 2, -1)[..., ::2] for name, images in parts.items()}
    assert (
        prints[fingerprint(dataset_of(**strided)._replace(name="other", version="2"))] == "the same"
    )
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in prints)


@pytest.mark.parametrize("large", ["an array", "decoded"])
def test_fingerprint_of_large_splits_reads_a_sample(large, monkeypatch):
    monkeypatch.setattr(MODULE, "SAMPLED", 10)
    monkeypatch.setattr(MODULE, "WHOLE_BYTES", 0 if large == "an array" else 2**30)
    images = np.arange(200, dtype=np.uint8)[:, None]

    def digits(x):
        x = x if large == "an array" else Decoded(x)
        test = Split(images[:3], "test")
        return fingerprint(Dataset("name", "1", (1,), 256, Split(x, "train"), test))

    places = sample_places(200, 10)
    unseen = images.copy()
    unseen[np.setdiff1d(np.arange(200), places)] = 255
    seen = images.copy()
    seen[places[3]] = 255
    assert digits(images) == digits(unseen)
    assert len({digits(x) for x in (images, seen, images[::-1], images[:-1])}) == 4
