"""The type of a data set, and data sets of arrays."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, whole_number


@runtime_checkable
class Images(Protocol):
    """Random access: `images[int array [n]]` -> uint8 [n, *shape]; a NumPy array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Split(NamedTuple):
    """One split: its images, and its name as shown to the user, such as "train[:1500]"."""

    images: Images
    name: str


class Dataset(NamedTuple):
    """Examples of one shape: integers in [0, levels), or floats if `levels` is None."""

    name: str
    version: str
    shape: tuple[int, ...]
    levels: Any  # None is for `compare` only: what reads configs knows K-level data
    train: Split
    test: Split


def array_dataset(
    name: str,
    *,
    version: str,
    levels: int | None,
    train: Split,
    test: Split,
) -> Dataset:
    """Make a `Dataset` of arrays [n, *shape].

    Args:
      levels: K in [2, 256] of integers in [0, K); None for floats, which are kept as they are and should be of
        order one.

    Raises:
      TypeError: values of the other kind.
      ValueError: no examples, shapes that differ, values out of range.

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
    checked = []
    for split in (train, test):
        what = f"{name!r} {split.name!r}"
        check_array(split.images, what)
        images = np.asarray(split.images)
        images = _floats(images, what) if levels is None else _integers(images, levels, what)
        checked.append(Split(images, split.name))
    shape, test_shape = (split.images.shape[1:] for split in checked)
    if shape != test_shape:
        raise ValueError(f"{name!r} has train shape {shape} but test shape {test_shape}")
    return Dataset(name, version, shape, levels, *checked)


def _integers(images: np.ndarray, levels: int, what: str) -> np.ndarray:
    if not np.issubdtype(images.dtype, np.integer):
        raise TypeError(f"{what} has values of type {images.dtype}, expected integers")
    _examples(images, what)
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise ValueError(f"{what} has values in [{low}, {high}], expected [0, {levels - 1}]")
    return images.astype(np.uint8, copy=False)


def _floats(images: np.ndarray, what: str) -> np.ndarray:
    if not jnp.issubdtype(images.dtype, jnp.floating):  # NumPy's knows no bfloat16
        raise TypeError(f"{what} has values of type {images.dtype}, expected floats")
    _examples(images, what)
    images = images.astype(np.float64 if images.dtype == np.float64 else np.float32, copy=False)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"{what} has values that are not finite")
    size = float(np.sqrt(np.mean(np.square(images.astype(np.float64)))))
    if not size < MAX_RMS:  # NaN compares false
        raise ValueError(
            f"{what} has a root mean square of {size:.3g}, expected values of order one, "
            f"and at most {MAX_RMS}: scale them to about [-1, 1]"
        )
    return images.astype(np.float32, copy=False)


def _examples(images: np.ndarray, what: str) -> None:
    if images.ndim < 2 or not images.size:
        raise ValueError(f"{what} has shape {images.shape}, expected [n, *shape] with examples")


MAX_RMS = 10  # of floats; unscaled ones are beyond it
