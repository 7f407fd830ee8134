"""Counts of levels, over a whole split or a random sample of it."""

import numpy as np
import pytest

from vdm_jax.data import level_counts
from vdm_jax.data.statistics import sample_places


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


def test_part_of_a_split_is_a_random_sample_in_any_order():
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
