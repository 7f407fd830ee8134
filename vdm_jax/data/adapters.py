"""Conversion of a user's data to a `Dataset`: arrays, grain sources, a density, or a name."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vdm_jax.checks import check_array, describe, whole_number
from vdm_jax.data.datasets import Dataset, Split, array_dataset
from vdm_jax.data.loading import load_dataset
from vdm_jax.mixtures import Mixture
from vdm_jax.specs import located
from vdm_jax.typing import Integer

TEST_PART = 5  # 1 of 5 examples is held out if no test split is given
DRAWN = 10_000  # training examples drawn from a density


def as_dataset(data: object, *, levels: Integer | None = None) -> Dataset:
    """Convert a user's data to a `Dataset`.

    Args:
      data: a `Dataset`; a name of `DATASETS` or of TFDS, or a mapping of the arguments of `load_dataset`; an
        array [n, *d]; a grain source, or any object with a length and items, which are arrays [*d], tuples that
        begin with one, or dictionaries with an "image" or an "x"; a tuple (train, test) of two of these; a
        `Mixture`. If there is no test split, a fifth of the examples, chosen by a fixed permutation, is held
        out.
      levels: K of integer data; by default 256 for uint8 and 2 for booleans. Floats have no levels.

    Raises:
      TypeError, ValueError, OSError: data of another kind or shape, out of range, or missing.

    Examples:
      >>> from vdm_jax.data.adapters import as_dataset
      >>> data = as_dataset(np.zeros((10, 4), np.float32))
      >>> data.shape, data.levels, len(data.train.images), len(data.test.images)
      ((4,), None, 8, 2)
    """
    if isinstance(data, Dataset):
        return _with_levels(data, levels)
    spec = {"name": data} if isinstance(data, str) else data
    if isinstance(spec, Mapping) and "name" in spec:
        with located("data", spec):
            dataset = load_dataset(**spec)
        return _with_levels(dataset, levels)
    if isinstance(data, Mapping):
        data = _item(data)
    if isinstance(data, Mixture):
        return _with_levels(_drawn(data), levels)
    if isinstance(data, tuple) and len(data) == 2:
        train, test = _array(data[0]), _array(data[1])
        names = "train", "test"
    else:
        train, test = _divided(_array(data))
        names = "4 of 5 examples", "1 of 5 examples"
    # refuses (images, labels), which other libraries take
    if test.shape[1:] != train.shape[1:] or (test.dtype == bool) != (train.dtype == bool):
        raise ValueError(
            "data: a tuple of two is (train, test), expected examples of one shape and type, "
            f"found {describe(train)} and {describe(test)}; labels are not used: give the examples alone"
        )
    if levels is None and np.issubdtype(train.dtype, np.integer):
        if train.dtype != np.uint8:
            raise ValueError(
                f"data: has integers of type {train.dtype}, expected levels=K beside them, or uint8 for 256"
            )
        levels = 256
    if train.dtype == bool:
        train, test, levels = train.astype(np.uint8), test.astype(np.uint8), levels or 2
    levels = None if levels is None else whole_number(levels, "levels", 2, 256)
    with located("data"):
        return array_dataset(
            "own data",
            version=digest(train),
            levels=levels,
            train=Split(train, names[0]),
            test=Split(test, names[1]),
        )


def _with_levels(dataset: Dataset, levels: Integer | None) -> Dataset:
    """Return the data set after a check that explicit levels agree with its own.

    Raises:
      ValueError: the data set has other levels, or none.
    """
    if levels not in (None, dataset.levels):
        has = "none" if dataset.levels is None else f"{dataset.levels} levels"
        raise ValueError(f"levels: {dataset.name!r} has {has}, found {levels}")
    return dataset


def _array(source: Any) -> np.ndarray:
    """Return the examples of an array or of a source as one array [n, *d].

    Raises:
      TypeError: neither an array nor a source.
      ValueError: items of different shapes.
    """
    check_array(source, "data")
    if isinstance(source, np.ndarray | jax.Array):
        return np.asarray(source)
    # not `Sequence`, from which grain sources do not derive
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            "data: expected a name, an array [n, *d], a source with a length and items, or a Mixture, "
            f"found {type(source).__name__}"
        )
    items = [_item(source[i]) for i in range(len(source))]
    shapes = {item.shape for item in items}
    if len(shapes) > 1:
        raise ValueError(f"data: expected examples of one shape, found {sorted(shapes)[:3]}")
    return np.stack(items) if items else np.zeros((0, 0), np.float32)


def _item(item: Any) -> np.ndarray:
    """Return the array in an item of a source: the item itself, or an entry of a mapping or a tuple.

    Raises:
      ValueError: a mapping without an "image" or an "x".
    """
    if isinstance(item, Mapping):
        key = next((key for key in ("image", "x") if key in item), None)
        if key is None:
            raise ValueError(f"data: expected items with an 'image' or an 'x', found {[*item]}")
        item = item[key]
    item = item[0] if isinstance(item, tuple) and item else item
    check_array(item, "data")
    return np.asarray(item)


def _divided(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide examples into a training and a test split; at random, because they may be sorted."""
    order = np.random.default_rng(0).permutation(len(images))
    test_size = len(images) // TEST_PART
    return images[order[test_size:]], images[order[:test_size]]


def _drawn(density: Mixture) -> Dataset:
    """Return a data set of draws from a density, with a fixed key."""
    x = np.asarray(density.sample(jax.random.key(0), DRAWN + DRAWN // TEST_PART))
    return array_dataset(
        "mixture",
        version=digest(x),
        levels=None,
        train=Split(x[:DRAWN], f"{DRAWN} draws"),
        test=Split(x[DRAWN:], f"{DRAWN // TEST_PART} draws"),
    )


def digest(x: np.ndarray) -> str:
    """Return a digest of the content of an array: 16 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
