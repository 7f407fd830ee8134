"""Batches as a pure function of (seed, step): resuming at any step costs nothing and changes nothing.

Examples are numbered through the whole run: position j of step i is number i·B + j. Each epoch has its own
permutation of the split. Batches cross the ends of epochs, so that every example is seen exactly once per epoch
and no batch is short. Processes take blocks of the same global batch.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import grain
import numpy as np

from vdm_jax.checks import check_array
from vdm_jax.data.datasets import Split
from vdm_jax.typing import Batch


def batch_indices(
    step: int,
    *,
    size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> np.ndarray:
    """Return the indices of the examples of a process at a step: int64 [batch_size // process_count].

    Args:
      step: the training step.
      size: number of examples of the split; the indices are in [0, size).
      batch_size: B of the global batch.
      seed: seed of the permutations.
      process_index, process_count: this process takes block `process_index` of `process_count` blocks.

    Raises:
      ValueError: a negative step or seed, an empty split, or a batch that the processes cannot share equally.

    Examples:
      >>> from vdm_jax.data import batch_indices
      >>> epoch = [batch_indices(step, size=6, batch_size=3, seed=0) for step in range(2)]
      >>> sorted(np.concatenate(epoch).tolist())
      [0, 1, 2, 3, 4, 5]
    """
    _at_least(0, step=step, seed=seed)
    _at_least(1, size=size)
    block = _block(batch_size, process_index, process_count)
    return _taken(step * batch_size + block, _orders(seed, size), size)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    stack: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of steps [start_step, stop_step) as NumPy arrays, `stack` steps per item.

    An item is x [stack, b, *d], index and phase [stack, b]; the last may have fewer steps.

    Args:
      split: the training split.
      batch_size: B of the global batch; this process takes its block of b = B // process_count.
      seed: seed of the permutations.
      start_step, stop_step: the range of steps.
      stack: number of steps per item.
      process_index, process_count: see `batch_indices`.
      prefetch: number of items prepared ahead, each by one thread; 0 prepares them on demand. By default 2, but
        0 for images in an array: gathering them is faster than passing them between threads, and the training
        loop keeps the device one dispatch ahead, so that it does not wait for the gather.

    Raises:
      ValueError: raised at the call, for a split smaller than one batch or arguments out of range.

    Examples:
      >>> from vdm_jax.data import Split, train_batches
      >>> split = Split(np.zeros((6, 2), np.uint8), "train")
      >>> batches = train_batches(split, batch_size=4, seed=0, start_step=0, stop_step=3, prefetch=0)
      >>> [batch.x.shape for batch in batches]
      [(1, 4, 2), (1, 4, 2), (1, 4, 2)]
    """
    size = len(split.images)
    check_array(split.images, split.name)
    if prefetch is None:
        prefetch = 0 if isinstance(split.images, np.ndarray) else 2
    _at_least(0, seed=seed, start_step=start_step, prefetch=prefetch)
    _at_least(start_step, stop_step=stop_step)
    _at_least(1, stack=stack)
    block = _block(batch_size, process_index, process_count)
    if size < batch_size:
        raise ValueError(f"{split.name!r} has {size} examples, less than a batch of {batch_size}")
    permutation = _orders(seed, size)

    def read(first_step: int) -> Batch:
        steps = range(first_step, min(first_step + stack, stop_step))
        rows = [_taken(step * batch_size + block, permutation, size) for step in steps]
        indices = np.stack(rows)  # in the split, [stack, b]
        x = split.images[indices.ravel()]
        # a copy, because broadcast arrays are read-only views
        index = np.broadcast_to(block.astype(np.int32), indices.shape).copy()
        return Batch(x.reshape(*indices.shape, *x.shape[1:]), index, _phase(index, batch_size))

    first_steps = grain.MapDataset.range(start_step, stop_step, stack)
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return _closing(first_steps.map(read).to_iter_dataset(options))


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    first: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield a split in order, each example once, with a mask: (Batch [b, *d], bool [B]).

    The batches begin with example `first`; the last one is padded with zeros, where the mask is False. `index`
    is the index in the split, `phase` is (index mod B) / B. The mask is that of the global batch, of which this
    process has its block.

    Raises:
      ValueError: raised at the call, for a batch size below 1 or one that the processes cannot share equally.

    Examples:
      >>> from vdm_jax.data import Split, eval_batches
      >>> split = Split(np.zeros((3, 2), np.uint8), "test")
      >>> [mask.tolist() for batch, mask in eval_batches(split, batch_size=2)]
      [[True, True], [True, False]]
    """
    block = _block(batch_size, process_index, process_count)
    size = len(split.images)
    check_array(split.images, split.name)

    # an inner generator, so that the checks above run at the call and not at the first batch
    def batches() -> Iterator[tuple[Batch, np.ndarray]]:
        for start in range(first, size, batch_size):
            index = (start + block).astype(np.int32)
            images = split.images[index[index < size]]
            padding = np.zeros((len(block) - len(images), *images.shape[1:]), images.dtype)
            batch = Batch(np.concatenate([images, padding]), index, _phase(block, batch_size))
            yield batch, np.arange(start, start + batch_size) < size

    return batches()


def _block(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Return the positions of a process's examples in the global batch."""
    _at_least(1, batch_size=batch_size)
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    local, rest = divmod(batch_size, process_count)
    if rest:
        raise ValueError(f"batch size {batch_size} is not a multiple of {process_count} processes")
    return np.arange(process_index * local, (process_index + 1) * local, dtype=np.int64)


def _phase(index: np.ndarray, batch_size: int) -> np.ndarray:
    """Return positions in the global batch as fractions of its size, float32."""
    return index.astype(np.float32) / np.float32(batch_size)


def _orders(seed: int, size: int) -> Callable[[int], np.ndarray]:
    """Return the function from an epoch to its permutation of the split."""

    @lru_cache(maxsize=2)  # a batch may cross the end of an epoch
    def permutation(epoch: int) -> np.ndarray:
        order = np.random.default_rng((seed, epoch)).permutation(size)
        order.flags.writeable = False  # shared between batches
        return order

    return permutation


def _taken(numbers: np.ndarray, permutation: Callable[[int], np.ndarray], size: int) -> np.ndarray:
    """Return the indices in the split of examples that are numbered through the whole run, ascending."""
    epochs, positions = np.divmod(numbers, size)
    indices = np.empty_like(positions)
    for epoch in range(epochs[0], epochs[-1] + 1):
        in_epoch = epochs == epoch
        indices[in_epoch] = permutation(epoch)[positions[in_epoch]]
    return indices


def _at_least(low: int, **values: int) -> None:
    """Check that named values are at least `low`."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{name} is {value}, expected at least {low}")


def _closing(dataset: grain.IterDataset) -> Iterator[Batch]:
    """Iterate over a data set, and stop its prefetch threads when the caller stops early."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
