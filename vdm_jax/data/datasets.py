"""The type of a data set, and data sets of arrays."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, whole_number
from vdm_jax.typing import Integer


@runtime_checkable
class Images(Protocol):
    """Examples by index, `images[int array [n]]` -> [n, *shape], such as a NumPy array.

    They are uint8, or float32 for continuous data.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray, /) -> np.ndarray: ...


class Split(NamedTuple):
    """A split of a data set: its images, and its name in messages, such as "train[:1500]"."""

    images: Images
    name: str


class Dataset(NamedTuple):
    """Data set of examples of one shape: integers in [0, levels), or floats if `levels` is None."""

    name: str
    version: str
    shape: tuple[int, ...]
    levels: Any  # an int; None only in `compare`, because the models of configs need K-level data
    train: Split
    test: Split


def array_dataset(
    name: str,
    *,
    version: str,
    levels: Integer | None,
    train: Split,
    test: Split,
) -> Dataset:
    """Make a `Dataset` of arrays [n, *shape].

    Args:
      name: name of the data set, for messages and reports.
      version: version, for reports.
      levels: K in [2, 256] of integers in [0, K); None for floats, which are not scaled and should be of order
        one.
      train, test: the splits, with arrays of equal example shape.

    Raises:
      TypeError: floats with `levels`, or integers without.
      ValueError: a split without examples, shapes that differ, or values out of range.

    Examples:
      >>> from vdm_jax.data import Split, array_dataset
      >>> bits = np.random.default_rng(0).integers(0, 2, (20, 3, 3, 1))
      >>> data = array_dataset(
      ...     "bits", version="1", levels=2, train=Split(bits[:15], "train"), test=Split(bits[15:], "test")
      ... )
      >>> data.shape, len(data.train.images), data.train.images.dtype
      ((3, 3, 1), 15, dtype('uint8'))
    """
    if levels is not None:
        levels = whole_number(levels, f"levels of {name!r}", 2, 256)
    arrays = []
    for split in (train, test):
        label = f"{name!r} {split.name!r}"
        check_array(split.images, label)
        images = np.asarray(split.images)
        images = _floats(images, label) if levels is None else _integers(images, levels, label)
        arrays.append(images)
    train_images, test_images = arrays
    shape, test_shape = train_images.shape[1:], test_images.shape[1:]
    if shape != test_shape:
        raise ValueError(f"{name!r} has train shape {shape} but test shape {test_shape}")
    return Dataset(
        name, version, shape, levels, Split(train_images, train.name), Split(test_images, test.name)
    )


def _integers(images: np.ndarray, levels: int, label: str) -> np.ndarray:
    """Check integers in [0, levels), and return them as uint8."""
    if not np.issubdtype(images.dtype, np.integer):
        raise TypeError(f"{label} has values of type {images.dtype}, expected integers")
    _examples(images, label)
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise ValueError(f"{label} has values in [{low}, {high}], expected [0, {levels - 1}]")
    return images.astype(np.uint8, copy=False)


def _floats(images: np.ndarray, label: str) -> np.ndarray:
    """Check finite floats of order one, and return them as float32."""
    if not jnp.issubdtype(images.dtype, jnp.floating):  # NumPy's issubdtype does not know bfloat16
        raise TypeError(f"{label} has values of type {images.dtype}, expected floats")
    _examples(images, label)
    images = images.astype(np.float64 if images.dtype == np.float64 else np.float32, copy=False)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"{label} has values that are not finite")
    rms = float(np.sqrt(np.mean(np.square(images.astype(np.float64)))))
    if not rms < MAX_RMS:  # also refuses NaN
        raise ValueError(
            f"{label} has a root mean square of {rms:.3g}, expected values of order one, "
            f"and at most {MAX_RMS}: scale them to about [-1, 1]"
        )
    return images.astype(np.float32, copy=False)


def _examples(images: np.ndarray, label: str) -> None:
    """Check that an array [n, *shape] has examples."""
    if images.ndim < 2 or not images.size:
        raise ValueError(f"{label} has shape {images.shape}, expected [n, *shape] with examples")


MAX_RMS = 10
"""Largest root mean square of floats; that of unscaled images, up to 255, is larger."""
