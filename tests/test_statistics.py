"""Statistics of the training split: fitted on that split alone, saved without pickle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.bases import BASES, measure_residual
from vdm_jax.comparison.setup import setup_comparison
from vdm_jax.config import default, resolve
from vdm_jax.data import Split, array_dataset, level_counts
from vdm_jax.likelihoods import level_values
from vdm_jax.models import MODELS, Statistics, build_model, statistics, statistics_needed
from vdm_jax.models.statistics import (
    digest_of,
    fit_statistics,
    load_statistics,
    save_statistics,
)
from vdm_jax.runs.setup import statistics_of

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
def test_residual_of_an_informative_base_is_measured(counts, few_gammas, base):
    fitted = fit_statistics(counts, base=base)
    assert fitted.residual is not None
    gammas, deviations = fitted.residual
    np.testing.assert_array_equal(gammas, np.linspace(-20, 4, 5, dtype=np.float32))
    assert np.all(np.diff(deviations) > 0)  # noise hides
    largest = np.exp(deviations[-1])
    assert 0.3 < largest < 1.1 * np.sqrt(np.mean(level_values(LEVELS)[IMAGES] ** 2))
    same = fit_statistics(counts, base=base)
    np.testing.assert_array_equal(same.residual, fitted.residual)


@pytest.mark.parametrize("base", ["zero", "input", None])
def test_closed_form_residual_is_not_measured(counts, monkeypatch, base):
    def refuse(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(statistics, "measure_residual", refuse)
    assert fit_statistics(counts, base=base).residual is None


def test_unknown_base(counts):
    with pytest.raises(ValueError, match=r"^base: unknown name 'histgram'; did you"):
        fit_statistics(counts, base="histgram")
    with pytest.raises(ValueError, match=r"^base: unknown name 'histgram'"):
        fit_statistics(counts, base="histgram")


# ---------------------------------------------------------------- independence of the stored order


def stored(count):
    """Return images [count, 2, 1] of 3 levels, shuffled and in the orders of users' files."""
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 3, (count, 1, 1))
    images = np.where(rng.random((count, 2, 1)) < 0.8, kinds, 2).astype(np.uint8)
    brightness = images.reshape(count, -1).sum(1)
    keys = {"by class": kinds.ravel(), "by brightness": brightness, "blank first": brightness > 0}
    orders = {name: np.argsort(key, kind="stable") for name, key in keys.items()}
    place = np.argsort(np.argsort(np.arange(count) % 12, kind="stable"))
    orders["periodic"] = orders["by brightness"][place]
    return images, {name: images[order] for name, order in orders.items()}


def dataset_of(images):
    split = Split(images, "train")
    return array_dataset("own", version="1", levels=3, train=split, test=split)


def of_a_run(images, base):
    spec = resolve(default()).model | {"base": base, "likelihood": "histogram"}
    return statistics_of(spec, dataset_of(images))


def of_a_comparison(images, base):
    names = ("levels", "schedule", "likelihood", "optimizer", "draws", "weightings", "config")
    arguments = dict.fromkeys(names) | {"seeds": 1, "timesteps": 20, "steps": 1, "batch_size": 8}
    arguments |= {
        "parameterizations": "eps",
        "output_scales": "unit_variance",
        "network": {"name": "mlp", "width": 4},
    }
    return setup_comparison(data=dataset_of(images), base=base, **arguments).sweep.statistics


DOORS = {"a run": of_a_run, "a comparison": of_a_comparison}


@pytest.mark.parametrize(
    ("door", "base"), [("a run", "histogram"), ("a run", "levels"), ("a comparison", "histogram")]
)
@pytest.mark.slow
def test_statistics_do_not_depend_on_the_stored_order(few_gammas, door, base):
    shuffled, orders = stored(600)
    expected = DOORS[door](shuffled, base)
    assert expected.residual is not None
    for order, images in orders.items():
        assert not np.array_equal(images, shuffled)
        assert digest_of(DOORS[door](images, base)) == digest_of(expected), order


def test_sampled_statistics_do_not_depend_on_the_order(few_gammas):
    shuffled, orders = stored(120_000)
    expected = of_a_run(shuffled, "histogram")
    for order, images in orders.items():
        actual = of_a_run(images, "histogram")
        # 50,000 of 120,000 are read: 5 standard deviations of a frequency are at most 0.012
        mass = np.exp([expected.log_counts, actual.log_counts])
        np.testing.assert_allclose(*mass, atol=0.012, err_msg=order)
        assert actual.second_moment == pytest.approx(expected.second_moment, abs=0.012)
        np.testing.assert_allclose(*(s.residual[1] for s in (actual, expected)), atol=0.03)


@pytest.mark.parametrize("base", ["histogram", "levels"])
def test_residual_equals_that_of_the_whole_split(few_gammas, base):
    images, _ = stored(30_000)  # whose positions are not independent
    counts = level_counts(images, 3)
    fitted = fit_statistics(counts, base=base)
    x0 = np.asarray(level_values(3)[images], np.float32)
    built = BASES[base](
        **{"levels": 3} | ({"log_counts": fitted.log_counts} if base == "histogram" else {})
    )
    gammas, expected = measure_residual(
        built, jnp.asarray(x0), jax.random.key(5), fitted.residual[0]
    )
    np.testing.assert_array_equal(gammas, fitted.residual[0])
    np.testing.assert_allclose(fitted.residual[1][2:], expected[2:], atol=0.03)


# ---------------------------------------------------------------- histograms that no component uses


MLP = {"name": "mlp", "width": 4, "depth": 1}
TAKES_HISTOGRAMS = [
    ({"name": "vdm", "network": MLP}, False),
    ({"name": "vdm", "network": MLP, "base": "histogram"}, True),
    ({"name": "vdm", "network": MLP, "base": {"name": "histogram"}}, True),
    ({"name": "vdm", "network": MLP, "base": "levels", "likelihood": "histogram"}, True),
    ({"name": "vdm", "network": MLP, "base": "input"}, False),
    ({"name": "vae", "encoder": MLP, "decoder": MLP}, True),
    ({"name": "vae", "encoder": MLP, "decoder": MLP, "likelihood": "softmax"}, False),
    ({"name": "mhvae", "chain": {"name": "gaussian", "latents": [2]}}, True),
    (
        {
            "name": "mhvae",
            "chain": {"name": "diffusion", "timesteps": 2, "network": MLP, "base": "histogram"},
            "likelihood": "softmax",
        },
        True,
    ),
    (
        {
            "name": "mhvae",
            "chain": {"name": "diffusion", "timesteps": 2, "network": MLP},
            "likelihood": "softmax",
        },
        False,
    ),
]


@pytest.mark.parametrize(("spec", "takes"), TAKES_HISTOGRAMS)
def test_histograms_are_counted_if_a_model_uses_them(few_gammas, spec, takes):
    assert {spec["name"] for spec, _ in TAKES_HISTOGRAMS} == {*MODELS}
    assert ("log_counts" in statistics_needed(spec)) is takes
    images, _ = stored(50)
    fitted = statistics_of(spec, dataset_of(images))
    assert (fitted.log_counts is not None) is takes
    assert fitted.second_moment == fit_statistics(level_counts(images, 3)).second_moment
    build_model(spec, fitted)
    if takes:
        with pytest.raises(ValueError, match="log_counts: expected"):
            build_model(spec, fitted._replace(log_counts=None))


def test_comparisons_count_histograms_if_used():
    images, _ = stored(50)
    assert of_a_comparison(images, "histogram").log_counts is not None
    assert of_a_comparison(images, "levels").log_counts is None


@pytest.mark.parametrize("spec", [None, 3, {}, {"name": None}, {"name": ["vdm"]}, "vdn"])
def test_wrong_specs_are_left_to_the_model(spec):
    assert statistics_needed(spec) == set()
    assert statistics_needed({"name": "vdm", "base": spec, "likelihood": spec}) == set()


# ---------------------------------------------------------------- files


COLUMN = np.linspace(0, 1, 4, dtype=np.float32)


FITTED = [
    Statistics((2, 3, 1), 17, 1 / 7, np.ones((2, 3, 1, 17), np.float32), (COLUMN, COLUMN**2)),
    Statistics((2,), 3, 0.1, np.ones((2, 3), np.float32)),
    Statistics((2,), 3, 0.1, None, (COLUMN, COLUMN**2)),
    Statistics((5,), None),
]


@pytest.mark.parametrize("fitted", FITTED)
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
    assert digest_of(loaded) == digest_of(fitted)


def test_digest_depends_on_every_field():
    fitted = FITTED[0]
    counts = np.ones((2, 3, 1, 17), np.float32)
    counts[1, 2, 0, 3] = np.nextafter(1, 2, dtype=np.float32)
    changes = [
        {"shape": (3, 2, 1)},
        {"levels": 16},
        {"second_moment": np.nextafter(1 / 7, 1)},
        {"log_counts": counts},
        {"log_counts": counts.reshape(3, 2, 1, 17)},
        {"log_counts": None},
        {"residual": (COLUMN**2, COLUMN)},
        {"residual": None},
    ]
    digests = {digest_of(s) for s in (fitted, *(fitted._replace(**change) for change in changes))}
    assert len(digests) == 1 + len(changes)


def test_killed_save_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "statistics.npz"
    save_statistics(path, Statistics((5,), None))

    def half(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        save_statistics(path, Statistics((6,), None))
    assert load_statistics(path).shape == (5,)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.npz"]


def test_links_are_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "statistics.npz"
    for name in (path.name, "statistics.new.npz"):
        victim.write_text("mine")
        (tmp_path / name).symlink_to(victim)
    save_statistics(path, FITTED[0])
    assert victim.read_text() == "mine" and not path.is_symlink()
    save_statistics(victim, FITTED[0])
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OSError, match=r"statistics\.npz"):
        load_statistics(path)


FULL = {
    "shape": np.asarray([2, 3], np.int64),
    "levels": np.asarray(5, np.int64),
    "second_moment": np.asarray(0.1),
    "log_counts": np.ones((2, 3, 5), np.float32),
    "residual": np.stack([COLUMN, COLUMN]),
}
DAMAGED = {
    "shape": [[0, 3], [-2, -3], 6, [[2, 3]], [3, 2], [2], np.asarray([2.0, 3.0]), None],
    "levels": [1, -5, 4, [5], np.asarray(5.0), None],
    "second_moment": [-0.1, np.nan, np.inf, [0.1], np.float32(0.1), None],
    "log_counts": [
        np.ones((2, 3, 4), np.float32),
        np.ones((30,), np.float32),
        np.ones((2, 3, 5)),
        np.full((2, 3, 5), -np.inf, np.float32),
        np.full((2, 3, 5), np.nan, np.float32),
    ],
    "residual": [
        COLUMN,
        np.stack([COLUMN] * 3),
        np.stack([COLUMN[::-1], COLUMN]),
        np.stack([0 * COLUMN, COLUMN]),
        np.stack([COLUMN, COLUMN]).astype(np.float64),
        np.stack([COLUMN, np.nan * COLUMN]),
        np.zeros((2, 0), np.float32),
    ],
    "other": [np.zeros(3)],
}


def test_intact_file_is_read(tmp_path):
    np.savez(tmp_path / "statistics.npz", **FULL)
    assert load_statistics(tmp_path / "statistics.npz").levels == 5


@pytest.mark.parametrize(("field", "value"), [(n, v) for n, vs in DAMAGED.items() for v in vs])
def test_inconsistent_fields_are_damage(tmp_path, field, value):
    path, arrays = tmp_path / "statistics.npz", FULL | {field: value}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(
        ValueError, match=rf"statistics\.npz is damaged: .*{field if value is not None else ''}"
    ):
        load_statistics(path)


def test_counts_over_all_positions_need_the_shape():
    with pytest.raises(ValueError, match=r"shape: expected that of one example .* found None"):
        fit_statistics(np.ones(4, np.int64))
