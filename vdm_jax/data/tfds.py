"""Prepared image data sets of TensorFlow Datasets, read without TensorFlow.

A folder may be a stranger's: `vdm_jax.data.prepared` reads its descriptions as data before TFDS does.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.datasets import Dataset, Images, Split
from vdm_jax.data.prepared import UnsafeFolder, check_folder

MAX_BYTES_IN_MEMORY = 8 * 2**30
"""Splits up to this size are decoded once, at load; larger ones image by image, on access."""


DECODE_CHUNK = 1000


TFDS_NAME = r"[A-Za-z]\w*(/[\w.\-]+)?(:[\d.*]+)?"  # name[/config][:version]; no community namespace


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
    names = list(builder.info.splits)
    fallback = "test" if "test" in names else "validation"
    records = {}
    for key, default, split in (("train", "train", train_split), ("test", fallback, test_split)):
        split = default if split is None else split
        try:
            count = builder.info.splits[split].num_examples
        except (AttributeError, KeyError, ValueError) as error:
            message = f"{key}_split: {_line(error)}; splits of {dataset!r}: {names}"
            raise ValueError(message) from None
        if count <= 0:  # TFDS counts "train[5:2]" as -3
            raise ValueError(f"{key}_split: {split!r} of {dataset!r} has no examples")
        records[key] = Split(_records(builder, split, f"{dataset!r} {split!r}"), split)
    shape, test_shape = (split.images.shape for split in records.values())
    if shape != test_shape:
        raise ValueError(f"{dataset!r} has train shape {shape}, test shape {test_shape}")
    train, test = (Split(_in_memory(split.images), split.name) for split in records.values())
    return Dataset(dataset, str(builder.version), shape, 256, train, test)


def _prepared_builder(name: str, data_dir: str | os.PathLike | None, others: Sequence[str]) -> Any:
    """Return the TFDS builder of data that are prepared, and readable without TensorFlow.

    Check all before TFDS reads, because its errors are long, misleading, or minutes of retries.
    """
    import tensorflow_datasets as tfds

    env = os.environ.get("TFDS_DATA_DIR")  # TFDS itself reads it only once, at import
    setting = "data_dir" if data_dir or not env else "data_dir of TFDS_DATA_DIR"
    root = os.path.expanduser(data_dir or env or "~/tensorflow_datasets")
    how = (
        "prepare it once with: pip install tensorflow importlib_resources && python -c "
        f'"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={root!r}, '
        "file_format='array_record').download_and_prepare()\""
    )
    try:
        if not re.fullmatch(TFDS_NAME, name):
            raise tfds.core.DatasetNotFoundError(name)
        for folder in _folders(Path(root), re.split("[/:]", name)[0]):
            check_folder(folder)
        builder = tfds.builder(name, data_dir=root)
        for folder in (root, builder.data_dir):  # TFDS takes unreadable folders for missing ones
            os.listdir(folder)
        prepared = builder.is_prepared()
        formats = [f.value for f in builder.info.available_file_formats()] if prepared else []
    except tfds.core.DatasetNotFoundError:
        tables = others, tfds.list_builders(with_community_datasets=False)
        near = {repr(n): None for t in tables for n in difflib.get_close_matches(name, t, n=1)}
        hint = f", did you mean {' or '.join(near)}?" if near else ";"
        choices = ", or ".join([*filter(None, [", ".join(others)]), "any TFDS image data set"])
        message = f"name: unknown data set {name!r}{hint} choices: {choices}"
        raise ValueError(message) from None
    except FileNotFoundError as error:
        missing = f"{name!r} is not prepared, for {str(error.filename or root)!r} does not exist"
        raise FileNotFoundError(f"{setting}: {missing}; {how}") from None
    except OSError as error:
        raise type(error)(f"{setting}: cannot read {root!r}: {_line(error)}") from None
    except UnsafeFolder as error:
        raise ValueError(f"{setting}: cannot read {name!r} in {root!r}: {error}") from None
    except (AssertionError, KeyError, ValueError) as error:  # no such config, no such version
        raise ValueError(f"name: TFDS cannot load {name!r}: {_line(error)}") from None
    except Exception as error:  # of protobuf, for a file that is damaged
        raise OSError(f"{setting}: cannot read {name!r} in {root!r}: {_line(error)}") from None
    if not prepared:
        missing = f"{name!r} is not prepared, for {builder.data_dir!r} has no dataset_info.json"
        raise FileNotFoundError(f"{setting}: {missing}; {how}")
    if "array_record" not in formats:
        found = f"{builder.data_dir!r} holds {', '.join(formats)}, which is not read here"
        raise ValueError(f"{setting}: {found}; in another folder, as array_record, {how}")
    return builder


def _folders(root: Path, name: str) -> list[Path]:
    """Return the folders of a data set, which TFDS finds as `my_data` and as `MyData`."""
    plain = name.replace("_", "").lower()
    there = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in there if folder.name.replace("_", "").lower() == plain]


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
        try:
            return [self.decode(record) for record in records]
        except (
            Exception
        ) as error:  # of protobuf, PIL or OpenCV, for a record that is damaged or hostile
            raise OSError(
                f"{self.what} has a record that cannot be decoded: {_line(error)}"
            ) from None


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
