"""Data sets of K-level images, and batches of them as a pure function of (seed, step)."""

from vdm_jax.data.datasets import (
    DATASETS,
    Dataset,
    Images,
    Split,
    array_dataset,
    load_dataset,
)
from vdm_jax.data.fingerprint import fingerprint
from vdm_jax.data.own import as_dataset
from vdm_jax.data.pipeline import batch_indices, eval_batches, train_batches
from vdm_jax.data.statistics import level_counts

__all__ = [
    "DATASETS",
    "Dataset",
    "Images",
    "Split",
    "array_dataset",
    "as_dataset",
    "batch_indices",
    "eval_batches",
    "fingerprint",
    "level_counts",
    "load_dataset",
    "train_batches",
]
