"""Data sets and batches: every epoch a permutation, every resume the same stream, every mistake a line."""

import importlib
import itertools
import os
import re
import socket
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_tfds

from vdm_jax.data import (
    DATASETS,
    Dataset,
    Split,
    array_dataset,
    batch_indices,
    eval_batches,
    fingerprint,
    level_counts,
    load_dataset,
    train_batches,
)
from vdm_jax.data import tfds as tfds_reader
from vdm_jax.data.statistics import sample_places

SIZES = [  # size of the split, batch size, processes
    (1, 1, 1),
    (7, 3, 1),
    (7, 7, 7),
    (10, 4, 2),
    (100, 49, 7),
    (101, 32, 4),
    (5, 12, 3),  # one batch over several epochs
]
TFDS_ROWS = [name for name in DATASETS if name not in ("digits", "tfds")]
NETWORK_CALLS: list[object] = []


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail a test that looks a host up or connects, even where the failure is swallowed."""

    def refuse(*args, **kwargs):
        NETWORK_CALLS.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    NETWORK_CALLS.clear()
    yield
    assert not NETWORK_CALLS


def numbered(size: int, name: str = "train") -> Split:
    """A split whose image i holds the number i, in base 100 over two pixels."""
    images = np.stack(np.divmod(np.arange(size), 100), axis=-1).astype(np.uint8)
    return Split(images.reshape(size, 2, 1), name)


def numbers(x: np.ndarray) -> np.ndarray:
    return x[..., 0, 0].astype(int) * 100 + x[..., 1, 0]


def joined(batches) -> list[np.ndarray]:
    """x, index, phase of a run, with the steps on the first axis."""
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def assert_same(run, other):
    for a, b in zip(run, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- batches


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
    """Images that are read by index, and by which threads."""

    def __init__(self, images):
        self.images, self.threads = images, set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        return self.images[index]


@pytest.mark.parametrize(("prefetch", "ahead"), [(None, True), (2, True), (0, False)])
def test_what_is_read_from_disk_is_read_ahead(prefetch, ahead):
    split = Split(OnDisk(numbered(30).images), "train")
    settings = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 3, "prefetch": prefetch}
    found = joined(train_batches(split, **settings))
    assert_same(found, joined(train_batches(numbered(30), **settings)))
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


def test_an_epoch_is_shuffled_once_for_each_of_several_seeds(monkeypatch):
    shuffled, make = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: shuffled.append(key) or make(key))
    split = Split(np.zeros((12, 1), np.uint8), "train")
    settings = {"batch_size": 5, "start_step": 0, "stop_step": 4, "prefetch": 0}
    for _ in zip(*(train_batches(split, seed=seed, **settings) for seed in range(3)), strict=True):
        pass
    assert sorted(shuffled) == [(seed, epoch) for seed in range(3) for epoch in range(2)]


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("chunk_values", [1, 50, 2**22])
@pytest.mark.parametrize(
    ("shape", "levels"), [((3, 2, 1), 5), ((1,), 2), ((2, 2, 3), 256), ((4,), 17)]
)
def test_level_counts(monkeypatch, shape, levels, chunk_values):
    monkeypatch.setattr("vdm_jax.data.statistics.CHUNK_VALUES", chunk_values)
    rng = np.random.default_rng(0)
    images = rng.integers(0, levels, (23, *shape), dtype=np.uint8)
    for limit in (1, 20, 23, 50_000):
        expected = np.zeros((*shape, levels), np.int64)
        for image in images[sample_places(23, limit)]:
            for place in np.ndindex(shape):
                expected[(*place, image[place])] += 1
        counts = level_counts(images, levels, limit=limit)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected)
        in_all = level_counts(images, levels, limit=limit, per_position=False)
        np.testing.assert_array_equal(in_all, expected.reshape(-1, levels).sum(0))


def test_a_part_of_a_split_is_a_sample_in_every_order():
    orders = {
        "sorted": np.repeat(np.arange(4), 1000),
        "periodic": np.tile(np.arange(4), 1000),
        "slowly periodic": np.tile(np.repeat(np.arange(4), 5), 200),
    }
    for name, order in orders.items():
        images = order[:3991, None].astype(np.uint8)  # of which 400 are exactly 10 apart
        counts = level_counts(images, 4, limit=400)
        # 5 standard deviations of the hypergeometric law
        assert counts.sum() == 400 and np.all(np.abs(counts - 100) < 5 * np.sqrt(67.5)), name


def test_sample_places():
    for size, limit in ((1, 1), (7, 7), (5, 9), (60_000, 50_000), (10**9, 10)):
        places = sample_places(size, limit)
        assert places.dtype == np.int64 and len(places) == min(size, limit)
        assert places[0] >= 0 and places[-1] < size and np.all(np.diff(places) > 0)
        np.testing.assert_array_equal(places, sample_places(size, limit))
    assert not np.array_equal(sample_places(100, 10), sample_places(100, 10, seed=1))


@pytest.mark.parametrize(
    ("images", "limit", "message"),
    [
        (np.full((3, 2), 5, np.uint8), 9, r"values in \[5, 5\], expected \[0, 4\]"),
        (np.full((3, 2), -1), 9, r"values in \[-1, -1\]"),
        (np.zeros((0, 2), np.uint8), 9, "no examples"),
        (np.zeros((3, 2), np.uint8), 0, "no examples"),
    ],
)
def test_level_counts_refuses(images, limit, message):
    with pytest.raises(ValueError, match=message):
        level_counts(images, 5, limit=limit)


# ---------------------------------------------------------------- fingerprint


MODULE = importlib.import_module("vdm_jax.data.fingerprint")  # the name is the function's, too


class Decoded:
    """Images that are decoded on access."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def of(train, test, levels=4):
    return Dataset("name", "1", train.shape[1:], levels, Split(train, "train"), Split(test, "test"))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fingerprint_is_of_every_value_of_both_splits(dtype, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", 7)
    rng = np.random.default_rng(0)
    parts = {
        "train": rng.integers(0, 4, (9, 2, 3)).astype(dtype),
        "test": rng.integers(0, 4, (5, 2, 3)).astype(dtype),
    }
    prints = {fingerprint(of(**parts)): "the same"}
    for name, images in parts.items():
        for place in np.ndindex(images.shape):
            changed = images.copy()
            changed[place] = 3 - changed[place]
            prints[fingerprint(of(**parts | {name: changed}))] = f"{name} {place}"
        prints[fingerprint(of(**parts | {name: images[::-1]}))] = f"{name} reversed"
        prints[fingerprint(of(**parts | {name: images[:-1]}))] = f"{name} shortened"
    prints[fingerprint(of(**parts, levels=5))] = "levels"
    reshaped = {name: images.reshape(-1, 3, 2) for name, images in parts.items()}
    prints[fingerprint(of(**reshaped))] = "shape"
    moved = {
        "train": parts["train"][:-1],
        "test": np.concatenate([parts["train"][-1:], parts["test"]]),
    }
    prints[fingerprint(of(**moved))] = "another split"
    assert len(prints) == 1 + 84 + 4 + 3
    strided = {name: np.repeat(images, 2, -1)[..., ::2] for name, images in parts.items()}
    assert prints[fingerprint(of(**strided)._replace(name="other", version="2"))] == "the same"
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in prints)


@pytest.mark.parametrize("large", ["an array", "decoded"])
def test_fingerprint_of_large_splits_reads_a_sample(large, monkeypatch):
    monkeypatch.setattr(MODULE, "SAMPLED", 10)
    monkeypatch.setattr(MODULE, "WHOLE_BYTES", 0 if large == "an array" else 2**30)
    images = np.arange(200, dtype=np.uint8)[:, None]

    def digits(x):
        x = x if large == "an array" else Decoded(x)
        test = Split(images[:3], "test")
        return fingerprint(Dataset("name", "1", (1,), 256, Split(x, "train"), test))

    places = sample_places(200, 10)
    unseen = images.copy()
    unseen[np.setdiff1d(np.arange(200), places)] = 255
    seen = images.copy()
    seen[places[3]] = 255
    assert digits(images) == digits(unseen)
    assert len({digits(x) for x in (images, seen, images[::-1], images[:-1])}) == 4


# ---------------------------------------------------------------- data sets


def assert_sound(dataset: Dataset):
    """What every data set promises."""
    assert dataset.version and dataset.train.name != dataset.test.name
    for images, _ in (dataset.train, dataset.test):
        some = images[np.array([len(images) - 1, 0, 0])]
        assert some.shape == (3, *dataset.shape) and some.dtype == np.uint8
        assert some.max() < dataset.levels
        np.testing.assert_array_equal(some[1], some[2])
        np.testing.assert_array_equal(images[np.array([0])], some[1:2])
        assert images[np.arange(0)].shape == (0, *dataset.shape)


def test_digits():
    dataset = load_dataset("digits")
    assert_sound(dataset)
    assert dataset.name == "digits" and dataset.version.startswith("scikit-learn ")
    assert (len(dataset.train.images), len(dataset.test.images)) == (1500, 297)
    assert (dataset.shape, dataset.levels) == ((8, 8, 1), 17)
    assert "1500" in dataset.train.name and "1500" in dataset.test.name
    train, test = np.asarray(dataset.train.images), np.asarray(dataset.test.images)
    assert train.min() == 0 and train.max() == 16
    # all 1797 images differ, so that disjoint splits share no image
    assert len({image.tobytes() for image in (*train, *test)}) == 1797
    again = load_dataset("digits", train_split="train", test_split=dataset.test.name)
    np.testing.assert_array_equal(again.train.images, train)  # pyright: ignore


@pytest.mark.parametrize("key", ["train_split", "test_split"])
@pytest.mark.parametrize("split", ["train[:10]", "", "validation"])
def test_digits_has_its_own_splits_only(key, split):
    message = rf"^{key}: 'digits' has .*{re.escape(repr(split))}$"
    with pytest.raises(ValueError, match=message):
        load_dataset("digits", **{key: split})


BAD_ARRAYS = [
    ({"train": np.zeros((3, 2), np.float32)}, TypeError, "type float32, expected integers"),
    ({"test": np.zeros((3, 2), bool)}, TypeError, "'test' has values of type bool"),
    ({"train": np.full((3, 2), 5)}, ValueError, r"'train' has values in \[5, 5\], expected \[0, 4"),
    ({"test": np.full((3, 2), -1)}, ValueError, r"values in \[-1, -1\]"),
    ({"train": np.zeros((3, 4), int)}, ValueError, r"train shape \(4,\) but test shape \(2,\)"),
    ({"train": np.zeros((0, 2), int)}, ValueError, r"shape \(0, 2\)"),
    ({"train": np.zeros(3, int)}, ValueError, r"shape \(3,\)"),
    ({"levels": 257}, ValueError, "found 257"),
    ({"levels": 1}, ValueError, "found 1"),
]


def own_arrays(*, levels: int = 5, **arrays) -> Dataset:
    images = {"train": np.ones((3, 2), np.int64), "test": np.ones((4, 2), np.int64), **arrays}
    train, test = (Split(images[name], name) for name in ("train", "test"))
    return array_dataset("mine", version="1", levels=levels, train=train, test=test)


def test_array_dataset():
    assert_sound(own_arrays())


@pytest.mark.parametrize(("change", "error", "message"), BAD_ARRAYS)
def test_array_dataset_refuses(change, error, message):
    with pytest.raises(error, match=rf"^.*'mine'.*{message}"):
        own_arrays(**change)


# ---------------------------------------------------------------- TFDS


@pytest.fixture
def mnist_dir():
    root = os.environ.get("TFDS_DATA_DIR", "")
    if not os.path.isdir(os.path.join(root, "mnist")):
        pytest.skip("no prepared MNIST in the folder that TFDS_DATA_DIR names")
    return root


@pytest.mark.parametrize("limit", [0, 2**30])
def test_tfds_in_memory_and_on_access(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(tfds_reader, "MAX_BYTES_IN_MEMORY", limit)
    monkeypatch.setattr(tfds_reader, "DECODE_CHUNK", 10)
    written = write_tfds(tmp_path)
    dataset = load_dataset("tiny", data_dir=tmp_path)
    assert_sound(dataset)
    assert isinstance(dataset.train.images, np.ndarray) == bool(limit)
    assert (dataset.shape, dataset.levels, dataset.version) == ((4, 4, 3), 256, "1.0.0")
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.images[np.arange(25)], written[split.name])
    settings = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 9, "stack": 2}
    run = joined(train_batches(dataset.train, **settings))
    same = joined(train_batches(Split(written["train"], "train"), **settings))
    assert_same(run, same)
    assert "tensorflow" not in sys.modules


def test_tfds_splits(tmp_path, monkeypatch):
    written = write_tfds(tmp_path, splits=("train", "validation"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = DATASETS["tfds"](dataset="tiny")
    assert (dataset.train.name, dataset.test.name) == ("train", "validation")
    dataset = load_dataset("tiny:1.0.0", train_split="train[:20]", test_split="train[20:]")
    assert (dataset.train.name, dataset.test.name) == ("train[:20]", "train[20:]")
    assert_sound(dataset)
    np.testing.assert_array_equal(dataset.train.images[np.arange(20)], written["train"][:20])
    np.testing.assert_array_equal(dataset.test.images[np.arange(5)], written["train"][20:])
    for split in ("tset", "train[:26]", "train[5:2]", "train[:0]", "train[x]", "train[", ""):
        with pytest.raises(ValueError, match=r"^test_split: .+tiny") as caught:
            load_dataset("tiny", test_split=split)
        assert "\n" not in str(caught.value)


def test_tfds_features(tmp_path):
    any_size = tfds.features.Image(shape=(None, None, 3))
    square = {s: np.full((4, 5, 5, 3), 7, np.uint8) for s in ("train", "test")}
    write_tfds(tmp_path, "undeclared", feature=any_size, images=square)
    dataset = load_dataset("undeclared", data_dir=tmp_path)
    assert_sound(dataset)
    assert dataset.shape == (5, 5, 3)

    tensor = tfds.features.Tensor(shape=(3, 2), dtype=np.uint8)
    rows = {s: np.arange(24, dtype=np.uint8).reshape(4, 3, 2) for s in ("train", "test")}
    write_tfds(tmp_path, "tensor", feature=tensor, images=rows)
    dataset = load_dataset("tensor", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train.images[np.arange(4)], rows["train"])

    mixed = {**square, "train": [*square["train"], np.zeros((6, 5, 3), np.uint8)]}
    write_tfds(tmp_path, "mixed", feature=any_size, images=mixed)
    floats = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    zeros = {s: np.zeros((4, 2), np.float32) for s in ("train", "test")}
    write_tfds(tmp_path, "floats", feature=floats, images=zeros)
    write_tfds(tmp_path, "unnamed", key="picture")
    shapes = {"train": np.zeros((4, 4, 4, 3), np.uint8), "test": np.zeros((4, 5, 5, 3), np.uint8)}
    write_tfds(tmp_path, "shapes", feature=any_size, images=shapes)
    for name, message in {
        "mixed": "'train' has images of several shapes",
        "floats": "needs a uint8 feature",
        "unnamed": 'needs a uint8 feature "image", found .*picture',
        "shapes": r"train shape \(4, 4, 3\), test shape \(5, 5, 3\)",
    }.items():
        with pytest.raises(ValueError, match=rf"^'{name}' .*{message}") as caught:
            load_dataset(name, data_dir=tmp_path)
        assert "\n" not in str(caught.value)


def test_tfds_damaged_files(tmp_path):
    write_tfds(tmp_path)
    (file,) = (tmp_path / "tiny" / "1.0.0").glob("*-train.*")
    content = file.read_bytes()
    file.write_bytes(content[:1000] + b"x" * 200 + content[1200:])
    with pytest.raises(OSError, match=r"^'tiny' 'train' cannot be read: .+"):
        load_dataset("tiny", data_dir=tmp_path)
    file.unlink()
    with pytest.raises(OSError, match=r"^'tiny' 'train' cannot be read: .+"):
        load_dataset("tiny", data_dir=tmp_path)


UNKNOWN = [
    ("diigts", "did you mean 'digits'"),
    ("cifar11", "did you mean 'cifar10'"),
    ("svhn_croped", "did you mean 'svhn_cropped'"),
    ("kaggle:cifar10", "unknown data set 'kaggle:cifar10'"),
    ("huggingface:mnist", "unknown data set"),
    ("../mnist", "unknown data set"),
    ("", "unknown data set ''; choices: digits, mnist,"),
    ("tfds", "stands for any TFDS data set"),
    ("downsampled_imagenet/33x33", "TFDS cannot load .*33x33"),
    ("mnist:9.9.9", "TFDS cannot load .*9.9.9.*3.0.1"),
]


@pytest.mark.parametrize(("name", "message"), UNKNOWN)
def test_unknown_names(tmp_path, name, message):
    with pytest.raises(ValueError, match=rf"^name: .*{message}") as caught:
        load_dataset(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*TFDS_ROWS, "downsampled_imagenet/32x32", "svhn_cropped"])
def test_unprepared_data_say_how_to_prepare_them(tmp_path, monkeypatch, name):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    for data_dir in (tmp_path, tmp_path / "absent"):
        message = rf"^data_dir: .*tfds\.builder\('{name}', data_dir='{data_dir}'"
        with pytest.raises(FileNotFoundError, match=message) as caught:
            load_dataset(name, data_dir=data_dir)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"^data_dir of TFDS_DATA_DIR: .*data_dir='{tmp_path}'"
    ):
        load_dataset(name)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/tensorflow_datasets"):
        load_dataset(name)


def test_data_dir_that_cannot_be_read(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match=r"^data_dir: cannot read"):
        load_dataset("mnist", data_dir=file)

    write_tfds(tmp_path)
    listdir = os.listdir
    for folder in (tmp_path, tmp_path / "tiny" / "1.0.0"):

        def refuse(path, folder=folder):  # for chmod would not stop a test run by root
            if os.fspath(path) == os.fspath(folder):
                raise PermissionError(13, "Permission denied", str(path))
            return listdir(path)

        monkeypatch.setattr(tfds_reader.os, "listdir", refuse)
        with pytest.raises(PermissionError, match=r"^data_dir: .*Permission denied"):
            load_dataset("tiny", data_dir=tmp_path)


def test_half_prepared_and_other_file_formats(tmp_path):
    write_tfds(tmp_path, file_format="tfrecord")
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"3\.0\.2' has no dataset_info\.json; prepare"):
        load_dataset("cifar10:3.0.2", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds tfrecord, .*file_format='array_record'"):
        load_dataset("tiny", data_dir=tmp_path)


def test_mnist(mnist_dir):
    dataset = load_dataset("mnist", train_split="train[:300]", test_split="test[:50]")
    assert_sound(dataset)
    assert (dataset.shape, dataset.levels, dataset.version) == ((28, 28, 1), 256, "3.0.1")
    assert (len(dataset.train.images), len(dataset.test.images)) == (300, 50)
    counts = level_counts(dataset.train.images, 256)
    assert counts[0, 0, 0, 0] == 300  # corners are black
    assert np.all(counts.sum(-1) == 300)
    with pytest.raises(FileNotFoundError, match="cifar10"):
        load_dataset("cifar10", data_dir=mnist_dir)
