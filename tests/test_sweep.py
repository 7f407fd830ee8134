"""A sweep trains, in one program, the runs that separate configs would train."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vdm_jax as vdm
from vdm_jax.config import resolve, to_dict
from vdm_jax.data import level_counts, load_dataset
from vdm_jax.models import statistics as fitting
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runs.axes import expand
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.specs import text_of
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.evaluation import Evaluation
from vdm_jax.training.layout import shardings
from vdm_jax.training.logs import read_metrics

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.py"
ROWS = ("mean", "x0", "eps", "v", "score")


def tiny(**runs):
    config = runpy.run_path(str(SMOKE))["get_config"]()
    for axis, values in runs.items():
        config.sweep[axis] = values
    config.model.network.width = 16
    config.model.network.dropout = 0.2
    config.model.timesteps = 50
    config.model.output_scale = "none"
    config.model.time_sampler = "uniform"  # learned ones are moved by rounding
    config.optimizer.warmup_steps = 2
    config.train.batch_size = 16
    config.train.steps = 20
    config.train.steps_per_dispatch = 10
    config.train.log_every = 5
    config.train.checkpoint_every = 10
    config.evaluate.draws = 1
    config.evaluate.batch_size = 297
    return config


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits")
    return dataset, fit_statistics(level_counts(dataset.train.images, dataset.levels))


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    gammas, fitting.RESIDUAL_GAMMAS = fitting.RESIDUAL_GAMMAS, np.linspace(-20.0, 12.0, 5)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    fitting.RESIDUAL_GAMMAS = gammas


def start(job, layout):
    return jax.jit(job.start, out_shardings=shardings(layout, jax.eval_shape(job.start)))()


def fit(job, digits, runner=None):
    """Train 20 steps; return the losses [20] or [20, R], the last state and the compiled steps."""
    layout = make_layout("jit")
    state = start(job, layout)
    runner = runner or dispatcher(layout, job.step(layout), state, 10)
    losses = []
    for stack in job.batches(digits[0].train, batch_size=16, start_step=0, stop_step=20, stack=10):
        state, metrics = runner(state, stack)
        losses += np.asarray(metrics["loss"]).tolist()
    return np.asarray(losses), state, runner


def assert_close(a, b):
    """Compare the norm of the difference, since Adam amplifies rounding where gradients are near zero."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    assert np.linalg.norm(x - y) < 1e-5 * np.linalg.norm(y)


@pytest.mark.slow
def test_five_parameterizations_and_two_seeds_are_ten_runs(digits):
    dataset, statistics = digits
    del dataset
    sweep = Sweep(resolve(tiny(parameterizations=ROWS, seeds=(0, 3))), statistics)
    losses, state, _ = fit(sweep, digits)
    assert losses.shape == (20, 10) and len({*losses[-1].tolist()}) == 10
    assert sweep.names[:3] == ("mean_seed0", "mean_seed3", "x0_seed0")
    runner = {}
    for i, (name, single) in enumerate(sweep.runs.items()):
        row, seed = single.model["parameterization"], single.seed
        assert name == f"{row}_seed{seed}"
        alone, single_state, runner[row] = fit(Run(single, statistics), digits, runner.get(row))
        np.testing.assert_allclose(losses[:, i], alone, rtol=1e-5, err_msg=name)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], state.params), single_state.params)


@pytest.mark.slow
def test_each_run_learns_its_times(digits):
    config = tiny(parameterizations=("eps", "v"), seeds=(0, 3))
    config.model.time_sampler = "learned"
    sweep = Sweep(resolve(config), digits[1])
    losses, state, _ = fit(sweep, digits)
    averages = np.asarray(state.model_state)
    assert len({*averages.sum(1).tolist()}) == 4
    for i, single in ((0, sweep.runs["eps_seed0"]), (3, sweep.runs["v_seed3"])):
        alone, single_state, _ = fit(Run(single, digits[1]), digits)
        np.testing.assert_allclose(losses[:, i], alone, rtol=1e-3)
        expected = single_state.model_state
        np.testing.assert_allclose(averages[i], expected, rtol=1e-2)


@pytest.mark.slow
def test_scales_weightings_and_learned_schedules_as_axes(digits):
    statistics = digits[1]
    both = tiny(
        parameterizations=("eps", "v"),
        output_scales=("none", "unit_variance"),
        weightings=("elbo", "simple"),
    )
    learned = tiny(parameterizations=("eps", "v"))
    learned.model.schedule = {"name": "learned_linear"}
    for config, variants in (
        (both, ("v_none_simple", "eps_unit_variance_elbo")),
        (learned, ("v",)),
    ):
        sweep = Sweep(resolve(config), statistics)
        losses, state, _ = fit(sweep, digits)
        for name in variants:
            i = sweep.names.index(name)
            alone, single_state, _ = fit(Run(sweep.runs[name], statistics), digits)
            np.testing.assert_allclose(losses[:, i], alone, rtol=1e-5, err_msg=name)
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], state.params), single_state.params)


def test_train_schedule_applies_to_every_run(digits):
    dataset, statistics = digits
    config = tiny(seeds=(0, 1), parameterizations=("eps", "v"))
    config.model.timesteps = None
    with config.ignore_type():
        config.model.train_schedule = {"name": "sigmoid", "start": -7.5, "end": 3.0}
    job = Sweep(resolve(config), statistics)
    state = jax.eval_shape(job.start)
    batch = next(job.batches(dataset.train, batch_size=4, start_step=0, stop_step=1))
    _, metrics = jax.eval_shape(
        job.step(make_layout("jit")), state, jax.tree.map(lambda a: a[0], batch)
    )
    assert metrics["loss"].shape == (4,)


@pytest.mark.slow
def test_learning_rates(digits):
    statistics = digits[1]
    sweep = Sweep(resolve(tiny(learning_rates=(1e-3, 4e-3))), statistics)
    losses, state, _ = fit(sweep, digits)
    assert sweep.names == ("lr0.001", "lr0.004")
    np.testing.assert_array_equal(losses[0, 0], losses[0, 1])  # before the first update
    assert losses[-1, 0] != losses[-1, 1]
    for i, single in enumerate(sweep.runs.values()):
        alone, single_state, _ = fit(Run(single, statistics), digits)
        np.testing.assert_allclose(losses[:, i], alone, rtol=1e-5)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], state.params), single_state.params)


def test_sweep_step_is_traced_once(digits, monkeypatch):
    sweep = Sweep(resolve(tiny(parameterizations=ROWS, seeds=(0, 1))), digits[1])
    traces, whole = [], sweep.model_of
    monkeypatch.setattr(sweep, "model_of", lambda s: traces.append(1) or whole(s))
    layout = make_layout("jit")
    state = start(sweep, layout)
    traces.clear()
    runner = dispatcher(layout, sweep.step(layout), state, 3)
    options = {"batch_size": 16, "start_step": 0, "stop_step": 5, "stack": 3}
    for stack in sweep.batches(digits[0].train, **options):
        state, metrics = runner(state, stack)
    assert len(traces) == 1 and metrics["loss"].shape == (2, 10)


# ---------------------------------------------------------------- a trained sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    lines = []
    folder = tmp_path_factory.mktemp("side_by_side")
    config = tiny(parameterizations=("eps", "v"), seeds=(0, 1))
    return vdm.train_sweep(config, folder, log=lines.append), lines, folder


def test_files_and_table_of_a_sweep(trained):
    runs, lines, folder = trained
    assert [*runs] == ["eps_seed0", "eps_seed1", "v_seed0", "v_seed1"]
    table = (folder / "table.md").read_text()
    assert lines[0] == table.strip()
    bounds = [runs[f"eps_seed{i}"].bits_per_dim() for i in (0, 1)]
    error = abs(bounds[0] - bounds[1]) / 2
    assert f"| eps | {np.mean(bounds):.4f} ± {error:.4f} | " in table
    assert "standard error over 2 seeds; diffusion ELBO, T = 50, 1 draw per example" in table
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert {f"{name}/bits_per_dim" for name in runs} <= rows[0].keys()
    with Image.open(folder / "curves.png") as picture:
        assert picture.size == (800, 460)


@pytest.mark.slow
def test_repeated_resumed_and_loaded_sweep(trained, tmp_path):
    runs, lines, folder = trained
    config = tiny(parameterizations=("eps", "v"), seeds=(0, 1))
    again = []
    vdm.train_sweep(config, folder, log=again.append)
    assert again == [f"already trained: {folder} is at step 20, 20 asked for", *lines]
    config.train.steps = 10
    vdm.train_sweep(config, tmp_path, log=lambda line: None)
    config.train.steps = 20
    resumed = vdm.train_sweep(config, tmp_path, log=lambda line: None)
    loaded = vdm.load_sweep(folder)
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(folder / "metrics.jsonl")
    for name, run in runs.items():
        for other in (resumed[name], loaded[name]):
            assert other.config == run.config
            assert other.config["seed"] == int(name[-1]) and other.config["sweep"]["seeds"] == []
            for a, b in zip(
                jax.tree.leaves(run.state.ema_params),
                jax.tree.leaves(other.state.ema_params),
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)
    assert isinstance(loaded["v_seed1"].evaluate(), Evaluation)
    assert loaded["v_seed1"].sample(jax.random.key(0), 2, steps=2).shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_diverging_run_leaves_the_others_alone(trained, tmp_path, capsys):
    config = tiny(learning_rates=(2e-3, 1e30))
    config.optimizer.clip_norm = None
    config.train.steps = 10
    runs = vdm.train_sweep(config, tmp_path / "run", log=lambda line: None)
    err = capsys.readouterr().err
    assert err.count("lr1e+30 is lost, the others continue") == 1
    assert np.isfinite(runs["lr0.002"].bits_per_dim())
    assert np.isnan(runs["lr1e+30"].bits_per_dim())
    assert "| lr1e+30 | nan ± nan |" in (tmp_path / "run" / "table.md").read_text()
    config.sweep.learning_rates = (1e30, 2e30)
    with pytest.raises(FloatingPointError, match="training stopped"):
        vdm.train_sweep(config, tmp_path / "all", log=lambda line: None)


# ---------------------------------------------------------------- names and mistakes


def test_axis_of_a_field_missing_from_the_config():
    settings = resolve(tiny(output_scales=("none", "unit_variance")))
    del settings.model["output_scale"]
    assert [*expand(settings)] == ["none", "unit_variance"]


def test_seeds_share_compiled_functions(trained):
    runs, _, _ = trained
    evaluators = {id(runs[f"eps_seed{i}"]._compiled[text_of(["elbo", 1])]) for i in (0, 1)}
    assert (
        len(evaluators) == 1
        and id(runs["v_seed0"]._compiled[text_of(["elbo", 1])]) not in evaluators
    )


def test_names():
    def names(**runs):
        return list(expand(resolve(tiny(**runs))))

    assert names() == [""]
    assert names(seeds=(5,)) == ["seed5"]
    assert names(parameterizations=("v",), learning_rates=(0.1, 1e-5)) == ["v_lr0.1", "v_lr1e-05"]
    single = expand(resolve(tiny(parameterizations=("v",), seeds=(7,))))["v_seed7"]
    assert single.plain == to_dict(tiny()) | {
        "seed": 7,
        "model": to_dict(tiny())["model"] | {"parameterization": "v"},
    }


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            {"seeds": (1, 2, 1)},
            r"config\.sweep\.seeds: expected each value once, found \[1, 2, 1\]",
        ),
        ({"parameterizations": ("eps", "epz")}, r"unknown name 'epz'; did you mean 'eps'"),
        ({}, r"config\.sweep: is empty"),
    ],
)
def test_mistakes(runs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vdm.train_sweep(tiny(**runs), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unsupported_axes(tmp_path):
    config = tiny(parameterizations=("eps", "mean"))
    config.model.timesteps = None
    with pytest.raises(ValueError, match="mean"):
        vdm.train_sweep(config, tmp_path / "run")
    vae = runpy.run_path(str(SMOKE.with_name("vae.py")))["get_config"]()
    vae.sweep.output_scales = ("none",)
    with pytest.raises(
        ValueError, match=r"config\.sweep\.output_scales: 'vae' has no output_scale"
    ):
        vdm.train_sweep(vae, tmp_path / "run")
    vae.sweep.output_scales, vae.sweep.parameterizations = (), ("eps",)
    with pytest.raises(ValueError, match="'vae' has no parameterization"):
        vdm.train_sweep(vae, tmp_path / "run")
    ae = runpy.run_path(str(SMOKE.with_name("ae.py")))["get_config"]()
    ae.sweep.seeds = (0, 1)
    with pytest.raises(
        ValueError, match=r"config\.sweep: runs are compared by their bounds, but an"
    ):
        vdm.train_sweep(ae, tmp_path / "run")
    with pytest.raises(ValueError, match="has values"):
        vdm.train(tiny(seeds=(0, 1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
