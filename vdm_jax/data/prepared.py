"""Check a prepared TFDS folder before TFDS reads it.

TFDS imports the module that a `features.json` names, with the current folder on the path, so that an untrusted
folder could run code. Here the descriptions are first read as data: every class that they name, at any depth,
has to be one of TFDS's own classes, and every file has to be a regular one.
"""

import json
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vdm_jax.runtime.files import parse_json, read_json

CLASS_KEYS = "pythonClassName", "python_class_name", "type"
"""Keys that name a class: in JSON of protocol buffers, with both spellings, and in TFDS's older format."""

JSON_KEYS = "json", "content"
"""Keys whose strings may again contain JSON."""

DESCRIPTIONS = "features.json", "dataset_info.json"
"""Names of the files that describe a data set."""

DEPTHS = "", "*/", "*/*/"
"""Subfolders of a data set that TFDS searches: the data set, its versions or configs, and their versions."""


@cache
def feature_classes() -> frozenset[str]:
    """Return the full names of the feature classes that TFDS defines."""
    import tensorflow_datasets as tfds

    public = (getattr(tfds.features, name) for name in dir(tfds.features))
    base = tfds.features.FeatureConnector
    classes = (value for value in public if isinstance(value, type) and issubclass(value, base))
    return frozenset(f"{value.__module__}.{value.__qualname__}" for value in classes)


class UnsafeFolder(ValueError):
    """Error for a description that is damaged, or that names a foreign class or a file elsewhere."""


def check_folder(folder: Path) -> None:
    """Check all descriptions and files of a data set.

    Args:
      folder: folder of the data set, such as ~/tensorflow_datasets/mnist; may be missing.

    Raises:
      UnsafeFolder: a description is damaged, or names a class that TFDS does not define or a file elsewhere.
      OSError: a file is not a regular file, or cannot be read.
    """
    for depth in DEPTHS:
        for path in sorted(folder.glob(f"{depth}*")):
            try:
                mode = path.stat().st_mode  # of a link's target: links to regular files are allowed
            except FileNotFoundError:
                raise OSError(f"{path} is a link to nothing") from None
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(f"{path} is no regular file")
            if path.name in DESCRIPTIONS:
                _check_description(path.resolve())  # `read_json` refuses links


def _check_description(path: Path) -> None:
    """Check the classes and the file names in a description.

    Raises:
      UnsafeFolder: the description is damaged, or names a class that TFDS does not define or a file elsewhere.
    """
    try:
        value = read_json(path)
        for node in _nodes(value):
            for key in CLASS_KEYS:
                name = node.get(key)
                if isinstance(name, str) and name not in feature_classes():
                    raise UnsafeFolder(
                        f"{path} names the class {name!r}, which is not one of TFDS's own"
                    )
            # a template of file names, which TFDS joins to the folder
            template = node.get("filepathTemplate", node.get("filepath_template", ""))
            if not isinstance(template, str) or {*template} & {"/", "\\", "\0"}:
                raise UnsafeFolder(f"{path} names files outside its folder: {template!r}")
    except UnsafeFolder:  # a ValueError too, but already complete
        raise
    except RecursionError:
        raise UnsafeFolder(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise UnsafeFolder(str(error)) from None


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value, including those in strings that contain JSON."""
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)
    if isinstance(value, dict):
        yield value
        for key, item in value.items():
            yield from _nodes(_parsed(item) if key in JSON_KEYS else item)


def _parsed(value: object) -> object:
    """Return the value of a string that contains JSON; other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError:
        return value
