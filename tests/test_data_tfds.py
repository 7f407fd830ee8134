"""Data sets that TFDS prepared: reading, splits, and one line for every mistake."""

import os
import sys

import data_checks
import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_checks import assert_same, assert_sound, joined
from prepared import write_tfds

from vdm_jax.data import DATASETS, Split, level_counts, load_dataset, train_batches
from vdm_jax.data import tfds as tfds_reader

no_network = data_checks.no_network  # a fixture of every test below
TFDS_ROWS = [name for name in DATASETS if name not in ("digits", "tfds")]


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
