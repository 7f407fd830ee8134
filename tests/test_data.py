"""Data sets: the digits and the user's own arrays."""

import re

import data_checks
import numpy as np
import pytest
from data_checks import assert_sound

from vdm_jax.data import Dataset, Split, array_dataset, load_dataset

no_network = data_checks.no_network  # a fixture of every test below


def test_digits():
    dataset = load_dataset("digits")
    assert_sound(dataset)
    assert dataset.name == "digits" and dataset.version.startswith("scikit-learn ")
    assert (len(dataset.train.images), len(dataset.test.images)) == (1500, 297)
    assert (dataset.shape, dataset.levels) == ((8, 8, 1), 17)
    assert "1500" in dataset.train.name and "1500" in dataset.test.name
    train, test = np.asarray(dataset.train.images), np.asarray(dataset.test.images)
    assert train.min() == 0 and train.max() == 16
    # all 1797 images differ, so that disjoint splits share no image
    assert len({image.tobytes() for image in (*train, *test)}) == 1797
    again = load_dataset("digits", train_split="train", test_split=dataset.test.name)
    np.testing.assert_array_equal(again.train.images, train)  # pyright: ignore


@pytest.mark.parametrize("key", ["train_split", "test_split"])
@pytest.mark.parametrize("split", ["train[:10]", "", "validation"])
def test_digits_has_fixed_splits(key, split):
    message = rf"^{key}: 'digits' has .*{re.escape(repr(split))}$"
    with pytest.raises(ValueError, match=message):
        load_dataset("digits", **{key: split})


BAD_ARRAYS = [
    ({"train": np.zeros((3, 2), np.float32)}, TypeError, "type float32, expected integers"),
    ({"test": np.zeros((3, 2), bool)}, TypeError, "'test' has values of type bool"),
    ({"train": np.full((3, 2), 5)}, ValueError, r"'train' has values in \[5, 5\], expected \[0, 4"),
    ({"test": np.full((3, 2), -1)}, ValueError, r"values in \[-1, -1\]"),
    ({"train": np.zeros((3, 4), int)}, ValueError, r"train shape \(4,\) but test shape \(2,\)"),
    ({"train": np.zeros((0, 2), int)}, ValueError, r"shape \(0, 2\)"),
    ({"train": np.zeros(3, int)}, ValueError, r"shape \(3,\)"),
    ({"levels": 257}, ValueError, "found 257"),
    ({"levels": 1}, ValueError, "found 1"),
]


def own_arrays(*, levels: int = 5, **arrays) -> Dataset:
    images = {"train": np.ones((3, 2), np.int64), "test": np.ones((4, 2), np.int64), **arrays}
    train, test = (Split(images[name], name) for name in ("train", "test"))
    return array_dataset("mine", version="1", levels=levels, train=train, test=test)


def test_array_dataset():
    assert_sound(own_arrays())


@pytest.mark.parametrize(("change", "error", "message"), BAD_ARRAYS)
def test_array_dataset_refuses(change, error, message):
    with pytest.raises(error, match=rf"^.*'mine'.*{message}"):
        own_arrays(**change)
