"""Batches as a pure function of (seed, step): resuming at any step costs nothing and changes nothing.

Examples are counted through the whole run: position j of step i is example i·B + j, and epoch e walks
through its own permutation of the split. Batches run across the ends of epochs, so that every example
is seen exactly once per epoch and no batch is short. Processes take blocks of the same global batch.
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
    """Say which examples a process takes at a step: int64 [batch_size // process_count] in [0, size).

    Raises:
      ValueError: a negative step or seed, an empty split, or a batch that the processes cannot share.

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
    """Yield the batches of steps [start_step, stop_step) as NumPy arrays, `stack` steps an item.

    An item is x [stack, b, *d], index and phase [stack, b]; the last may have fewer steps.

    Args:
      batch_size: B of the global batch; this process takes its block of b = B // process_count.
      prefetch: items prepared ahead, each by a thread of its own; 0 prepares them when asked. None is 2, but 0
        for images in an array, which are gathered sooner than a thread hands them over; the device is kept one
        dispatch ahead, so that it does not wait for that either.

    Raises:
      ValueError: at the call: a split smaller than one batch, or settings out of range.

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
    index = _block(batch_size, process_index, process_count).astype(np.int32)
    if size < batch_size:
        raise ValueError(f"{split.name!r} has {size} examples, less than a batch of {batch_size}")
    block, order = index.astype(np.int64), _orders(seed, size)

    def read(first: int) -> Batch:
        steps = range(first, min(first + stack, stop_step))
        indices = np.stack([_taken(i * batch_size + block, order, size) for i in steps])
        x = split.images[indices.ravel()]
        places = np.broadcast_to(index, indices.shape).copy()
        return Batch(x.reshape(*indices.shape, *x.shape[1:]), places, _phase(places, batch_size))

    firsts = grain.MapDataset.range(start_step, stop_step, stack)
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return _closing(firsts.map(read).to_iter_dataset(options))


def eval_batches(
    split: Split, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield the whole split in order, each example once, with a mask: (Batch [b, *d], bool [B]).

    The last batch is padded with zeros; the mask is False there. `index` is the place in the split,
    `phase` is (index mod B) / B. The mask is of the global batch, of which this process has its block.

    Raises:
      ValueError: at the call: a batch size below 1, or one that the processes cannot share.

    Examples:
      >>> from vdm_jax.data import Split, eval_batches
      >>> split = Split(np.zeros((3, 2), np.uint8), "test")
      >>> [mask.tolist() for batch, mask in eval_batches(split, batch_size=2)]
      [[True, True], [True, False]]
    """
    block = _block(batch_size, process_index, process_count)
    size = len(split.images)
    check_array(split.images, split.name)

    def batches() -> Iterator[tuple[Batch, np.ndarray]]:
        for start in range(0, size, batch_size):
            index = (start + block).astype(np.int32)
            images = split.images[index[index < size]]
            padding = np.zeros((len(block) - len(images), *images.shape[1:]), images.dtype)
            batch = Batch(np.concatenate([images, padding]), index, _phase(block, batch_size))
            yield batch, np.arange(start, start + batch_size) < size

    return batches()


def _block(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Positions of a process's examples in the global batch."""
    _at_least(1, batch_size=batch_size)
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    local, rest = divmod(batch_size, process_count)
    if rest:
        raise ValueError(f"batch size {batch_size} is not a multiple of {process_count} processes")
    return np.arange(process_index * local, (process_index + 1) * local, dtype=np.int64)


def _phase(index: np.ndarray, batch_size: int) -> np.ndarray:
    return index.astype(np.float32) / np.float32(batch_size)


def _orders(seed: int, size: int) -> Callable[[int], np.ndarray]:
    """The permutation of an epoch; the last two are kept, for a batch may lie across the end of one."""

    @lru_cache(maxsize=2)
    def of(epoch: int) -> np.ndarray:
        order = np.random.default_rng((seed, epoch)).permutation(size)
        order.flags.writeable = False  # shared between batches
        return order

    return of


def _taken(examples: np.ndarray, order: Callable[[int], np.ndarray], size: int) -> np.ndarray:
    """Places in the split of examples that are counted through the whole run."""
    epochs, positions = np.divmod(examples, size)
    indices = np.empty_like(positions)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = order(epoch)[positions[here]]
    return indices


def _at_least(low: int, **values: int) -> None:
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{name} is {value}, expected at least {low}")


def _closing(dataset: grain.IterDataset) -> Iterator[Batch]:
    """Iterate, and stop the prefetch threads when the reader leaves early."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
