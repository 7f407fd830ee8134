"""What a model knows of its training split: fitted on that split alone, kept without pickle."""

import numpy as np
import pytest

from vdm_jax.data import level_counts
from vdm_jax.likelihoods import level_values
from vdm_jax.models import Statistics, statistics
from vdm_jax.models.statistics import fit_statistics, load_statistics, save_statistics

LEVELS = 3
IMAGES = np.asarray([[0, 0], [0, 1], [0, 2], [1, 2]], np.uint8)  # [n, *d]


@pytest.fixture
def counts():
    return level_counts(IMAGES, LEVELS)


def test_counts_are_smoothed_by_one_example(counts):
    fitted = fit_statistics(counts)
    assert fitted.shape == (2,) and fitted.levels == LEVELS and fitted.residual is None
    expected = (np.asarray([[3, 1, 0], [1, 1, 2]]) + 1 / 3) / 5
    assert fitted.log_counts is not None and fitted.log_counts.dtype == np.float32
    np.testing.assert_allclose(np.exp(fitted.log_counts), expected, rtol=1e-6)
    values = level_values(LEVELS)[IMAGES]
    np.testing.assert_allclose(fitted.second_moment, np.mean(values**2), rtol=1e-12)


@pytest.fixture
def few_gammas(monkeypatch):
    monkeypatch.setattr(statistics, "RESIDUAL_GAMMAS", np.linspace(-20.0, 4.0, 5))


@pytest.mark.parametrize("base", ["histogram", "levels", {"name": "histogram"}])
def test_the_error_of_an_informative_base_is_measured(counts, few_gammas, base):
    fitted = fit_statistics(counts, IMAGES, base=base)
    assert fitted.residual is not None
    gammas, deviations = fitted.residual
    np.testing.assert_array_equal(gammas, np.linspace(-20, 4, 5, dtype=np.float32))
    assert np.all(np.diff(deviations) > 0)  # noise hides
    largest = np.exp(deviations[-1])
    assert 0.3 < largest < 1.1 * np.sqrt(np.mean(level_values(LEVELS)[IMAGES] ** 2))
    same = fit_statistics(counts, IMAGES, base=base)
    np.testing.assert_array_equal(same.residual, fitted.residual)


@pytest.mark.parametrize("base", ["zero", "input", None])
def test_what_is_known_in_closed_form_is_not_measured(counts, monkeypatch, base):
    def refuse(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(statistics, "measure_residual", refuse)
    assert fit_statistics(counts, IMAGES, base=base).residual is None


def test_unknown_base(counts):
    with pytest.raises(ValueError, match=r"^config\.model\.base: unknown name 'histgram'; did you"):
        fit_statistics(counts, IMAGES, base="histgram")
    with pytest.raises(ValueError, match=r"^base: unknown name 'histgram'"):
        fit_statistics(counts, IMAGES, base="histgram", where="base")


COLUMN = np.linspace(0, 1, 4, dtype=np.float32)


@pytest.mark.parametrize(
    "fitted",
    [
        Statistics((2, 3, 1), 17, 1 / 7, np.ones((2, 3, 1, 17), np.float32), (COLUMN, COLUMN**2)),
        Statistics((2,), 3, 0.1, np.ones((2, 3), np.float32)),
        Statistics((5,), None),
    ],
)
def test_round_trip(tmp_path, fitted):
    path = tmp_path / "statistics.npz"
    save_statistics(path, fitted)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    loaded = load_statistics(path)
    assert loaded[:3] == fitted[:3]
    assert [type(value) for value in loaded] == [type(value) for value in fitted]
    for a, b in zip(
        (loaded.log_counts, loaded.residual), (fitted.log_counts, fitted.residual), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.npz"]


def test_a_killed_save_leaves_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / "statistics.npz"
    save_statistics(path, Statistics((5,), None))

    def half(file, **arrays):
        file.write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        save_statistics(path, Statistics((6,), None))
    assert load_statistics(path).shape == (5,)
