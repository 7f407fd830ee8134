"""A comparison accepts networks, data, configs and options of a user."""

import json

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from prepared import write_tfds
from small_comparison import (
    FAST,
    FLOATS,
    NET,
    Linen,
    bare_init,
    compare_small,
    images,
    set_up,
)
from thinned import weekly_except

import vdm_jax as vdm
from vdm_jax.config import default

pytestmark = pytest.mark.usefixtures("without_optimizations")


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


def defaulted_apply(params, x, noise=None, *, extra=None):
    assert noise is not None
    del extra
    return params["w"][0, 0] * x * noise[:, None, None, None]


class WithExtra(eqx.Module):
    scale: jax.Array

    def __call__(self, xt, gamma_t, extra):
        return self.scale * (xt - extra) * gamma_t


def bare_apply(params, xt, gamma_t, extra):
    del gamma_t
    return (extra.reshape(len(xt), -1) @ params["w"]).reshape(xt.shape)


NETWORKS = {
    "linen": Linen(),
    "equinox": Equinox(eqx.nn.Linear(10, 9, key=jax.random.key(0))),
    "nnx": Nnx(),
    "bare": (bare_init, bare_apply),
    "defaults": (bare_init, defaulted_apply),
    "extra": WithExtra(jnp.asarray(0.1)),
    "network": vdm.nets.mlp(width=4, depth=1),
    "config": ConfigDict({"name": "mlp", "width": 4, "depth": 1}),
}


@pytest.mark.parametrize("name", weekly_except(("linen", "defaults"), NETWORKS))
@pytest.mark.slow
def test_custom_networks_are_trained(name):
    few = {"network": NETWORKS[name], "parameterizations": ("v",), "seeds": 1}
    result = compare_small(steps=3, **few)
    assert [*result] == ["v_none_elbo"] and not result.skipped.any()
    assert (result.bits_per_dim != compare_small(steps=0, **few).bits_per_dim).all()


@pytest.mark.slow
def test_networks_without_training_are_reported(tmp_path):
    hidden = jax.vmap(Equinox(eqx.nn.Linear(10, 9, key=jax.random.key(0))))
    result = compare_small(network=lambda xt, g: hidden(xt[None], g[None])[0])
    assert "the network has no parameters, so that nothing was trained" in result.table()
    assert "nothing was trained" in result.about["training"]
    result.save(tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["training"] == {"steps": [], "bits_per_dim": {name: [[], []] for name in result}}
    given = compare_small(network=NETWORKS["equinox"], steps=1)
    assert "seeds differ in data and noise only" in given.table()


@pytest.mark.slow
def test_skipped_steps_are_reported():
    result = compare_small(
        optimizer={"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}, steps=4
    )
    assert result.skipped.sum() > 0
    assert any("were not finite and were skipped" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.plot() is not None


# --- data --------------------------------------------------------------------------------------------

DATA = {
    "floats": FLOATS,
    "jax": jax.random.normal(jax.random.key(0), (40, 3)),
    "pair": (images(30), images(12)),
    "booleans": images(levels=2).astype(bool),
    "grain": grain.MapDataset.source(list(images(30))),
    "labelled": [(x, 0) for x in images(30)],
    "dictionaries": grain.MapDataset.source([{"image": x, "label": 0} for x in images(30)]),
    "mixture": vdm.Mixture.of([1.0], [[0.2, 0.0]], [[0.5, 0.3]]),
}


@pytest.mark.parametrize("name", weekly_except(("floats", "mixture"), DATA))
@pytest.mark.slow
def test_custom_data(name):
    levels = 4 if name in ("pair", "grain", "labelled", "dictionaries") else None
    few = {"seeds": 1, "parameterizations": ("v",), "samples": 20, "sampling_steps": (2,)}
    result = compare_small(data=DATA[name], levels=levels, **few)
    assert np.isfinite(result.bits_per_dim).all() and np.isfinite(result.quality[2]).all()
    assert ("moments" in result.distance) == (name in ("floats", "jax", "mixture"))
    if name == "mixture":
        assert "exact moments" in result.distance and result.plot_samples() is not None
        assert result.real < 1  # 20 draws


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
def test_double_precision():
    with jax.enable_x64(True):
        result = compare_small(data=FLOATS, levels=None, seeds=1, sampling_steps=(2,))
        assert np.isfinite(result.bits_per_dim).all()


# --- configs and options -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.weekly
def test_numpy_integers_and_learned_schedules(tmp_path):
    few = {
        "seeds": np.arange(2),
        "steps": np.int64(2),
        "timesteps": np.int64(20),
        "levels": np.int64(4),
    }
    result = compare_small(schedule="learned_linear", **few)
    result.save(tmp_path)
    params = {
        row: jax.tree.map(lambda leaf, i=i: leaf[i, 0], result.params)
        for i, row in enumerate(("eps", "v"))
    }
    losses = vdm.parameterization_losses(
        {row: trained["network"] for row, trained in params.items()},
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
    built = set_up(schedule="learned_linear", weightings=None)
    assert [*built.components["weightings"]] == ["elbo"]
    assert [*set_up(weightings=None).components["weightings"]] == ["elbo", "simple"]
    weightings = {"mine": lambda log_snr, exact: exact}
    assert [*set_up(schedule="learned_linear", weightings=weightings).components["weightings"]] == [
        "mine"
    ]


@pytest.mark.parametrize(
    ("steps", "options", "decay"),
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
@pytest.mark.weekly
def test_the_decay_ends_with_the_steps(steps, options, decay):
    optimizer = set_up(steps=steps, optimizer=options).sweep.settings.optimizer
    assert optimizer.decay_steps == decay and vars(optimizer).items() >= options.items()


def with_times(times):
    config = default()
    config.model.base, config.model.time_sampler = "levels", times
    return config


@pytest.mark.slow
def test_the_error_of_the_base_is_measured_where_needed():
    residuals = [
        set_up(output_scales=output_scales, config=with_times(times)).sweep.statistics.residual
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


def test_missing_config_fields_take_the_models_defaults():
    config = default()
    config.model = ConfigDict({"name": "vdm", "network": dict(NET)})
    few = dict.fromkeys(
        ("parameterizations", "output_scales", "weightings", "timesteps", "data", "levels")
    )
    few |= dict.fromkeys(("seeds", "network", "steps", "batch_size", "draws")) | {"timesteps": ...}
    built = set_up(config, **few)
    assert built.about["timesteps"] is None and "base zero" in built.about["components"]
    assert [[*part] for part in built.components.values()] == [["eps"], ["none"], ["elbo"]]


@pytest.mark.slow
@pytest.mark.weekly
def test_times_not_shared_by_variants_are_noted():
    config = default()
    config.model.network = {"name": "mlp", "width": 4, "depth": 1}
    config.train.steps, config.evaluate.draws, config.model.base = 1, 1, "levels"
    few = FAST | dict.fromkeys(("steps", "batch_size", "draws"))
    for times, count in (("learned", 1), ("uniform", 0)):
        config.model.time_sampler = times
        notes = vdm.compare(config=config, **few).notes
        assert len([note for note in notes if note.startswith(f"{times} times: each")]) == count


def features(x):
    return x.reshape(len(x), -1)[:, :5].astype(float)


@pytest.mark.slow
def test_custom_features_reference_and_solver():
    solver = {"sampler": {"name": "dpm_solver_pp", "order": 3}, "grid": "karras"}
    result = compare_small(
        features=features, reference="v_none_elbo", seeds=1, sampling_steps=(2,), **solver
    )
    assert "samples by dpm_solver_pp(order=3) on the grid karras" in result.notes
    default = compare_small(seeds=1, sampling_steps=(2,))
    assert np.any(default.samples[2] != result.samples[2])
    assert result.distance == "kernel distance of features" and result.reference == "v_none_elbo"
    assert result["eps_none_elbo"]["difference"]["to"] == "v_none_elbo"
