"""Checks and numbered examples shared by the tests of data sets and batches."""

import socket

import numpy as np
import pytest

from vdm_jax.data import Dataset, Split

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
    """Return a split whose image i holds the number i, in base 100 over two pixels."""
    images = np.stack(np.divmod(np.arange(size), 100), axis=-1).astype(np.uint8)
    return Split(images.reshape(size, 2, 1), name)


def numbers(x: np.ndarray) -> np.ndarray:
    return x[..., 0, 0].astype(int) * 100 + x[..., 1, 0]


def joined(batches) -> list[np.ndarray]:
    """Concatenate the batches of a run: x, index and phase, with the steps on the first axis."""
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def assert_same(run, other):
    for a, b in zip(run, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_sound(dataset: Dataset):
    """Check the promises of every data set."""
    assert dataset.version and dataset.train.name != dataset.test.name
    for images, _ in (dataset.train, dataset.test):
        some = images[np.array([len(images) - 1, 0, 0])]
        assert some.shape == (3, *dataset.shape) and some.dtype == np.uint8
        assert some.max() < dataset.levels
        np.testing.assert_array_equal(some[1], some[2])
        np.testing.assert_array_equal(images[np.array([0])], some[1:2])
        assert images[np.arange(0)].shape == (0, *dataset.shape)
