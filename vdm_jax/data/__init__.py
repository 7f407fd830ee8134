"""Data sets of K-level images, and batches of them as a pure function of (seed, step)."""

from vdm_jax.data.adapters import as_dataset
from vdm_jax.data.datasets import Dataset, Images, Split, array_dataset
from vdm_jax.data.digits import digits
from vdm_jax.data.fingerprint import fingerprint
from vdm_jax.data.loading import DATASETS, cifar10, fashion_mnist, load_dataset, mnist
from vdm_jax.data.pipeline import batch_indices, eval_batches, train_batches
from vdm_jax.data.statistics import level_counts
from vdm_jax.data.tfds import tfds_images

__all__ = [
    "DATASETS",
    "Dataset",
    "Images",
    "Split",
    "array_dataset",
    "as_dataset",
    "batch_indices",
    "cifar10",
    "digits",
    "eval_batches",
    "fashion_mnist",
    "fingerprint",
    "level_counts",
    "load_dataset",
    "mnist",
    "tfds_images",
    "train_batches",
]
