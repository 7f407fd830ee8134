"""Prepared image data sets of TensorFlow Datasets, read without TensorFlow.

A folder may be untrusted: `vdm_jax.data.prepared` reads its descriptions as data before TFDS does.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.datasets import Dataset, Images, Split
from vdm_jax.data.prepared import UnsafeFolder, check_folder

MAX_BYTES_IN_MEMORY = 8 * 2**30
"""Splits up to this size are decoded once, when loaded; larger ones image by image, on access."""

DECODE_CHUNK = 1000
"""Number of images decoded at a time."""

TFDS_NAME = r"[A-Za-z]\w*(/[\w.\-]+)?(:[\d.*]+)?"
"""Names of the form name[/config][:version], without a community namespace."""


def tfds_images(
    *,
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    others: Sequence[str] = (),
) -> Dataset:
    """Load the uint8 "image" feature of a prepared TFDS data set, 256 levels; see `load_dataset`.

    Args:
      others: names that the message about an unknown data set suggests, besides those of TFDS.
    """
    builder = _prepared_builder(dataset, data_dir, others)
    default_test = "test" if "test" in list(builder.info.splits) else "validation"
    train_split = "train" if train_split is None else train_split
    test_split = default_test if test_split is None else test_split
    train = _split_records(builder, dataset, "train", train_split)
    test = _split_records(builder, dataset, "test", test_split)
    if train.shape != test.shape:
        raise ValueError(f"{dataset!r} has train shape {train.shape}, test shape {test.shape}")
    splits = Split(_in_memory(train), train_split), Split(_in_memory(test), test_split)
    return Dataset(dataset, str(builder.version), train.shape, 256, *splits)


def _split_records(builder: Any, dataset: str, key: str, split: str) -> "_Records":
    """Return the records of a split, for the argument `{key}_split`.

    Raises:
      ValueError: an unknown or empty split.
    """
    try:
        count = builder.info.splits[split].num_examples
    except (AttributeError, KeyError, ValueError) as error:
        choices = f"splits of {dataset!r}: {list(builder.info.splits)}"
        raise ValueError(f"{key}_split: {_line(error)}; {choices}") from None
    if count <= 0:  # TFDS counts "train[5:2]" as -3
        raise ValueError(f"{key}_split: {split!r} of {dataset!r} has no examples")
    return _records(builder, split, f"{dataset!r} {split!r}")


def _prepared_builder(name: str, data_dir: str | os.PathLike | None, others: Sequence[str]) -> Any:
    """Return the TFDS builder of a data set that is prepared, and readable without TensorFlow.

    Everything is checked before TFDS reads, because its own errors are long and misleading, or come after
    minutes of retries.
    """
    import tensorflow_datasets as tfds

    env = os.environ.get("TFDS_DATA_DIR")  # TFDS itself reads it only once, at import
    setting = "data_dir" if data_dir or not env else "data_dir of TFDS_DATA_DIR"
    root = os.path.expanduser(data_dir or env or "~/tensorflow_datasets")
    request = _Request(name, root, setting, others)
    try:
        if not re.fullmatch(TFDS_NAME, name):
            raise tfds.core.DatasetNotFoundError(name)
        for folder in _folders(Path(root), re.split("[/:]", name)[0]):
            check_folder(folder)
        builder = tfds.builder(name, data_dir=root)
        for folder in (root, builder.data_dir):  # TFDS reports an unreadable folder as missing
            os.listdir(folder)
        prepared = builder.is_prepared()
        formats = [f.value for f in builder.info.available_file_formats()] if prepared else []
    except Exception as error:
        raise request.error_of(error) from None
    if not prepared:
        raise request.not_prepared(f"{builder.data_dir!r} has no dataset_info.json")
    if "array_record" not in formats:
        found = f"{builder.data_dir!r} holds {', '.join(formats)}, which is not read here"
        advice = f"in another folder, as array_record, {request.how_to_prepare}"
        raise ValueError(f"{setting}: {found}; {advice}")
    return builder


@dataclass(frozen=True)
class _Request:
    """Request for a TFDS data set, with the one-line errors about it."""

    name: str
    root: str
    setting: str  # the argument or variable that the root comes from
    others: Sequence[str]  # names of other data sets, to suggest

    @property
    def how_to_prepare(self) -> str:
        """Command that prepares the data set, as a part of a message."""
        return (
            "prepare it once with: pip install tensorflow importlib_resources && python -c "
            f'"import tensorflow_datasets as tfds; tfds.builder({self.name!r}, data_dir={self.root!r}, '
            "file_format='array_record').download_and_prepare()\""
        )

    def not_prepared(self, reason: str) -> FileNotFoundError:
        """Return the error for a data set that is not prepared."""
        missing = f"{self.name!r} is not prepared: {reason}"
        return FileNotFoundError(f"{self.setting}: {missing}; {self.how_to_prepare}")

    def error_of(self, error: Exception) -> Exception:
        """Return the error for the user from an error of TFDS, of the file system or of `check_folder`."""
        import tensorflow_datasets as tfds

        cannot_read = f"{self.setting}: cannot read {self.name!r} in {self.root!r}"
        if isinstance(error, tfds.core.DatasetNotFoundError):
            return self._unknown_name(tfds.list_builders(with_community_datasets=False))
        if isinstance(error, FileNotFoundError):
            return self.not_prepared(f"{str(error.filename or self.root)!r} does not exist")
        if isinstance(error, OSError):
            return type(error)(f"{self.setting}: cannot read {self.root!r}: {_line(error)}")
        if isinstance(error, UnsafeFolder):
            return ValueError(f"{cannot_read}: {error}")
        if isinstance(error, AssertionError | KeyError | ValueError):  # no such config or version
            return ValueError(f"name: TFDS cannot load {self.name!r}: {_line(error)}")
        return OSError(f"{cannot_read}: {_line(error)}")  # of protobuf, for a damaged file

    def _unknown_name(self, tfds_names: Sequence[str]) -> ValueError:
        tables = self.others, tfds_names
        nearest = [
            repr(n) for table in tables for n in difflib.get_close_matches(self.name, table, n=1)
        ]
        suggestions = [*dict.fromkeys(nearest)]  # both tables may have the same name
        hint = f", did you mean {' or '.join(suggestions)}?" if suggestions else ";"
        choices = f"{', '.join(self.others)}, or " if self.others else ""
        choices += "any TFDS image data set"
        return ValueError(f"name: unknown data set {self.name!r}{hint} choices: {choices}")


def _folders(root: Path, name: str) -> list[Path]:
    """Return the folders of a data set, which TFDS finds both as `my_data` and as `MyData`."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    plain = name.replace("_", "").lower()
    return [folder for folder in folders if folder.name.replace("_", "").lower() == plain]


@dataclass(frozen=True)
class _Records:
    """Encoded images on disk, decoded on access; safe to read from several threads."""

    source: Any  # a TFDS data source of raw records
    decode: Callable[[bytes], np.ndarray]
    shape: tuple[int, ...]
    label: str  # data set and split, for messages

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: np.ndarray, /) -> np.ndarray:
        images = np.empty((len(index), *self.shape), np.uint8)
        for i, image in enumerate(self.read(index)):
            if image.shape != self.shape:
                shapes = f"{self.shape} and {image.shape}"
                raise ValueError(f"{self.label} has images of several shapes: {shapes}")
            images[i] = image
        return images

    def read(self, index: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Return the images of indices, of any shapes.

        Raises:
          OSError: a file or a record is damaged.
        """
        try:
            records = self.source.__getitems__(np.asarray(index).tolist())
        except RuntimeError as error:  # raised by array_record for a missing or damaged file
            raise OSError(f"{self.label} cannot be read: {_line(error)}") from None
        try:
            return [self.decode(record) for record in records]
        except Exception as error:  # of protobuf, PIL or OpenCV, for a damaged or hostile record
            reason = f"has a record that cannot be decoded: {_line(error)}"
            raise OSError(f"{self.label} {reason}") from None


def _records(builder: Any, split: str, label: str) -> _Records:
    """Return the images of a split, after a sample was decoded, so that unsuitable images are found now.

    Raises:
      ValueError: no uint8 feature "image" of one shape.
      OSError: damaged files.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    image: Any = features["image"] if "image" in (features or ()) else None
    is_array = isinstance(image, tfds.features.Image | tfds.features.Tensor) and image.shape
    if not is_array or image.np_dtype != np.uint8:
        found = " ".join(str(features).split())
        raise ValueError(f'{label} needs a uint8 feature "image", found {found}')
    image_only: Any = tfds.features.FeaturesDict({"image": image})  # do not decode other features
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")

    def decode(record: bytes) -> np.ndarray:
        return image_only.deserialize_example_np(record)["image"]

    shape: Any = image.shape
    if None in shape:  # downsampled_imagenet declares no size: take that of its first image
        shape = _Records(source, decode, (), label).read([0])[0].shape
    records = _Records(source, decode, shape, label)
    _ = records[np.linspace(0, len(records) - 1, 16).astype(int)]
    return records


def _in_memory(records: _Records) -> Images:
    """Return the decoded images, or the records themselves if these would need too much memory."""
    size = len(records)
    if size * math.prod(records.shape) > MAX_BYTES_IN_MEMORY:
        return records
    images = np.empty((size, *records.shape), np.uint8)
    for start in range(0, size, DECODE_CHUNK):  # in one thread: decoding holds the interpreter lock
        stop = min(start + DECODE_CHUNK, size)
        images[start:stop] = records[np.arange(start, stop)]
    return images


def _line(error: Exception) -> str:
    """Return an error's message on one line, without the prefix of TFDS."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", text)[:300]
