"""Times drawn by importance: every density estimates the same loss, and the better ones vary less."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from oracles import jit

from vdm_jax.elbo import draw_times, training_interval
from vdm_jax.models import Statistics, vdm, with_model_state
from vdm_jax.nets import Network
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.schedules import linear
from vdm_jax.specs import build
from vdm_jax.time_samplers import (
    TIME_SAMPLERS,
    TimeSample,
    TrainingPath,
    bin_probabilities,
    draw_weighted,
)
from vdm_jax.time_samplers.bins import (
    GRAIN,
    best_mass,
    bin_edges,
    mean_square,
    updated_moments,
)
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import Batch, as_batch

SHAPE, DIM = (3,), 3
FIRST, LAST = -4.0, 5.0
ENDS = {"gamma_min": FIRST, "gamma_max": LAST}
MILD = {"name": "linear"} | ENDS
CHAINS = [None, 1, 7, 1000]
IMPORTANT = [name for name in TIME_SAMPLERS if name != "uniform"]
BITS = 1 / (DIM * math.log(2))
RUGGED = np.random.default_rng(0).lognormal(0, 2, 64).astype(np.float32)


def gaussian_model(network, timesteps=None, second_moment=0.5, **settings):
    settings = {"parameterization": "v", "schedule": MILD, "likelihood": "gaussian"} | settings
    statistics = Statistics(SHAPE, None, second_moment)
    return vdm(statistics, network=network, timesteps=timesteps, **settings)


def scaled(denoise):
    """`denoise` times a parameter that starts at 1."""
    return Network(
        lambda key, xt, gamma_t, extra=None: jnp.ones(()),
        lambda scale, xt, gamma_t, extra=None, keys=None: scale * jax.vmap(denoise)(xt, gamma_t),
    )


def zero(xt, gamma_t):
    return 0 * xt


def started(model, optimizer=None):
    """The train state of a model, with its model state."""
    params = jax.jit(model.init)(jax.random.key(0))
    state = model.init_model_state(params)
    return init_state(params, optimizer or adam(), jax.random.key(1), model_state=state)


def best_probabilities(moments, mix, timesteps):
    return bin_probabilities(best_mass(moments, bin_edges(len(moments), timesteps)), mix, timesteps)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


# --- densities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", CHAINS)
@pytest.mark.parametrize("moments", [RUGGED, RUGGED[:10]], ids=len)
def test_weighted_draws_have_the_mean_of_uniform_ones(moments, timesteps):
    """By quadrature over u in float64, of a function with a jump; and a chain's steps one by one."""
    n = 2**19
    with jax.enable_x64(True):
        chances = best_probabilities(_fitting(moments, timesteps), 0.1, timesteps)
        drawn = jax.jit(partial(draw_weighted, timesteps=timesteps))(
            jax.random.key(3), jnp.arange(n) / n, chances
        )
        t, weight = np.asarray(drawn.t), np.asarray(drawn.weight)
    assert np.max(weight) < 1.01 / 0.1
    if timesteps is None:
        assert t.min() >= 0 and t.max() <= 1
        found = np.mean(weight * (np.exp(-3 * t) + (t > 0.3)))
        np.testing.assert_allclose(found, (1 - math.exp(-3)) / 3 + 0.7, rtol=2e-5)
    else:
        found = np.bincount(t, weight, minlength=timesteps) / n
        np.testing.assert_allclose(found, 1 / timesteps, atol=2 * np.max(weight) / n)
    np.testing.assert_array_equal(np.bincount(drawn.bin) > 0, True)


def _fitting(moments, timesteps):
    """As many as a chain has bins."""
    count = len(bin_edges(len(moments), timesteps)) - 1
    return jnp.asarray(moments[:count], float)


def test_a_mass_of_any_type_on_bins_that_the_chain_has():
    for kind in ("int32", "float16", "float32"):
        found = bin_probabilities(jnp.asarray([1, 3], kind), 0.5, None)
        np.testing.assert_array_equal(found, [0.375, 0.625])
    with pytest.raises(ValueError, match="bins: expected at most timesteps = 2, found 3"):
        bin_probabilities(jnp.ones(3), 0.5, 2)


def test_bins_of_a_chain_are_of_whole_steps():
    for bins, timesteps in [(64, 1), (64, 7), (64, 64), (64, 1000), (3, 2**24)]:
        edges = bin_edges(bins, timesteps)
        assert edges[0] == 0 and edges[-1] == timesteps and len(edges) == min(bins, timesteps) + 1
        assert np.all(np.diff(edges) >= 1) and np.ptp(np.diff(edges)) <= 1
    np.testing.assert_allclose(bin_edges(4, None), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("timesteps", [None, 2**24])
def test_float32_reaches_all_of_a_rare_bin(timesteps):
    """Of its 2¹⁸ steps a float32 u in [0, 1) can tell 2¹³ apart."""
    chances = np.full(64, 2.0**-10, np.float32)
    chances[40] = 1 - 63 * 2.0**-10
    draw = partial(draw_weighted, probability=jnp.asarray(chances), timesteps=timesteps)
    phase = jnp.arange(2**14) / 2**14
    drawn = jit(jax.vmap(draw, (0, None)))(keys(128), phase)
    here = np.asarray(drawn.bin) == 5
    assert abs(here.mean() * 2**10 - 1) < 1e-3
    steps = np.asarray(drawn.t)[here]
    if timesteps is None:
        steps = np.floor((np.asarray(steps, np.float64) * 64 - 5) * 2**18).astype(int)
        assert steps.min() >= 0 and steps.max() < 2**18
    else:
        assert steps.min() >= 5 * 2**18 and steps.max() < 6 * 2**18
        shares = np.bincount(steps % 32, minlength=32) / steps.size
        np.testing.assert_allclose(shares, 1 / 32, atol=5 / math.sqrt(32 * 128))  # 128 keys
        np.testing.assert_allclose(
            np.mean(np.asarray(drawn.weight) * np.asarray(drawn.t, np.float64)),
            (timesteps - 1) / 2,
            rtol=1e-3,
        )
    np.testing.assert_allclose(np.mean(steps / 2**18 % 1), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn.weight[here], 2.0**10 / 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mix", [0.1, 1.0])
@pytest.mark.parametrize("timesteps", CHAINS)
def test_probabilities_are_exact_and_bounded(timesteps, mix, dtype):
    moments = _fitting(RUGGED, timesteps).astype(dtype)
    found = np.asarray(best_probabilities(moments, mix, timesteps), np.float64)
    share = np.diff(bin_edges(64, timesteps)) / (timesteps or 1)
    assert found.sum() == 1
    np.testing.assert_array_equal(found / GRAIN, np.round(found / GRAIN))
    own = np.sqrt(np.asarray(moments, np.float32)) * share
    expected = (1 - mix) * own / own.sum() + mix * share
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1.01 * GRAIN)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_moments_that_say_nothing_give_the_uniform_density(bad):
    moments = jnp.full(64, bad).at[0].set(bad)
    np.testing.assert_allclose(best_probabilities(moments, 0.1, None), 1 / 64, atol=GRAIN)
    one = jnp.ones(64).at[3].set(bad)
    assert np.all(np.isfinite(best_probabilities(one, 0.1, None)))


def test_uniform_times_are_those_of_draw_times_to_the_bit():
    phase = np.float32([0.0, 0.3, 0.31, 0.9])
    batch, key = Batch(jnp.ones((4, 3)), jnp.arange(4), jnp.asarray(phase)), jax.random.key(5)
    named, plain = {}, {}
    for T in CHAINS:
        plain[T], named[T] = (
            gaussian_model(scaled(zero), T, **chosen)
            for chosen in ({}, {"time_sampler": "uniform"})
        )
        params = named[T].init(jax.random.key(0))
        assert set(params) == {"network", "schedule"}
        programs = [str(jax.make_jaxpr(m.loss)(params, key, batch)) for m in (plain[T], named[T])]
        assert programs[0] == programs[1]

    def gammas():
        for T in CHAINS:
            times = draw_times(jax.random.split(key)[0], batch.phase, T)
            path = partial(training_interval, linear(**ENDS), {}, timesteps=T)
            yield (
                named[T].per_noise_level.draw(params, key, batch).interval,
                jax.vmap(path)(times)[0],
            )

    for found, expected in jit(lambda: [*gammas()])():
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert "times" not in named[None].components
    assert (
        "time sampler learned"
        in gaussian_model(scaled(zero), time_sampler={"name": "learned"}).components
    )


def test_the_normal_densities_are_those_of_their_papers():
    """By quadrature: the mass of each bin, and no more than 1/mix of any weight."""
    path = TrainingPath(None, lambda t: FIRST + (LAST - FIRST) * t, jnp.ones_like)
    n = 2**16
    cases = {
        "logit_normal": (lambda t: np.log(t / (1 - t)), 0.4, 0.7),
        "lognormal_sigma": (lambda t: 0.5 * (FIRST + (LAST - FIRST) * t), -0.3, 0.8),
    }
    for name, (of, mean, deviation) in cases.items():
        spec = {"name": name, "mean": mean, "deviation": deviation, "bins": 32, "mix": 0.2}
        sampler = build(TIME_SAMPLERS, spec)
        assert sampler.init(path) is None
        drawn = jit(partial(sampler.sample, None, path))(jax.random.key(0), jnp.arange(n) / n)
        middle = (np.arange(32 * 1000) + 0.5) / (32 * 1000)
        z = (of(middle) - mean) / deviation
        # density of t: that of the normal variable times its slope
        density = np.exp(-0.5 * z**2) * np.gradient(of(middle), middle)
        mass = density.reshape(32, 1000).sum(1)
        expected = 0.8 * mass / mass.sum() + 0.2 / 32
        found = np.bincount(drawn.bin, minlength=32) / n
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=name)
        assert np.max(drawn.weight) < 1.01 / 0.2


# --- the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", CHAINS)
def test_every_way_to_draw_has_the_loss_and_the_gradient_of_the_closed_form(timesteps):
    law, n = oracles.gaussian(SHAPE), 600
    x0 = law.sample(0, 4)
    row = PARAMETERIZATIONS["v"]()
    network = scaled(law.network(row, oracles.interval_of_step(None)))
    x = jnp.asarray(np.tile(x0, (8, 1)), jnp.float32)
    if timesteps is None:
        exact = oracles.matching_continuous(law, FIRST, LAST, x0).mean()
    else:
        exact = oracles.matching(law, np.linspace(FIRST, LAST, timesteps + 1), x0).mean()
    slopes = {}
    for name in TIME_SAMPLERS:
        model = gaussian_model(network, timesteps, time_sampler=name)
        params = model.init(jax.random.key(0))
        if model.init_model_state(params) is not None:
            state = _fitting(RUGGED, timesteps).astype(jnp.float32)
            model = with_model_state(model, state)

        @jit
        @partial(jax.vmap, in_axes=(None, 0))
        def run(params, key, model=model):
            (_, metrics), slope = jax.value_and_grad(model.loss, has_aux=True)(params, key, x)
            return metrics, slope["network"]

        metrics, slope = run(params, keys(n))
        matching = np.asarray(metrics["matching"], np.float64) / BITS
        error = oracles.standard_error(matching)
        assert error < 0.05 * exact
        assert abs(matching.mean() - exact) < 4.5 * error, name
        parts = sum(metrics[part] for part in ("reconstruction", "matching", "prior"))
        for total in ("bits_per_dim", "loss"):
            np.testing.assert_allclose(metrics[total], parts, rtol=1e-5, atol=1e-6)
        slopes[name] = np.asarray(slope, np.float64)
    for name in IMPORTANT:
        both = slopes[name], slopes["uniform"]
        error = math.hypot(*map(oracles.standard_error, both))
        assert abs(both[0].mean() - both[1].mean()) < 4.5 * error, name


def test_what_is_split_by_noise_counts_the_weights():
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 16), jnp.float32)
    model = gaussian_model(scaled(zero), time_sampler="analytic")
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    edges = np.asarray([FIRST, 0.0, LAST])

    @jit
    def found(params):
        one, by_noise = model.per_noise_level.draw(params, key, x), model.per_noise_level.loss
        return model.loss(params, key, x)[1], one, by_noise(params, key, x, edges)

    metrics, one, by_bin = found(params)
    np.testing.assert_allclose(BITS * np.mean(one.bound.matching), metrics["matching"], rtol=1e-5)
    np.testing.assert_allclose(np.sum(by_bin), metrics["matching"], rtol=1e-5)
    # of v, F = 0: ½ γ' e^{−γ} σ² ‖F − target‖² = ½ γ' sigmoid(−γ) ‖F − target‖²
    weight = 0.5 * (LAST - FIRST) * jax.nn.sigmoid(-one.interval.gamma_t)
    np.testing.assert_allclose(one.bound.matching, weight * one.squared_error, rtol=1e-5)


def matching_density(name, t, timesteps, second_moment):
    """E of the matching term of F = 0 per dimension, float64."""
    with jax.enable_x64(True):
        row, path = PARAMETERIZATIONS[name](), linear(**ENDS)
        step, rate = jax.vmap(lambda t: training_interval(path, {}, t, timesteps))(t)
        out, target = row(step).out, row.target(step)
        square = out**2 * (second_moment * target.x0**2 + target.eps**2)
        return np.asarray(0.5 * rate * jnp.exp(-step.gamma_t) * square)


@pytest.mark.parametrize("timesteps", [None, 7, 512])
def test_analytic_density_is_the_quadrature_of_the_loss_of_a_zero_network(timesteps):
    for name in PARAMETERIZATIONS:
        if timesteps is None and not PARAMETERIZATIONS[name]().continuous:
            continue
        settings = {"parameterization": name, "time_sampler": {"name": "learned", "mix": 0.2}}
        model = gaussian_model(scaled(zero), timesteps, 0.3, **settings)
        found = model.init_model_state(model.init(jax.random.key(0)))
        edges = bin_edges(64, timesteps)
        if timesteps is None:
            with jax.enable_x64(True):
                t = (np.arange(6400) + 0.5) / 6400
                expected = matching_density(name, jnp.asarray(t), None, 0.3)
            expected = np.mean(np.square(expected).reshape(64, 100), 1)
        else:
            each = matching_density(name, jnp.arange(timesteps), timesteps, 0.3) ** 2
            expected = np.add.reduceat(each, edges[:-1]) / np.diff(edges)
        np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=name)


def test_densities_of_a_network_that_predicts_nothing_vary_less():
    """F = 0 for x_0: the loss falls by e⁹ over the times, and so few draws matter."""
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 16), jnp.float32)
    spread = {}
    names = ["uniform", "analytic", "learned"]
    for name in names:
        model = gaussian_model(scaled(zero), parameterization="x0", time_sampler=name)
        params = model.init(jax.random.key(0))
        loss = jit(jax.vmap(model.loss, (None, 0, None)))
        values = np.asarray(loss(params, keys(400), x)[0], np.float64)
        spread[name] = values.std(), values.mean(), oracles.standard_error(values)
    for name in names[1:]:
        assert spread[name][0] < 0.3 * spread["uniform"][0]
        error = math.hypot(spread[name][2], spread["uniform"][2])
        assert abs(spread[name][1] - spread["uniform"][1]) < 4.5 * error


def test_rows_that_are_chosen_by_a_traced_index_have_their_own_times():
    names = ["x0", "v"]
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32)

    def loss(row):
        model = gaussian_model(scaled(zero), parameterization=row, time_sampler="learned")
        return model.loss(model.init(jax.random.key(0)), jax.random.key(1), x)[0]

    rows = [PARAMETERIZATIONS[name]() for name in names]
    found = jit(jax.vmap(lambda i: loss(stacked(rows, i))))(jnp.arange(2))
    np.testing.assert_allclose(found, [jit(partial(loss, name))() for name in names], rtol=1e-5)


# --- running averages ------------------------------------------------------------------------------------


def adam(**changes):
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "decay_steps": None, "decay_to": 0.0}
    settings |= {"weight_decay": 0.1, "b1": 0.9, "b2": 0.99, "clip_norm": 0.1, "accumulate": 1}
    return make_optimizer(**settings | changes)[0]


def test_averages_move_towards_the_squared_losses():
    chances = jnp.asarray([0.5, 0.25, 0.125, 0.125])
    moments, loss = jnp.asarray([1.0, 2.0, 3.0, 4.0]), jnp.asarray([5.0, 6.0, 1.0])
    bin = jnp.asarray([1, 1, 3])
    drawn = TimeSample(jnp.zeros(3), jnp.ones(3), bin, chances[bin])
    after = updated_moments(moments, drawn, loss, 0.1)
    expected = 0.1 / 3 * np.array([0, (25 - 2 + 36 - 2) / 0.25, 0, (1 - 4) / 0.25])
    np.testing.assert_allclose(after - moments, expected, rtol=1e-5)
    losses = jnp.asarray([np.inf, 1e30, 1.0])
    for scale in (1.0, 1e30):
        assert np.all(np.isfinite(updated_moments(scale * moments, drawn, losses, 0.1)))
    # an average below zero, which one draw too many may leave, counts as zero
    below = updated_moments(-moments, drawn, loss, 0.1)
    np.testing.assert_allclose(below, updated_moments(0 * moments, drawn, loss, 0.1), rtol=1e-6)


def test_large_losses_are_trained_on():
    """Those of an unscaled `mean` output near the data, where its targets are of order 1e-3."""
    x = jnp.ones((8, *SHAPE))
    found = {}
    for times in TIME_SAMPLERS:
        settings = {"parameterization": "mean", "time_sampler": times}
        settings["schedule"] = {"name": "linear", "gamma_min": -13.3, "gamma_max": 5.0}
        model = gaussian_model(scaled(zero), 1000, **settings)
        state = started(model, optax.sgd(1e-30))
        run = jit(make_step(model.loss, optax.sgd(1e-30)))
        for _ in range(2):
            state, metrics = run(state, x)
        assert metrics["skipped"] == 0
        found[times] = metrics["loss"]
    assert min(found.values()) > 1e7


def test_averages_recover_from_large_steps():
    """One example a batch, and a rate for many: a draw moves the average of its bin past what it saw."""
    x = jnp.ones((1, *SHAPE))
    times = {"name": "learned", "bins": 16, "rate": 0.5}
    model = gaussian_model(scaled(zero), parameterization="x0", time_sampler=times)
    state = started(model, optax.set_to_zero())
    step = make_step(model.loss, optax.set_to_zero())

    def body(state, _):
        state, metrics = step(state, x)
        return state, (state.model_state, metrics["loss"])

    _, (history, losses) = jit(lambda s: jax.lax.scan(body, s, length=500))(state)
    assert np.all(np.asarray(history).max(0) > 0) and np.all(np.isfinite(losses))
    # never far below zero: what lies there counts as zero
    assert np.min(history) > -np.max(history)


@pytest.mark.parametrize("timesteps", [None, 100])
def test_learned_estimates_converge_to_the_second_moments(timesteps):
    """From a start that is 25 times too high; of F = 0 for x_0 they are known."""
    x = jnp.ones((16, *SHAPE))
    settings = {
        "parameterization": "x0",
        "time_sampler": {"name": "learned", "bins": 8, "rate": 0.05},
    }
    model = gaussian_model(scaled(zero), timesteps, 5.0, **settings)
    # nothing to train: only the estimates move
    optimizer = optax.set_to_zero()
    step = make_step(model.loss, optimizer)
    state = started(model, optimizer)
    start = np.asarray(state.model_state)

    def body(state, _):
        state, metrics = step(state, x)
        return state, (state.model_state, metrics)

    state, (history, metrics) = jit(lambda s: jax.lax.scan(body, s, length=4000))(state)
    if timesteps is None:
        with jax.enable_x64(True):
            t = jnp.asarray((np.arange(800) + 0.5) / 800)
            each = matching_density("x0", t, None, 1.0) ** 2
        expected = each.reshape(8, 100).mean(1)
    else:
        each = matching_density("x0", jnp.arange(100), 100, 1.0) ** 2
        expected = np.add.reduceat(each, bin_edges(8, 100)[:-1]) / np.diff(bin_edges(8, 100))
    np.testing.assert_allclose(start / expected, 25, rtol=0.05)
    found = np.asarray(history, np.float64)
    assert np.all(found > 0)
    np.testing.assert_allclose(found[2000:].mean(0), expected, rtol=0.06)
    # with them the loss hardly varies any more
    late = np.asarray(metrics["matching"], np.float64)[2000:]
    assert late.std() < 0.2 * late.mean()
    assert abs(late.mean() - BITS * DIM * np.sqrt(each).mean()) < 5 * oracles.standard_error(late)


def learned_run(**changes):
    network = Network(
        lambda key, xt, gamma_t, extra=None: {
            "w": jax.random.normal(key, (3, 3)),
            "b": jnp.ones(3),
        },
        lambda p, xt, gamma_t, extra=None, keys=None: jnp.tanh(xt @ p["w"]) + p["b"][None],
    )
    model = gaussian_model(network, time_sampler="learned")
    optimizer = adam(**changes)
    return model, optimizer, started(model, optimizer)


def test_the_optimizer_does_not_see_the_averages():
    model, optimizer, state = learned_run()
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32)
    after, metrics = jit(make_step(model.loss, optimizer))(state, x)
    fixed = with_model_state(model, state.model_state)
    gradient = jit(jax.grad(lambda p, key: fixed.loss(p, key, x)[0]))(
        state.params, jax.random.fold_in(state.key, 0)
    )
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    updates, _ = optimizer.update(gradient, optimizer.init(state.params), state.params)
    expected = optax.apply_updates(state.params, updates)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.params, expected)
    assert np.any(np.asarray(after.model_state) != np.asarray(state.model_state))


def test_a_model_without_its_state_draws_by_the_first_density():
    model, _, state = learned_run()
    x, key = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32), jax.random.key(2)
    value, metrics = jit(model.loss)(state.params, key, x)
    expected, (same, _) = jit(model.loss)(state.params, key, x, state.model_state)
    assert value == expected and metrics["loss"] == same["loss"]
    moved, _ = jit(model.loss)(state.params, key, x, jnp.asarray(RUGGED))
    assert moved != value
    bound = with_model_state(model, jnp.asarray(RUGGED)).per_noise_level
    assert bound is not None and model.per_noise_level is not None
    edges = np.asarray([FIRST, LAST])
    by_bin = [jit(p.loss)(state.params, key, x, edges) for p in (bound, model.per_noise_level)]
    np.testing.assert_allclose(by_bin[1], metrics["matching"], rtol=1e-4)
    assert by_bin[0] != by_bin[1]


def test_averages_move_with_every_batch_of_an_accumulated_update_and_not_with_a_bad_one():
    model, optimizer, state = learned_run(accumulate=2)
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32)
    step = jit(make_step(model.loss, optimizer))
    first, _ = step(state, x)
    jax.tree.map(np.testing.assert_array_equal, first.params["network"], state.params["network"])
    assert np.any(np.asarray(first.model_state) != np.asarray(state.model_state))
    second, _ = step(first, x)
    assert any(
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(second.params["network"]),
            jax.tree.leaves(first.params["network"]),
            strict=True,
        )
    )
    bad, metrics = step(first, x * jnp.nan)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, bad.params, first.params)
    jax.tree.map(np.testing.assert_array_equal, bad.opt_state, first.opt_state)
    np.testing.assert_array_equal(bad.model_state, first.model_state)


def test_a_divided_batch_moves_the_averages_as_the_whole_one_does():
    model, optimizer, state = learned_run()
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 16), jnp.float32)
    whole, metrics = jit(make_step(model.loss, optimizer))(state, x)
    parts = jax.tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), as_batch(x))
    step = make_step(model.loss, optimizer, axis_name="parts")
    divided, others = jit(jax.vmap(step, (None, 0), axis_name="parts"))(state, parts)
    for i in range(4):
        part = jax.tree.map(lambda leaf, i=i: leaf[i], (divided.params, divided.model_state))
        close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, part, (whole.params, whole.model_state))
        np.testing.assert_allclose(others["loss"][i], metrics["loss"], rtol=1e-5)


def test_mean_square_is_of_each_bin():
    found = mean_square(lambda t: 3 * t, 4, None)
    low, high = np.arange(4) / 4, np.arange(1, 5) / 4
    np.testing.assert_allclose(found, 9 * (high**3 - low**3) / 3 * 4, rtol=0.01)
    np.testing.assert_allclose(mean_square(lambda i: 1.0 * i, 64, 5), np.arange(5) ** 2)
    assert np.all(np.isfinite(mean_square(lambda t: 1e30 * (1 + t), 4, None)))


# --- configs and mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("analitic", "unknown name 'analitic'; did you mean 'analytic'"),
        ({"name": "analytic", "bins": 0}, "bins: expected a whole number in .*, found 0"),
        ({"name": "learned", "bins": 2**25}, r"bins: expected .* found 33554432"),
        ({"name": "analytic", "mix": -0.1}, r"mix: expected a number in \(0, 1\], found -0.1"),
        ({"name": "analytic", "mix": 0.0}, r"mix: .* in \(0, 1\], found 0.0"),
        ({"name": "analytic", "mix": 1e-4}, "mix: expected at least bins / 2.* found 0.0001"),
        ({"name": "learned", "rate": 0.0}, r"rate: expected a number in \(0, 1\], found 0.0"),
        ({"name": "uniform", "bins": 3}, "'uniform' has no argument 'bins'"),
        (
            {"name": "logit_normal", "deviation": 0.0},
            "deviation: expected a number above 0, found 0",
        ),
        (
            {"name": "lognormal_sigma", "mean": math.inf},
            "mean: expected a finite number, found inf",
        ),
        (None, "expected a name"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_with_their_place(times, message, as_users):
    with pytest.raises(ValueError, match=rf"^time_sampler(: |\.){message}") as error:
        gaussian_model(scaled(zero), time_sampler=times)
    assert "\n" not in str(error.value)
