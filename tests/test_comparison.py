"""A comparison says what is true where the truth is known, the same each time, and refuses mistakes."""

import csv
import dataclasses
import json

import equinox as eqx
import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from prepared import write_tfds

import vdm_jax as vdm
from vdm_jax.comparison import gradients as gradients_of
from vdm_jax.comparison import measure
from vdm_jax.comparison.quality import gaussian_kl, kernel_distance
from vdm_jax.config import default
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, eps
from vdm_jax.training.evaluate import make_evaluator

ROWS = ("mean", "x0", "eps", "v", "score")
NET = {"name": "mlp", "width": 8, "depth": 1}
FAST = {
    "steps": 2,
    "batch_size": 8,
    "draws": 1,
    "bins": 4,
    "gradient_batches": 0,
    "samples": 4,
    "sampling_steps": (),
    "network": NET,
    "progress": False,
}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


ONE_NORMAL = vdm.Mixture.of([1.0], [[0.0]], [[1.0]])


def images(n=40, levels=4, shape=(3, 3, 1)):
    return np.random.default_rng(0).integers(0, levels, (n, *shape)).astype(np.uint8)


def compared(**changes):
    settings = FAST | {"data": images(), "levels": 4, "seeds": 2, "timesteps": 20}
    settings |= {
        "parameterizations": ("eps", "v"),
        "output_scales": ("none",),
        "weightings": ("elbo",),
    }
    return vdm.compare(**settings | changes)


@pytest.fixture(scope="module")
def result():
    return compared(
        parameterizations=("mean", "v"),
        output_scales=("none", "unit_variance"),
        weightings=("elbo", "simple"),
        gradient_batches=2,
        sampling_steps=(2,),
    )


# ---------------------------------------------------------------- where the truth is known


def law_as_mixture(law):
    return vdm.Mixture.of(law.weights, law.means, law.variances)


def best_networks(law, timesteps, rows=ROWS):
    schedule = vdm.schedules.linear()
    at = oracles.interval_of_step(schedule, timesteps=timesteps)
    return {name: law.network(PARAMETERIZATIONS[name](), at) for name in rows}


@pytest.mark.parametrize("name", oracles.LAWS)
@pytest.mark.parametrize("timesteps", [30, None])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.slow
def test_losses_of_the_best_denoisers_are_one_number(name, timesteps, double):
    law = oracles.LAWS[name]((3,))
    with jax.enable_x64(double):
        x = jnp.asarray(law_as_mixture(law).sample(jax.random.key(0), 200))
        rows = ROWS if timesteps else ROWS[1:]
        losses = vdm.parameterization_losses(
            best_networks(law, timesteps, rows),
            x,
            jax.random.key(1),
            timesteps=timesteps,
            draws=4,
        )
        assert [*losses] == [*rows]
        bits = {row: np.asarray(found.bits_per_dim, np.float64) for row, found in losses.items()}
        squares = [float(found.squared_error.mean()) for found in losses.values()]
    for row in rows:
        off = bits[row] - bits["eps"]
        scale = abs(bits["eps"].mean())
        assert abs(off.mean()) < (1e-12 if double else 1e-5) * scale, row
        assert bits[row].shape == (200,)
    assert max(squares) > 3 * min(squares)  # the numbers that runs print are not comparable


def test_losses_are_the_bound_and_pure():
    law = oracles.gaussian((2,))
    x = jnp.asarray(law_as_mixture(law).sample(jax.random.key(0), 4000))
    networks = best_networks(law, 10, ("eps", "v"))

    @jax.jit
    def run(x, key):
        return vdm.parameterization_losses(networks, x, key, timesteps=10, draws=8)

    losses = run(x, jax.random.key(1))
    gammas = np.linspace(-13.3, 5, 11)
    exact = oracles.matching(law, gammas, np.asarray(x, np.float64))
    error = oracles.standard_error(np.asarray(losses["v"].elbo.matching, np.float64) - exact)
    assert abs(np.mean(losses["v"].elbo.matching) - exact.mean()) < 4.5 * error


class Plain(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        return nn.Dense(xt.shape[-1])(jnp.concatenate([xt, gamma_t[:, None]], -1))


def test_losses_take_a_network_as_the_model_does(monkeypatch):
    """A row of the table that is a Linen module, and a `Network` of functions that take less."""
    monkeypatch.setitem(vdm.nets.NETS, "ours", lambda: Plain())
    module, x = Plain(), jnp.ones((4, 2))
    params = module.init(jax.random.key(0), x, x[:, 0])["params"]
    short = vdm.Network(
        lambda key, xt, gamma_t: params,
        lambda params, xt, gamma_t: module.apply({"params": params}, xt, gamma_t),
    )

    @oracles.jit
    def losses():
        return [
            vdm.parameterization_losses({"v": params}, x, jax.random.key(0), network=network)["v"]
            for network in (module, "ours", short)
        ]

    first, *others = losses()
    for other in others:
        np.testing.assert_array_equal(first.bits_per_dim, other.bits_per_dim)


@pytest.mark.slow
def test_losses_of_parameters_and_of_one_callable():
    net = vdm.nets.mlp(width=4, depth=1, zero=False)
    x = jax.random.normal(jax.random.key(0), (6, 2))
    params = {row: net.init(jax.random.key(i), x, x[:, 0]) for i, row in enumerate(("eps", "v"))}
    found = vdm.parameterization_losses(params, x, jax.random.key(1), network=net)
    own = {row: lambda xt, g, p=p: net.apply(p, xt[None], g[None])[0] for row, p in params.items()}
    other = vdm.parameterization_losses(own, x, jax.random.key(1))
    for row in params:
        np.testing.assert_allclose(found[row].bits_per_dim, other[row].bits_per_dim, rtol=1e-5)
    nothing = vdm.parameterization_losses(lambda xt, g: 0 * xt, x, jax.random.key(1))
    assert [*nothing] == ["x0", "eps", "v", "score"]
    chain = vdm.parameterization_losses(lambda xt, g: 0 * xt, x, jax.random.key(1), timesteps=5)
    assert [*chain] == [*ROWS]
    whole = vdm.parameterization_losses(lambda xt, g: 0 * xt, images(), jax.random.key(1))
    assert np.isfinite(whole["v"].bits_per_dim).all()


@pytest.mark.parametrize("name", oracles.LAWS)
def test_best_denoisers_compared_are_equal_and_a_wrong_weight_is_caught(name):
    law = oracles.LAWS[name]((2,))
    networks = best_networks(law, 20, ("mean", "x0", "eps", "v"))

    def off(step):
        preconditioning = eps().preconditioning(step)
        return preconditioning._replace(out=1.1 * preconditioning.out)

    rows = {row: row for row in networks}
    wrong = Parameterization(off, eps().target)
    changes = FAST | {"steps": 0, "sampling_steps": (20,), "samples": 500, "draws": 4}
    result = vdm.compare(
        rows | {"wrong": wrong},
        law_as_mixture(law),
        **changes | {"network": networks | {"wrong": networks["eps"]}},
        output_scales=["none"],
        weightings={"elbo": "elbo", "half": lambda log_snr, exact: 0.5 * exact},
        timesteps=20,
    )
    assert result.gradients is None and result.milliseconds is None
    for row in rows:
        for weighting in ("elbo", "half"):
            found = result.difference(f"{row}_none_{weighting}", "eps_none_elbo")
            assert abs(found.mean) < 1e-5 * abs(result.bound("eps_none_elbo").mean), row
            assert found.standard_error < 1e-5
        quality = result.quality[20][result.names.index(f"{row}_none_elbo")]
        assert quality.mean() < 0.2  # of the chain's own law
    found = result.difference("wrong_none_elbo", "eps_none_elbo")
    assert abs(found.mean) > 10 * found.standard_error
    notes = [note for note in result.notes if "inconsistent" in note]
    assert (
        len(notes) == 1
        and notes[0].startswith("'wrong' is inconsistent")
        and "by up to 9" in notes[0]
    )
    assert notes[0] in result.table()
    line = next(row for row in result.table().splitlines() if row.startswith("| eps_none_half"))
    assert "| 0.5 |" in line


# ---------------------------------------------------------------- what is measured


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


def test_bounds_are_those_of_a_single_run(result):
    """With the same key and weights, as the command line evaluates them."""
    many, params = setup_of(result)
    for i, j in ((0, 0), (3, 1)):
        model = many.model_of(many.each_variant[i])
        own = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], params)
        key = measure.keys(many, "evaluate")[j]
        x = images()[np.random.default_rng(0).permutation(40)[:8]]
        found = make_evaluator(model, 1)(own, key, x)
        nats = sum(np.asarray(found[part], np.float64) for part in result.bounds.parts._fields)
        bits = sum(part[i, j] for part in result.bounds.parts)
        np.testing.assert_allclose(bits, nats / (9 * np.log(2)), rtol=2e-5)


def prepared(config=None, **changes):
    from vdm_jax.comparison.setup import setup_comparison

    names = ("base", "schedule", "likelihood", "optimizer")
    given = dict.fromkeys(names) | {"seeds": 2, "levels": 4, "data": images(), "network": NET}
    given |= {
        "parameterizations": ("mean", "v"),
        "output_scales": ("none", "unit_variance"),
        "timesteps": 20,
    }
    given |= {"weightings": ("elbo", "simple"), "steps": 2, "batch_size": 8, "draws": 1}
    return setup_comparison(config=config, **given | changes)


def setup_of(result):
    return prepared().sweep, result.params


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


@pytest.mark.slow
def test_gradients_are_those_of_the_loss_and_free_of_noise(result):
    """Of two batches: products of different ones, half the square of their difference."""
    many, params = setup_of(result)
    edges, i, j = result.edges, 3, 1
    split = vdm.data.digits().train._replace(images=images())
    options = {"batches": 2, "batch_size": 20}
    (found,) = gradients_of.gradients(many, [(params, None)], split, edges, **options)
    model, own = many.model_of(many.each_variant[i]), jax.tree.map(lambda leaf: leaf[i, j], params)
    order = np.random.default_rng((0, 0)).permutation(40)
    key = measure.keys(many, "train")[j]
    batch = [(jax.random.fold_in(key, n), images()[order[20 * n : 20 * n + 20]]) for n in (0, 1)]
    by_bin = jax.jit(jax.jacrev(lambda p, k, x: model.per_noise_level.loss(p, k, x, edges)))
    bins = [
        np.stack([flat(jax.tree.map(lambda leaf, k=k: leaf[k], jac)) for k in range(4)])
        for jac in (by_bin(own, *one) for one in batch)
    ]
    whole = [flat(jax.grad(lambda p, one=one: model.loss(p, *one)[0])(own)) for one in batch]
    np.testing.assert_allclose(bins[0].sum(0), whole[0], atol=1e-6 * abs(whole[0]).max())
    size, close = whole[0] @ whole[1], {"rtol": 2e-3, "atol": 1e-6 * (whole[0] @ whole[0])}
    assert (np.isnan(found.total_norm[i, j])) == (size <= 0)
    np.testing.assert_allclose(np.nan_to_num(found.total_norm[i, j]) ** 2, max(size, 0), **close)
    off = whole[0] - whole[1]
    np.testing.assert_allclose(found.total_deviation[i, j] ** 2, off @ off / 2, rtol=2e-3)
    products = (bins[0] @ bins[1].T + bins[1] @ bins[0].T) / 2
    square = np.diagonal(products)
    np.testing.assert_allclose(
        np.nan_to_num(found.norm[i, j]) ** 2,
        square.clip(0),
        rtol=2e-3,
        atol=1e-3 * abs(square).max(),
    )
    spread = np.sum((bins[0] - bins[1]) ** 2, -1) / 2
    np.testing.assert_allclose(found.deviation[i, j] ** 2, spread, rtol=2e-3)
    known = square > spread / 2  # what is larger than the noise of its mean
    assert np.isnan(found.between_bins[i, j][~known]).all()
    cosines = products / np.sqrt(abs(np.outer(square, square)))
    expected = cosines.clip(-1, 1)[np.ix_(known, known)]
    np.testing.assert_allclose(found.between_bins[i, j][np.ix_(known, known)], expected, atol=0.02)


def test_cosines_of_variants_are_of_the_same_bin_and_free_of_noise():
    """Expected gradients (1, 0) and (1, 1) a bin later the other way round, with noise of their own."""
    rng = np.random.default_rng(0)
    true = np.array([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 2.0]]])  # bins, variants
    g = true + rng.normal(0, 3, (4000, *true.shape))
    each = np.einsum("bkvp,bkwp->kvw", g, g)[:, None]
    summed = g.sum(0)
    all_ = np.einsum("kvp,kwp->kvw", summed, summed)[:, None]
    bins = (
        np.einsum("bkvp,blvp->vkl", g, g)[:, None],
        np.einsum("kvp,lvp->vkl", summed, summed)[:, None],
    )
    found = gradients_of._gradients(*bins, each, all_, 4000)
    np.testing.assert_allclose(found.between_variants[:, 0, 1], np.sqrt([0.5, 0.5]), atol=0.1)
    np.testing.assert_allclose(found.norm[:, 0], [[1, 2], [np.sqrt(2), np.sqrt(8)]], rtol=0.15)
    np.testing.assert_allclose(found.deviation[:, 0], np.full((2, 2), 3 * np.sqrt(2)), rtol=0.05)


def test_errors_are_standard_errors_of_paired_differences(result):
    names = result.names
    bits = result.bits_per_dim
    bound, difference = result.bound(names[1]), result.difference(names[1], names[2])
    assert bound.mean == pytest.approx(bits[1].mean())
    assert bound.standard_error == pytest.approx(abs(bits[1, 0] - bits[1, 1]) / 2)
    each = bits[1] - bits[2]
    assert difference.standard_error == pytest.approx(abs(each[0] - each[1]) / 2)


def test_unit_variance_outputs_are_one_model_and_unscaled_gains_are_out(result):
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
def test_what_is_shared_is_shared_and_the_same_each_time():
    first, second = (compared(seeds=[3, 5], sampling_steps=(2,)) for _ in range(2))
    assert first.table() == second.table() and first.seeds == [3, 5]
    assert first.bins_table() == second.bins_table()
    alone = compared(seeds=[5], parameterizations=("v",))
    np.testing.assert_allclose(
        alone.bits_per_dim[0, 0], first.bits_per_dim[1, 1], rtol=1e-5
    )  # not of what it is compared with
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
        found = gaussian_kl(t @ m1, t @ np.diag(v1) @ t.T, t @ m2, t @ np.diag(v2) @ t.T)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert gaussian_kl(m1, np.diag([1.0, 0]), m2, np.eye(2)) == np.inf
    shift = 0.5  # of normal data: differences of the first three moments are δ, δ², 3δ + δ³
    for off in (0.0, shift):
        exact = 3 * off**2 + 3 * off**4 + (3 * off + off**3) ** 2
        found = [
            kernel_distance(rng.normal(size=(20, 1)), off + rng.normal(size=(30, 1)))
            for _ in range(2000)
        ]
        error = oracles.standard_error(found)
        assert abs(np.mean(found) - exact) < 4.5 * error


# ---------------------------------------------------------------- what is shown


def test_what_is_shown_and_saved(result, tmp_path):
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
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["variants"].keys() == {*result} and found["about"]["seeds"] == [0, 1]
    row = found["variants"]["v_none_elbo"]
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
    text = (folder / "comparison.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["quality"]["real"] is None
    assert {*np.ravel([*found["training"]["bits_per_dim"].values()])} == {None}


# ---------------------------------------------------------------- own networks, own data, configs


class Linen(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        flat = jnp.concatenate([xt.reshape(len(xt), -1), gamma_t[:, None]], -1)
        return nn.Dense(9)(nn.silu(nn.Dense(4)(flat))).reshape(xt.shape)


class Equinox(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, xt, gamma_t):
        return self.layer(jnp.append(xt.ravel(), gamma_t)).reshape(xt.shape)


class Nnx(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(10, 9, rngs=nnx.Rngs(0))

    def __call__(self, xt, gamma_t):
        flat = jnp.concatenate([xt.reshape(len(xt), -1), gamma_t[:, None]], -1)
        return self.layer(flat).reshape(xt.shape)


class Dropped(nnx.Module):
    def __init__(self):
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, xt, gamma_t):
        return self.drop(xt)


def defaulted_apply(params, x, noise=None, *, extra=None):
    assert noise is not None
    del extra
    return params["w"][0, 0] * x * noise[:, None, None, None]


class WithExtra(eqx.Module):
    scale: jax.Array

    def __call__(self, xt, gamma_t, extra):
        return self.scale * (xt - extra) * gamma_t


def bare_init(key):
    return {"w": 0.01 * jax.random.normal(key, (9, 9))}


def bare_apply(params, xt, gamma_t, extra):
    del gamma_t
    return (extra.reshape(len(xt), -1) @ params["w"]).reshape(xt.shape)


OWN = {
    "linen": Linen(),
    "equinox": Equinox(eqx.nn.Linear(10, 9, key=jax.random.key(0))),
    "nnx": Nnx(),
    "bare": (bare_init, bare_apply),
    "defaults": (bare_init, defaulted_apply),
    "extra": WithExtra(jnp.asarray(0.1)),
    "network": vdm.nets.mlp(width=4, depth=1),
    "config": ConfigDict({"name": "mlp", "width": 4, "depth": 1}),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.slow
def test_own_networks_are_trained(name):
    few = {"network": OWN[name], "parameterizations": ("v",), "seeds": 1}
    result = compared(steps=3, **few)
    assert [*result] == ["v_none_elbo"] and not result.skipped.any()
    assert (result.bits_per_dim != compared(steps=0, **few).bits_per_dim).all()


DATA = {
    "floats": np.random.default_rng(1).normal(0, 0.5, (40, 3)).astype(np.float32),
    "jax": jax.random.normal(jax.random.key(0), (40, 3)),
    "pair": (images(30), images(12)),
    "booleans": images(levels=2).astype(bool),
    "grain": grain.MapDataset.source(list(images(30))),
    "labelled": [(x, 0) for x in images(30)],
    "dictionaries": grain.MapDataset.source([{"image": x, "label": 0} for x in images(30)]),
    "mixture": vdm.Mixture.of([1.0], [[0.2, 0.0]], [[0.5, 0.3]]),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.slow
def test_own_data(name):
    levels = {"pair": 4, "grain": 4, "dictionaries": 4, "labelled": 4}.get(name)
    few = {"seeds": 1, "parameterizations": ("v",), "samples": 20, "sampling_steps": (2,)}
    result = compared(data=DATA[name], levels=levels, **few)
    assert np.isfinite(result.bits_per_dim).all() and np.isfinite(result.quality[2]).all()
    assert ("moments" in result.distance) == (name in ("floats", "jax", "mixture"))
    if name == "mixture":
        assert "exact moments" in result.distance and result.plot_samples() is not None
        assert result.real < 1  # 20 draws


@pytest.mark.slow
def test_what_is_not_trained_is_said(tmp_path):
    hidden = jax.vmap(Equinox(eqx.nn.Linear(10, 9, key=jax.random.key(0))))
    result = compared(network=lambda xt, g: hidden(xt[None], g[None])[0])
    assert "the network has no parameters, so that nothing was trained" in result.table()
    assert "nothing was trained" in result.about["training"]
    result.save(tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["training"] == {"steps": [], "bits_per_dim": {name: [[], []] for name in result}}
    given = compared(network=OWN["equinox"], steps=1)
    assert "seeds differ in data and noise only" in given.table()


@pytest.mark.slow
def test_integers_and_learned_schedules_of_the_users_choice(tmp_path):
    few = {
        "seeds": np.arange(2),
        "steps": np.int64(2),
        "timesteps": np.int64(20),
        "levels": np.int64(4),
    }
    result = compared(schedule="learned_linear", **few)
    result.save(tmp_path)
    params = {
        row: jax.tree.map(lambda leaf, i=i: leaf[i, 0], result.params)
        for i, row in enumerate(("eps", "v"))
    }
    losses = vdm.parameterization_losses(
        {row: one["network"] for row, one in params.items()},
        images()[:5],
        jax.random.key(0),
        network=NET,
        base="histogram",
        output_scale="unit_variance",
        statistics=result.statistics,
        schedule="learned_linear",
        schedule_params=params["eps"]["schedule"],
    )
    assert np.isfinite(losses["v"].bits_per_dim).all()
    many = jax.vmap(
        lambda key: vdm.parameterization_losses(lambda xt, g: 0 * xt, jnp.ones((3, 2)), key)["v"]
    )(jax.random.split(jax.random.key(0), 4))
    assert many.bits_per_dim.shape == (4, 3)


def test_a_learned_schedule_is_compared_on_the_bound_alone():
    built = prepared(schedule="learned_linear", weightings=None)
    assert [*built.components["weightings"]] == ["elbo"]
    assert [*prepared(weightings=None).components["weightings"]] == ["elbo", "simple"]
    own = {"mine": lambda log_snr, exact: exact}
    assert [*prepared(schedule="learned_linear", weightings=own).components["weightings"]] == [
        "mine"
    ]


@pytest.mark.parametrize(
    ("steps", "own", "decay"),
    [
        (300, {}, 300),
        (100, {}, None),  # 100 of warm-up
        (100, {"warmup_steps": 10}, 100),
        (300, {"warmup_steps": 300}, None),
        (400, {"warmup_steps": 10, "accumulate": 4}, 100),  # updates
        (400, {"decay_steps": 200}, 200),
    ],
)
@pytest.mark.slow
def test_the_decay_ends_with_the_steps(steps, own, decay):
    found = prepared(steps=steps, optimizer=own).sweep.config["optimizer"]
    assert found["decay_steps"] == decay and found.items() >= own.items()


def with_times(times):
    config = default()
    config.model.base, config.model.time_sampler = "levels", times
    return config


@pytest.mark.slow
def test_the_error_of_the_base_is_measured_for_every_head_that_may_use_it():
    residuals = [
        prepared(output_scales=output_scales, config=with_times(times)).sweep.statistics.residual
        is not None
        for output_scales, times in (
            (["none"], "uniform"),
            (["unit_variance"], "uniform"),
            ({"mine": "unit_variance"}, "uniform"),
            (
                {"mine": lambda base, gamma_t, preconditioning, target: jnp.ones_like(gamma_t)},
                "uniform",
            ),
            (["none"], "analytic"),
        )
    ]
    assert residuals == [False, True, True, True, True]


def test_what_a_config_leaves_to_the_model_is_the_models():
    config = default()
    config.model = ConfigDict({"name": "vdm", "network": dict(NET)})
    few = dict.fromkeys(
        ("parameterizations", "output_scales", "weightings", "timesteps", "data", "levels")
    )
    few |= dict.fromkeys(("seeds", "network", "steps", "batch_size", "draws")) | {"timesteps": ...}
    found = prepared(config, **few)
    assert found.about["timesteps"] is None and "base zero" in found.about["components"]
    assert [[*part] for part in found.components.values()] == [["eps"], ["none"], ["elbo"]]


@pytest.mark.slow
def test_double_precision():
    with jax.enable_x64(True):
        result = compared(data=DATA["floats"], levels=None, seeds=1, sampling_steps=(2,))
        assert np.isfinite(result.bits_per_dim).all()


@pytest.mark.slow
def test_a_tfds_name_and_a_config(tmp_path, monkeypatch):
    write_tfds(tmp_path, "mine")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = default()
    config.data.name = "mine"
    config.train.batch_size, config.train.steps = 4, 2
    config.evaluate.draws = 1
    config.model.timesteps = 10
    config.model.base = "levels"
    config.sweep.parameterizations = ("mean", "x0")
    config.sweep.seeds = (4,)
    few = FAST | dict.fromkeys(("steps", "batch_size", "draws"))
    result = vdm.compare(config=config, **few)
    assert [*result] == ["mean_unit_variance_elbo", "x0_unit_variance_elbo"] and result.seeds == [4]
    assert result.about["data"].startswith("mine 1.0.0") and result.about["steps"] == 2
    assert result.about["timesteps"] == 10 and "base levels" in result.about["components"]
    assert "± standard error over the 25 examples" in result.table()


@pytest.mark.slow
def test_times_that_variants_do_not_share_are_noted():
    config = default()
    config.model.network = {"name": "mlp", "width": 4, "depth": 1}
    config.train.steps, config.evaluate.draws, config.model.base = 1, 1, "levels"
    few = FAST | dict.fromkeys(("steps", "batch_size", "draws"))
    for times, found in (("learned", 1), ("uniform", 0)):
        config.model.time_sampler = times
        notes = vdm.compare(config=config, **few).notes
        assert len([note for note in notes if note.startswith(f"{times} times: each")]) == found


def features(x):
    return x.reshape(len(x), -1)[:, :5].astype(float)


@pytest.mark.slow
def test_features_and_reference_of_the_users_choice():
    result = compared(features=features, reference="v_none_elbo", seeds=1, sampling_steps=(2,))
    assert result.distance == "kernel distance of features" and result.reference == "v_none_elbo"
    assert result["eps_none_elbo"]["difference"]["to"] == "v_none_elbo"


# ---------------------------------------------------------------- mistakes

WRONG = [
    ({"parameterizations": ["epz"]}, "parameterizations: unknown name 'epz'; did you mean 'eps'"),
    ({"parameterizations": []}, "parameterizations: expected some names"),
    ({"parameterizations": ["v", "v"]}, "parameterizations: expected each once, found 'v' twice"),
    ({"parameterizations": [eps()]}, "parameterizations: expected names; give own ones by name"),
    ({"parameterizations": ["mean"], "timesteps": None}, "'mean' has no finite form in continuous"),
    ({"output_scales": ["row"]}, "output_scales: unknown name 'row'; choices: none"),
    ({"weightings": ["snr"]}, "weightings: unknown name 'snr'"),
    ({"seeds": 0}, "seeds: expected at least 1, found 0"),
    ({"seeds": [1, 1]}, r"seeds: expected a number of them, or different whole ones, found \[1, 1\]"),
    ({"seeds": [-1]}, "seeds: expected a number of them"),
    ({"steps": -1}, "steps: expected a whole number of at least 0, found -1"),
    ({"batch_size": 100}, "batch_size: '4 of 5 examples' has 32 examples, less than a batch of 100"),
    ({"draws": 0}, "draws: expected a whole number of at least 1, found 0"),
    ({"bins": 0}, "bins: expected a whole number of at least 1"),
    ({"timesteps": 0}, "timesteps: expected a whole number of at least 1, found 0"),
    ({"timesteps": 10, "sampling_steps": (3,), "parameterizations": ["mean"]}, "divisors of timesteps = 10"),
    ({"base": "level"}, "base: unknown name 'level'; did you mean 'levels'"),
    ({"schedule": "cosin"}, "schedule: unknown name 'cosin'; did you mean 'cosine'"),
    ({"network": "mpl"}, "network: unknown name 'mpl'; did you mean 'mlp'"),
    ({"network": 3}, r"network: expected a name, a network with init and apply, or a callable"),
    ({"network": lambda xt, g: xt[:2]}, r"expected an output of shape \(4, 3, 3, 1\) .* found \(4, 2, 3, 1\)"),
    ({"network": lambda xt: xt}, "network: cannot be applied to xt"),
    ({"network": {"eps": Linen()}}, "network: expected one for each parameterization, 'v' is missing"),
    ({"network": (bare_init, lambda a, b, c, d: d)}, r"network: apply takes 'a', 'b', 'c', 'd', expected"),
    ({"network": "conv_encoder"}, "network: "),
    ({"data": images() + 3}, r"data: 'own data' '4 of 5 examples' has values in \[3, 6\], expected \[0, 3\]"),
    ({"data": images().astype(np.int64), "levels": None}, "has integers of type int64, expected levels=K"),
    ({"data": 300 * DATA["floats"], "levels": None}, "has a root mean square of .*, expected"),
    ({"data": np.nan * DATA["floats"], "levels": None}, "has values that are not finite"),
    ({"data": (images(), images(shape=(2, 2, 1)))}, r"one shape and type, found .*3, 3, 1\) and .*2, 2, 1\)"),
    ({"data": [images()[0], images(shape=(2, 2, 1))[0]]}, "data: expected examples of one shape"),
    ({"data": [{"label": 1}]}, r"data: expected items with an 'image' or an 'x', found \['label'\]"),
    ({"data": "digitz"}, "data.name: unknown data set 'digitz', did you mean 'digits'"),
    ({"data": images()[:3]}, "expected .* with examples"),
    ({"likelihood": "gaussian"}, "the data have 4 levels, the likelihood is of continuous values"),
    ({"gradient_batches": 1}, "gradient_batches: expected a whole number of at least 2, found 1"),
    ({"samples": 1}, "samples: expected a whole number of at least 2, found 1"),
    ({"data": "digits", "levels": 4}, "levels: 'digits' has 17 levels, found 4"),
    ({"data": ONE_NORMAL, "levels": 4}, "levels: 'mixture' has none, found 4"),
    ({"data": (images(), np.zeros(40))}, r"data: a tuple of two is \(train, test\), expected"),
    ({"network": Dropped()}, "the NNX module Dropped has state besides its parameters"),
    ({"optimizer": {"lr": 1}}, "config.optimizer: unknown field 'lr'"),
    ({"reference": "eps"}, "reference: expected one of eps_none_elbo, v_none_elbo, found 'eps'"),
    ({"schedule": "learned_linear", "weightings": ["simple"]}, "weightings: a learned .* found 'simple'"),
    (
        {"schedule": "learned_linear", "weightings": {"a": "elbo", "b": lambda log_snr, exact: exact}},
        "weightings: a learned schedule is trained on the bound, expected 'elbo' alone, found 'a', 'b'",
    ),
    ({"optimizer": {"decay_steps": 50}}, "config.optimizer.decay_steps: expected more than warmup_steps = 100"),
    ({"schedule": vdm.schedules.cosine}, "schedule: expected the name 'cosine' or what its factory returns"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
@pytest.mark.usefixtures("as_users")
def test_mistakes_are_one_line(changes, message, monkeypatch):
    from vdm_jax.comparison import experiment

    monkeypatch.setattr(experiment, "fit", lambda *args: pytest.fail("it began to train"))
    with pytest.raises(ValueError, match=message) as caught:
        compared(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("as_users")
def test_mistakes_of_another_kind():
    with pytest.raises(TypeError, match="data: expected a name, an array"):
        compared(data=7)
    with pytest.raises(ValueError, match=r"config\.model\.name: expected 'vdm'.* found 'vae'"):
        vdm.compare(config=vae_config())
    x = jnp.zeros((4, 2))
    for given, changes, message in [
        ({"epz": lambda x, g: x}, {}, "unknown name 'epz'"),
        ({"mean": lambda x, g: x}, {}, "no finite form in continuous time"),
        ({"eps": lambda x, g: x[:1]}, {}, "expected an output"),
        (3, {}, "denoisers_or_params: expected"),
        ({"eps": lambda x, g: x}, {"draws": 0}, "draws: expected a whole number of at least 1"),
        (
            {"eps": lambda x, g: x},
            {"output_scale": "unit_variance"},
            "statistics: are needed for base 'zero'",
        ),
        ({"eps": Linen()}, {}, r"expected a callable .*, or its parameters beside network="),
        ({"eps": {"w": x}}, {"network": NET}, r"denoisers_or_params\['eps'\]: cannot be applied"),
    ]:
        with pytest.raises(ValueError, match=message):
            vdm.parameterization_losses(given, x, jax.random.key(0), **changes)
    with pytest.raises(ValueError, match=r"x: expected examples \[n, \*d\], found shape \(4,\)"):
        vdm.parameterization_losses({"eps": lambda x, g: x}, x[:, 0], jax.random.key(0))


def vae_config():
    from vdm_jax.config import default_vae

    return default_vae()


@pytest.mark.slow
def test_a_run_that_is_lost_is_said():
    result = compared(
        optimizer={"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}, steps=4
    )
    assert result.skipped.sum() > 0
    assert any("were not finite and were skipped" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.plot() is not None
