"""The handwritten digits of scikit-learn, 8×8 with 17 levels, which need no download."""

import os
from typing import Any

import numpy as np

from vdm_jax.data.datasets import Dataset, Split, array_dataset


def digits(
    *,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
) -> Dataset:
    """Load scikit-learn's 1797 handwritten digits, [8, 8, 1], 17 levels; 1500 train, 297 test.

    The splits are those of a fixed permutation, because the file is ordered by writer. `data_dir` is not used.

    Raises:
      ValueError: a split other than these two.
    """
    del data_dir
    import sklearn
    from sklearn.datasets import load_digits

    names = {"train": "train[permutation 0, :1500]", "test": "test[permutation 0, 1500:]"}
    for key, split in (("train", train_split), ("test", test_split)):
        if split not in (None, key, names[key]):
            raise ValueError(f"{key}_split: 'digits' has {key!r} only, found {split!r}")
    bunch: Any = load_digits()  # a class of dynamic attributes
    images = np.asarray(bunch.images, np.uint8)[..., None]  # whole numbers, stored as floats
    order = np.random.default_rng(0).permutation(len(images))
    return array_dataset(
        "digits",
        version=f"scikit-learn {sklearn.__version__}",
        levels=17,
        train=Split(images[order[:1500]], names["train"]),
        test=Split(images[order[1500:]], names["test"]),
    )
