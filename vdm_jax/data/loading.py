"""The table of data sets, and the loader that also takes any image data set by its TFDS name."""

import os
from collections.abc import Callable
from functools import partial

from vdm_jax.data.datasets import Dataset
from vdm_jax.data.digits import digits
from vdm_jax.data.tfds import tfds_images


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
) -> Dataset:
    """Load a data set of `DATASETS`, or any image data set by its TFDS name (`name[/config][:version]`).

    Args:
      name: for example "digits", "cifar10" or "downsampled_imagenet/32x32".
      data_dir: folder of the prepared TFDS data sets; by default TFDS_DATA_DIR, else the default of TFDS.
      train_split, test_split: splits in TFDS's syntax, such as "train[:50000]"; None for the defaults.

    Raises:
      ValueError: an unknown name or split, or images that are not uint8 of one shape.
      FileNotFoundError, PermissionError, OSError: the prepared data are missing or unreadable.
    """
    if name == "tfds":
        raise ValueError(
            "name: 'tfds' stands for any TFDS data set: write that one's name instead, "
            "such as 'svhn_cropped'"
        )
    tfds_loader = partial(
        tfds_images, dataset=name, others=[row for row in DATASETS if row != "tfds"]
    )
    load = DATASETS.get(name, tfds_loader)
    return load(data_dir=data_dir, train_split=train_split, test_split=test_split)


mnist = partial(tfds_images, dataset="mnist")
fashion_mnist = partial(tfds_images, dataset="fashion_mnist")
cifar10 = partial(tfds_images, dataset="cifar10")

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "tfds": tfds_images,
}
"""Loaders by name: (data_dir=..., train_split=..., test_split=...) -> `Dataset`; `tfds` loads any TFDS name."""
