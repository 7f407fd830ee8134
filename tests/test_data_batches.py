"""Batches: every epoch is a permutation, and a resumed run reads the same stream."""

import itertools
import threading

import numpy as np
import pytest
from data_checks import assert_same, joined, numbered, numbers

from vdm_jax.data import Split, batch_indices, eval_batches, train_batches

SIZES = [  # size of the split, batch size, processes
    (1, 1, 1),
    (7, 3, 1),
    (7, 7, 7),
    (10, 4, 2),
    (100, 49, 7),
    (101, 32, 4),
    (5, 12, 3),  # one batch over several epochs
]


@pytest.mark.parametrize(("size", "batch_size", "processes"), SIZES)
def test_epochs_are_permutations(size, batch_size, processes):
    epochs = 4
    steps = -(-epochs * size // batch_size)
    settings = {"size": size, "batch_size": batch_size, "seed": 3}
    batches = [batch_indices(i, **settings) for i in range(steps)]
    stream = np.concatenate(batches)[: epochs * size].reshape(epochs, size)
    np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(size), (epochs, 1)))
    if size > 5:
        assert len({tuple(epoch) for epoch in stream}) == epochs
        other = [batch_indices(i, **{**settings, "seed": 4}) for i in range(steps)]
        assert np.any(np.concatenate(other) != np.concatenate(batches))
    for i in reversed(range(steps)):  # a function of (seed, step), not of the calls before
        np.testing.assert_array_equal(batch_indices(i, **settings), batches[i])
        blocks = [
            batch_indices(i, **settings, process_index=p, process_count=processes)
            for p in range(processes)
        ]
        assert all(b.dtype == np.int64 and len(b) == batch_size // processes for b in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), batches[i])


def test_batch_indices_far_into_a_run():
    step = 10**12
    indices = batch_indices(step, size=1000, batch_size=1000, seed=0)
    order = np.random.default_rng((0, step)).permutation(1000)
    np.testing.assert_array_equal(indices, order)


@pytest.mark.parametrize("prefetch", [None, 0, 1, 3])
@pytest.mark.parametrize("stack", [1, 4, 50])
def test_train_batches(stack, prefetch):
    split, size, batch_size, stop = numbered(110), 110, 49, 11
    settings = {"batch_size": batch_size, "seed": 1, "prefetch": prefetch}
    items = list(train_batches(split, **settings, start_step=0, stop_step=stop, stack=stack))
    assert [len(item.x) for item in items[:-1]] == [stack] * (len(items) - 1)
    assert len(items[-1].x) == (stop % stack or stack)
    x, index, phase = joined(items)
    assert x.shape == (stop, batch_size, 2, 1) and x.dtype == np.uint8
    expected = [batch_indices(i, size=size, batch_size=batch_size, seed=1) for i in range(stop)]
    np.testing.assert_array_equal(numbers(x), expected)
    assert index.dtype == np.int32 and phase.dtype == np.float32
    np.testing.assert_array_equal(index, np.tile(np.arange(batch_size), (stop, 1)))
    np.testing.assert_array_equal(phase, (index / batch_size).astype(np.float32))
    assert phase.max() < 1


@pytest.mark.parametrize("stack", [1, 3])
def test_resume_at_any_step(stack):
    settings = {"split": numbered(20), "batch_size": 8, "seed": 5, "stack": stack}
    unbroken = joined(train_batches(**settings, start_step=0, stop_step=9))
    for start in range(9):
        resumed = joined(train_batches(**settings, start_step=start, stop_step=9))
        assert_same(resumed, [part[start:] for part in unbroken])
    assert list(train_batches(**settings, start_step=9, stop_step=9)) == []


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_share_the_global_batch(processes):
    settings = {"split": numbered(30), "batch_size": 8, "seed": 5, "stop_step": 9, "stack": 2}
    whole = joined(train_batches(**settings, start_step=0))
    parts = [
        joined(train_batches(**settings, start_step=0, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    assert all(part[0].shape[1] == 8 // processes for part in parts)
    assert_same([np.concatenate(blocks, axis=1) for blocks in zip(*parts, strict=True)], whole)


class OnDisk:
    """Images on disk, which record the threads that read them."""

    def __init__(self, images):
        self.images, self.threads = images, set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        return self.images[index]


@pytest.mark.parametrize(("prefetch", "ahead"), [(None, True), (2, True), (0, False)])
def test_images_on_disk_are_read_ahead(prefetch, ahead):
    split = Split(OnDisk(numbered(30).images), "train")
    settings = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 3, "prefetch": prefetch}
    batches = joined(train_batches(split, **settings))
    assert_same(batches, joined(train_batches(numbered(30), **settings)))
    assert (threading.current_thread().name not in split.images.threads) == ahead


@pytest.mark.parametrize("prefetch", [None, 2])
def test_reader_may_leave_early(prefetch):
    split = numbered(30)
    settings = {"batch_size": 8, "seed": 0, "start_step": 0, "prefetch": prefetch}
    batches = train_batches(split, **settings, stop_step=10**9)
    first = [numbers(batch.x[0]) for batch in itertools.islice(batches, 3)]
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    again = train_batches(split, **settings, stop_step=3)
    np.testing.assert_array_equal(first, [numbers(batch.x[0]) for batch in again])


BAD_TRAIN = [
    ({"batch_size": 31}, r"'train\[:30\]' has 30 examples, less than a batch of 31"),
    ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    ({"batch_size": -4}, "batch_size is -4"),
    ({"process_count": 3}, "batch size 8 is not a multiple of 3 processes"),
    ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
    ({"process_index": -1}, "process -1 of 1"),
    ({"process_count": 0}, "process 0 of 0"),
    ({"start_step": -1}, "start_step is -1"),
    ({"start_step": 6}, "stop_step is 5, expected at least 6"),
    ({"stack": 0}, "stack is 0"),
    ({"prefetch": -1}, "prefetch is -1"),
    ({"seed": -1}, "seed is -1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TRAIN)
def test_train_batches_refuses_at_the_call(change, message):
    settings = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 5, **change}
    with pytest.raises(ValueError, match=message):
        train_batches(numbered(30, "train[:30]"), **settings)


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"size": 0}, {"batch_size": 0}, {"seed": -1}, {"process_count": 3}]
)
def test_batch_indices_refuses(change):
    settings = {"step": 0, "size": 9, "batch_size": 8, "seed": 0, **change}
    with pytest.raises(ValueError, match=r"expected at least|is not a multiple"):
        batch_indices(**settings)


@pytest.mark.parametrize("size", [1, 7, 49, 98, 103])
@pytest.mark.parametrize("batch_size", [1, 7, 49, 200])
def test_eval_covers_each_example_once(size, batch_size):
    seen = []
    for batch, mask in eval_batches(numbered(size), batch_size=batch_size):
        assert batch.x.shape == (batch_size, 2, 1) and batch.x.dtype == np.uint8
        assert mask.shape == (batch_size,) and mask.dtype == bool and mask[0]
        assert batch.index.dtype == np.int32 and batch.phase.dtype == np.float32
        assert not batch.x[~mask].any()
        np.testing.assert_array_equal(numbers(batch.x)[mask], batch.index[mask])
        phase = (batch.index % batch_size / batch_size).astype(np.float32)
        np.testing.assert_array_equal(batch.phase, phase)
        seen.extend(batch.index[mask])
    assert seen == list(range(size))


def test_eval_batches_refuses_at_the_call():
    with pytest.raises(ValueError, match="batch_size is 0"):
        eval_batches(numbered(3), batch_size=0)


def test_each_seed_shuffles_an_epoch_once(monkeypatch):
    shuffled, make = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: shuffled.append(key) or make(key))
    split = Split(np.zeros((12, 1), np.uint8), "train")
    settings = {"batch_size": 5, "start_step": 0, "stop_step": 4, "prefetch": 0}
    for _ in zip(*(train_batches(split, seed=seed, **settings) for seed in range(3)), strict=True):
        pass
    assert sorted(shuffled) == [(seed, epoch) for seed in range(3) for epoch in range(2)]
