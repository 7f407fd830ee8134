"""Data sets: uint8 images with values in [0, K), read by index, in a train and a test split.

`digits` ships inside scikit-learn. Every image data set of tensorflow-datasets (TFDS) that has been
prepared as array_record loads by its TFDS name, without TensorFlow and without the network. Arrays of
one's own become a `Dataset` with `array_dataset`.
"""

import difflib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

MAX_BYTES_IN_MEMORY = 8 * 2**30
"""Splits up to this size are decoded once, at load; larger ones image by image, on access."""

DECODE_CHUNK = 1000
MAX_RMS = 10  # of floats; unscaled ones are beyond it
TFDS_NAME = r"[A-Za-z]\w*(/[\w.\-]+)?(:[\d.*]+)?"  # name[/config][:version]; no community namespace


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


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    where: str = "config.data",
) -> Dataset:
    """Load a row of `DATASETS`, or any image data set by its TFDS name (`name[/config][:version]`).

    Args:
      name: such as "digits", "cifar10", "downsampled_imagenet/32x32".
      data_dir: folder of the prepared TFDS data sets; else TFDS_DATA_DIR, else TFDS's default.
      train_split, test_split: in TFDS's syntax, such as "train[:50000]"; None for the defaults.
      where: path of these settings, for messages.

    Raises:
      ValueError: unknown name or split, or images that are not uint8 of one shape.
      FileNotFoundError, PermissionError, OSError: the prepared data are missing or unreadable.
    """
    if name == "tfds":
        raise ValueError(
            f"{where}.name: 'tfds' stands for any TFDS data set: write that one's name instead, "
            "such as 'svhn_cropped'"
        )
    load = DATASETS[name] if name in DATASETS else partial(tfds_images, dataset=name)
    return load(data_dir=data_dir, train_split=train_split, test_split=test_split, where=where)


def array_dataset(
    name: str,
    *,
    version: str,
    levels: int | None,
    train: Split,
    test: Split,
    where: str = "config.data",
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
    if levels is not None and not 2 <= levels <= 256:
        raise ValueError(f"{where}: {name!r} has {levels} levels, expected 2 to 256, for uint8")
    checked = []
    for split in (train, test):
        images, what = np.asarray(split.images), f"{where}: {name!r} {split.name!r}"
        images = _floats(images, what) if levels is None else _integers(images, levels, what)
        checked.append(Split(images, split.name))
    shape, test_shape = (split.images.shape[1:] for split in checked)
    if shape != test_shape:
        raise ValueError(f"{where}: {name!r} has train shape {shape} but test shape {test_shape}")
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
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"{what} has values of type {images.dtype}, expected floats")
    _examples(images, what)
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


def digits(
    *,
    data_dir: Any = None,
    train_split: str | None = None,
    test_split: str | None = None,
    where: str = "config.data",
) -> Dataset:
    """scikit-learn's 1797 handwritten digits, [8, 8, 1], 17 levels; 1500 train, 297 test.

    The split is of a fixed permutation, for the file is ordered by writer. `data_dir` is not used.
    """
    del data_dir
    import sklearn
    from sklearn.datasets import load_digits

    names = {"train": "train[permutation 0, :1500]", "test": "test[permutation 0, 1500:]"}
    for key, split in (("train", train_split), ("test", test_split)):
        if split not in (None, key, names[key]):
            raise ValueError(f"{where}.{key}_split: 'digits' has {key!r} only, found {split!r}")
    bunch: Any = load_digits()
    images = np.asarray(bunch.images, np.uint8)[..., None]  # whole numbers, stored as floats
    order = np.random.default_rng(0).permutation(len(images))
    return array_dataset(
        "digits",
        version=f"scikit-learn {sklearn.__version__}",
        levels=17,
        train=Split(images[order[:1500]], names["train"]),
        test=Split(images[order[1500:]], names["test"]),
        where=where,
    )


def tfds_images(
    *,
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    where: str = "config.data",
) -> Dataset:
    """The uint8 "image" feature of a prepared TFDS data set, 256 levels; see `load_dataset`."""
    builder = _prepared_builder(dataset, data_dir, where)
    names = list(builder.info.splits)
    fallback = "test" if "test" in names else "validation"
    records = {}
    for key, default, split in (("train", "train", train_split), ("test", fallback, test_split)):
        split = default if split is None else split
        try:
            count = builder.info.splits[split].num_examples
        except (AttributeError, KeyError, ValueError) as error:
            message = f"{where}.{key}_split: {_line(error)}; splits of {dataset!r}: {names}"
            raise ValueError(message) from None
        if count <= 0:  # TFDS counts "train[5:2]" as -3
            raise ValueError(f"{where}.{key}_split: {split!r} of {dataset!r} has no examples")
        records[key] = Split(_records(builder, split, f"{where}: {dataset!r} {split!r}"), split)
    shape, test_shape = (split.images.shape for split in records.values())
    if shape != test_shape:
        raise ValueError(f"{where}: {dataset!r} has train shape {shape}, test shape {test_shape}")
    train, test = (Split(_in_memory(split.images), split.name) for split in records.values())
    return Dataset(dataset, str(builder.version), shape, 256, train, test)


def _prepared_builder(name: str, data_dir: str | os.PathLike | None, where: str) -> Any:
    """The TFDS builder of data that are there, prepared, and readable without TensorFlow.

    All is looked at before TFDS reads: its own errors are long, misleading, or minutes of retries.
    """
    import tensorflow_datasets as tfds

    env = os.environ.get("TFDS_DATA_DIR")  # TFDS itself reads it only once, at import
    setting = f"{where}.data_dir" if data_dir or not env else "TFDS_DATA_DIR"
    root = os.path.expanduser(data_dir or env or "~/tensorflow_datasets")
    how = (
        "prepare it once with: pip install tensorflow importlib_resources && python -c "
        f'"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={root!r}, '
        "file_format='array_record').download_and_prepare()\""
    )
    try:
        if not re.fullmatch(TFDS_NAME, name):
            raise tfds.core.DatasetNotFoundError(name)
        builder = tfds.builder(name, data_dir=root)
        for folder in (root, builder.data_dir):  # TFDS takes unreadable folders for missing ones
            os.listdir(folder)
        prepared = builder.is_prepared()
        formats = [f.value for f in builder.info.available_file_formats()] if prepared else []
    except tfds.core.DatasetNotFoundError:
        tables = DATASETS, tfds.list_builders(with_community_datasets=False)
        near = {repr(n): None for t in tables for n in difflib.get_close_matches(name, t, n=1)}
        hint = f", did you mean {' or '.join(near)}?" if near else ";"
        choices = f"{', '.join(DATASETS)}, or any TFDS image data set"
        message = f"{where}.name: unknown data set {name!r}{hint} choices: {choices}"
        raise ValueError(message) from None
    except FileNotFoundError as error:
        missing = f"{name!r} is not prepared, for {str(error.filename or root)!r} does not exist"
        raise FileNotFoundError(f"{setting}: {missing}; {how}") from None
    except OSError as error:
        raise type(error)(f"{setting}: cannot read {root!r}: {_line(error)}") from None
    except (AssertionError, KeyError, ValueError) as error:  # no such config, no such version
        raise ValueError(f"{where}.name: TFDS cannot load {name!r}: {_line(error)}") from None
    except Exception as error:  # of protobuf, for a file that is damaged
        raise OSError(f"{setting}: cannot read {name!r} in {root!r}: {_line(error)}") from None
    if not prepared:
        missing = f"{name!r} is not prepared, for {builder.data_dir!r} has no dataset_info.json"
        raise FileNotFoundError(f"{setting}: {missing}; {how}")
    if "array_record" not in formats:
        found = f"{builder.data_dir!r} holds {', '.join(formats)}, which is not read here"
        raise ValueError(f"{setting}: {found}; in another folder, as array_record, {how}")
    return builder


@dataclass(frozen=True)
class _Records:
    """Encoded images on disk, decoded on access; safe to read from several threads."""

    source: Any  # a TFDS data source of raw records
    decode: Callable[[bytes], np.ndarray]
    shape: tuple[int, ...]
    what: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        images = np.empty((len(index), *self.shape), np.uint8)
        for row, image in zip(images, self.read(index), strict=True):
            if image.shape != self.shape:
                shapes = f"{self.shape} and {image.shape}"
                raise ValueError(f"{self.what} has images of several shapes: {shapes}")
            row[...] = image
        return images

    def read(self, index: Any) -> list[np.ndarray]:
        try:
            records = self.source.__getitems__(np.asarray(index).tolist())
        except RuntimeError as error:  # array_record's own, for a missing or damaged file
            raise OSError(f"{self.what} cannot be read: {_line(error)}") from None
        return [self.decode(record) for record in records]


def _records(builder: Any, split: str, what: str) -> _Records:
    """The images of a split; a sample of them is decoded, so that unfit ones show here."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    image: Any = features["image"] if "image" in (features or ()) else None
    fits = isinstance(image, tfds.features.Image | tfds.features.Tensor) and image.shape
    if not fits or image.np_dtype != np.uint8:
        found = " ".join(str(features).split())
        raise ValueError(f'{what} needs a uint8 feature "image", found {found}')
    only: Any = tfds.features.FeaturesDict({"image": image})  # nothing else is decoded
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    records = _Records(source, lambda r: only.deserialize_example_np(r)["image"], (), what)
    shape: Any = image.shape
    if None in shape:  # downsampled_imagenet declares no size: its first image tells
        shape = records.read([0])[0].shape
    records = replace(records, shape=shape)
    _ = records[np.linspace(0, len(records) - 1, 16).astype(int)]
    return records


def _in_memory(records: _Records) -> Images:
    size = len(records)
    if size * math.prod(records.shape) > MAX_BYTES_IN_MEMORY:
        return records
    images = np.empty((size, *records.shape), np.uint8)
    for start in range(0, size, DECODE_CHUNK):  # one thread: decoding holds the interpreter lock
        stop = min(start + DECODE_CHUNK, size)
        images[start:stop] = records[np.arange(start, stop)]
    return images


def _line(error: Exception) -> str:
    """An error's text on one line, without what TFDS puts before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", text)[:300]


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": partial(tfds_images, dataset="mnist"),
    "fashion_mnist": partial(tfds_images, dataset="fashion_mnist"),
    "cifar10": partial(tfds_images, dataset="cifar10"),
    "tfds": tfds_images,
}
"""name -> function that loads a `Dataset`; `tfds` stands for any other TFDS name."""
