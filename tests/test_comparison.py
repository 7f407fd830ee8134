"""A comparison measures each variant as a single run would, and tables, plots and files show the numbers."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from PIL import Image
from small_comparison import compare_small, images, set_up

import vdm_jax as vdm
from vdm_jax.comparison import gradients as gradients_of
from vdm_jax.comparison import measure
from vdm_jax.comparison.quality import gaussian_kl, kernel_distance
from vdm_jax.models.likelihood import build_estimator
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.training.evaluate import make_evaluator

pytestmark = pytest.mark.usefixtures("without_optimizations")


@pytest.fixture(scope="module")
def result():
    return compare_small(
        parameterizations=("mean", "v"),
        output_scales=("none", "unit_variance"),
        weightings=("elbo", "simple"),
        gradient_batches=2,
        sampling_steps=(2,),
    )


def test_bins_add_up_to_the_bound(result):
    parts = result.bounds.parts
    np.testing.assert_allclose(
        result.bounds.matching.sum(-1), parts.matching.mean(-1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        result.bits_per_dim,
        result.bounds.matching.sum(-1) + parts.reconstruction.mean(-1) + parts.prior.mean(-1),
        rtol=1e-5,
    )


def test_bounds_equal_those_of_a_single_run(result):
    """The keys and weights are those of the command line's evaluation."""
    sweep, params = setup_of(result)
    for i, j in ((0, 0), (3, 1)):
        model = sweep.model_of(sweep.each_variant[i])
        run_params = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], params)
        key = measure.keys(sweep, "evaluate")[j]
        x = images()[np.random.default_rng(0).permutation(40)[:8]]
        metrics = make_evaluator(build_estimator(model, "elbo"))(run_params, key, x)
        nats = sum(np.asarray(metrics[part], np.float64) for part in result.bounds.parts._fields)
        bits = sum(part[i, j] for part in result.bounds.parts)
        np.testing.assert_allclose(bits, nats / (9 * np.log(2)), rtol=2e-5)


def setup_of(result):
    return set_up().sweep, result.params


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


@pytest.mark.slow
def test_gradients_equal_those_of_the_loss_without_noise(result):
    """The moments of two batches are products of different batches and half the square of their difference."""
    sweep, params = setup_of(result)
    edges, i, j = result.edges, 3, 1
    split = vdm.data.digits().train._replace(images=images())
    options = {"batches": 2, "batch_size": 20}
    (measured,) = gradients_of.gradients(sweep, [(params, None)], split, edges, **options)
    model = sweep.model_of(sweep.each_variant[i])
    run_params = jax.tree.map(lambda leaf: leaf[i, j], params)
    order = np.random.default_rng((0, 0)).permutation(40)
    key = measure.keys(sweep, "train")[j]
    batch = [(jax.random.fold_in(key, n), images()[order[20 * n : 20 * n + 20]]) for n in (0, 1)]
    by_bin = jax.jit(jax.jacrev(lambda p, k, x: model.per_noise_level.loss(p, k, x, edges)))
    bins = [
        np.stack([flat(jax.tree.map(lambda leaf, k=k: leaf[k], jac)) for k in range(4)])
        for jac in (by_bin(run_params, *keyed) for keyed in batch)
    ]
    whole = [
        flat(jax.grad(lambda p, keyed=keyed: model.loss(p, *keyed)[0])(run_params))
        for keyed in batch
    ]
    np.testing.assert_allclose(bins[0].sum(0), whole[0], atol=1e-6 * abs(whole[0]).max())
    size, close = whole[0] @ whole[1], {"rtol": 2e-3, "atol": 1e-6 * (whole[0] @ whole[0])}
    assert (np.isnan(measured.total_norm[i, j])) == (size <= 0)
    np.testing.assert_allclose(np.nan_to_num(measured.total_norm[i, j]) ** 2, max(size, 0), **close)
    difference = whole[0] - whole[1]
    np.testing.assert_allclose(
        measured.total_deviation[i, j] ** 2, difference @ difference / 2, rtol=2e-3
    )
    products = (bins[0] @ bins[1].T + bins[1] @ bins[0].T) / 2
    square = np.diagonal(products)
    np.testing.assert_allclose(
        np.nan_to_num(measured.norm[i, j]) ** 2,
        square.clip(0),
        rtol=2e-3,
        atol=1e-3 * abs(square).max(),
    )
    spread = np.sum((bins[0] - bins[1]) ** 2, -1) / 2
    np.testing.assert_allclose(measured.deviation[i, j] ** 2, spread, rtol=2e-3)
    known = square > spread / 2  # larger than the noise of its mean
    assert np.isnan(measured.between_bins[i, j][~known]).all()
    cosines = products / np.sqrt(abs(np.outer(square, square)))
    expected = cosines.clip(-1, 1)[np.ix_(known, known)]
    np.testing.assert_allclose(
        measured.between_bins[i, j][np.ix_(known, known)], expected, atol=0.02
    )


def test_cosines_between_variants_are_free_of_noise():
    """The expected gradients are known in each bin, and every variant has independent noise."""
    rng = np.random.default_rng(0)
    true = np.array([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 2.0]]])  # bins, variants
    noisy = true + rng.normal(0, 3, (4000, *true.shape))
    each = np.einsum("bkvp,bkwp->kvw", noisy, noisy)[:, None]
    summed = noisy.sum(0)
    all_ = np.einsum("kvp,kwp->kvw", summed, summed)[:, None]
    bins = (
        np.einsum("bkvp,blvp->vkl", noisy, noisy)[:, None],
        np.einsum("kvp,lvp->vkl", summed, summed)[:, None],
    )
    estimates = gradients_of._gradients(*bins, each, all_, 4000)
    np.testing.assert_allclose(estimates.between_variants[:, 0, 1], np.sqrt([0.5, 0.5]), atol=0.1)
    np.testing.assert_allclose(estimates.norm[:, 0], [[1, 2], [np.sqrt(2), np.sqrt(8)]], rtol=0.15)
    np.testing.assert_allclose(
        estimates.deviation[:, 0], np.full((2, 2), 3 * np.sqrt(2)), rtol=0.05
    )


def test_errors_are_standard_errors_of_paired_differences(result):
    names = result.names
    bits = result.bits_per_dim
    bound, difference = result.bound(names[1]), result.difference(names[1], names[2])
    assert bound.mean == pytest.approx(bits[1].mean())
    assert bound.standard_error == pytest.approx(abs(bits[1, 0] - bits[1, 1]) / 2)
    each = bits[1] - bits[2]
    assert difference.standard_error == pytest.approx(abs(each[0] - each[1]) / 2)


def test_unit_variance_outputs_agree_and_gains_are_known(result):
    unit = [
        result.bits_per_dim[result.names.index(f"{row}_unit_variance_elbo")]
        for row in ("mean", "v")
    ]
    np.testing.assert_allclose(unit[0], unit[1], rtol=1e-3)
    row, names = PARAMETERIZATIONS["v"](), result.names
    out = abs(np.asarray(row(vdm.Interval(*[jnp.asarray(-result.log_snr)] * 3)).out))
    np.testing.assert_allclose(result.output_gains[names.index("v_none_elbo")], out, rtol=0.5)
    output_gains = (
        result.output_gains[names.index("mean_unit_variance_elbo")],
        result.output_gains[names.index("v_unit_variance_elbo")],
    )
    np.testing.assert_allclose(*output_gains, rtol=1e-4)


@pytest.mark.slow
def test_comparisons_are_reproducible_and_share_draws():
    first, second = (compare_small(seeds=[3, 5], sampling_steps=(2,)) for _ in range(2))
    assert first.table() == second.table() and first.seeds == [3, 5]
    assert first.bins_table() == second.bins_table()
    alone = compare_small(seeds=[5], parameterizations=("v",))
    np.testing.assert_allclose(
        alone.bits_per_dim[0, 0], first.bits_per_dim[1, 1], rtol=1e-5
    )  # independent of the other variants
    np.testing.assert_array_equal(
        first.bounds.parts.prior[0], first.bounds.parts.prior[1]
    )  # before training all variants have the same weights


def test_distances():
    rng = np.random.default_rng(0)
    m1, m2, v1, v2 = np.array([0.1, -1]), np.array([1.0, 0.3]), np.array([0.2, 3]), np.ones(2)
    expected = vdm.kl(
        vdm.Gaussian(jnp.asarray(m1), jnp.log(v1)), vdm.Gaussian(jnp.asarray(m2), jnp.log(v2))
    )
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    for t in (np.eye(2), turn):  # a rotation changes nothing
        distance = gaussian_kl(t @ m1, t @ np.diag(v1) @ t.T, t @ m2, t @ np.diag(v2) @ t.T)
        np.testing.assert_allclose(distance, expected, rtol=1e-5)
    assert gaussian_kl(m1, np.diag([1.0, 0]), m2, np.eye(2)) == np.inf
    shift = 0.5  # of normal data: differences of the first three moments are δ, δ², 3δ + δ³
    for off in (0.0, shift):
        exact = 3 * off**2 + 3 * off**4 + (3 * off + off**3) ** 2
        distance = [
            kernel_distance(rng.normal(size=(20, 1)), off + rng.normal(size=(30, 1)))
            for _ in range(2000)
        ]
        error = oracles.standard_error(distance)
        assert abs(np.mean(distance) - exact) < 4.5 * error


# --- tables, plots and files -------------------------------------------------------------------------


def test_tables_plots_and_saved_files(result, tmp_path):
    table = result.table()
    assert len(table.split("\n\n")[0].splitlines()) == 2 + 8
    assert "± standard error over 2 seeds" in table and "ms/step" not in table
    assert "ms/step" in result.table(timing=True)
    best = min(result, key=lambda name: result.bound(name).mean)
    assert result.reference == best and f"paired difference to {best}" in table
    paths = result.save(tmp_path / "out")
    assert {p.name for p in paths} == {
        *(f"comparison.{ending}" for ending in ("json", "csv", "md", "png")),
        "samples.png",
    }
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["variants"].keys() == {*result} and saved["about"]["seeds"] == [0, 1]
    row = saved["variants"]["v_none_elbo"]
    assert row["bits_per_dim"] == pytest.approx(result["v_none_elbo"]["bits_per_dim"])
    assert len(row["bins"]["bits_per_dim"]) == 4 and len(row["weights"]["eps"]) == 20
    assert len(row["gradient_cosine_between_bins"]) == 4
    with (tmp_path / "out" / "comparison.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 16 and float(lines[0]["bits_per_dim"]) > 0
    for name in ("comparison.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
    html = result._repr_html_()
    assert html.count("<tr>") == 2 * 9 and "data:image/png;base64," in html
    assert result._repr_markdown_().count("| v_none_elbo |") == 2
    with pytest.raises(KeyError, match="'nothing' is none of mean_none_elbo"):
        result["nothing"]
    with pytest.raises(ValueError, match=r"steps: samples were drawn with \[2\], found 3"):
        result.plot_samples(3)


def test_saving_follows_no_links_and_writes_no_nan(result, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "out"
    for path in result.save(folder):
        path.unlink()
        path.symlink_to(victim)
    unknown = dataclasses.replace(
        result, real=float("nan"), curve=np.full_like(result.curve, np.nan)
    )
    for path in unknown.save(folder):
        assert path.is_file() and not path.is_symlink()
    assert victim.read_text() == "mine" and len([*folder.iterdir()]) == 5
    content = (folder / "comparison.json").read_text()
    saved = json.loads(content, parse_constant=pytest.fail)
    assert saved["quality"]["real"] is None
    assert {*np.ravel([*saved["training"]["bits_per_dim"].values()])} == {None}
