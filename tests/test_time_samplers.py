"""Importance sampling of times: every density has the same loss, and better densities vary less."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_times import (
    BITS,
    CHAINS,
    ENDS,
    FIRST,
    LAST,
    RUGGED,
    SHAPE,
    gaussian_model,
    keys,
    matching_density,
    moments_for,
    scaled,
    zero,
)

from vdm_jax.elbo import draw_times, training_interval
from vdm_jax.models import with_model_state
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.schedules import linear
from vdm_jax.time_samplers import TIME_SAMPLERS
from vdm_jax.time_samplers.bins import bin_edges
from vdm_jax.typing import Batch

IMPORTANT = [name for name in TIME_SAMPLERS if name != "uniform"]


def test_uniform_times_equal_draw_times_bit_by_bit():
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

    for drawn, expected in jit(lambda: [*gammas()])():
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    assert "times" not in named[None].components
    assert (
        "time sampler learned"
        in gaussian_model(scaled(zero), time_sampler={"name": "learned"}).components
    )


@pytest.mark.parametrize("timesteps", CHAINS)
def test_every_time_sampler_has_the_exact_loss_and_gradient(timesteps):
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
            state = moments_for(RUGGED, timesteps).astype(jnp.float32)
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


def test_losses_per_noise_level_include_the_weights():
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 16), jnp.float32)
    model = gaussian_model(scaled(zero), time_sampler="analytic")
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    edges = np.asarray([FIRST, 0.0, LAST])

    @jit
    def evaluate(params):
        draw, bin_losses = model.per_noise_level.draw(params, key, x), model.per_noise_level.loss
        return model.loss(params, key, x)[1], draw, bin_losses(params, key, x, edges)

    metrics, draw, by_bin = evaluate(params)
    np.testing.assert_allclose(BITS * np.mean(draw.bound.matching), metrics["matching"], rtol=1e-5)
    np.testing.assert_allclose(np.sum(by_bin), metrics["matching"], rtol=1e-5)
    # for v and F = 0: ½ γ' e^{−γ} σ² ‖F − target‖² = ½ γ' sigmoid(−γ) ‖F − target‖²
    weight = 0.5 * (LAST - FIRST) * jax.nn.sigmoid(-draw.interval.gamma_t)
    np.testing.assert_allclose(draw.bound.matching, weight * draw.squared_error, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [None, 7, 512])
def test_analytic_density_is_the_loss_of_a_zero_network(timesteps):
    for name in PARAMETERIZATIONS:
        if timesteps is None and not PARAMETERIZATIONS[name]().continuous:
            continue
        settings = {"parameterization": name, "time_sampler": {"name": "learned", "mix": 0.2}}
        model = gaussian_model(scaled(zero), timesteps, 0.3, **settings)
        moments = model.init_model_state(model.init(jax.random.key(0)))
        edges = bin_edges(64, timesteps)
        if timesteps is None:
            with jax.enable_x64(True):
                t = (np.arange(6400) + 0.5) / 6400
                expected = matching_density(name, jnp.asarray(t), None, 0.3)
            expected = np.mean(np.square(expected).reshape(64, 100), 1)
        else:
            each = matching_density(name, jnp.arange(timesteps), timesteps, 0.3) ** 2
            expected = np.add.reduceat(each, edges[:-1]) / np.diff(edges)
        np.testing.assert_allclose(moments, expected, rtol=2e-3, err_msg=name)


def test_importance_sampling_lowers_the_variance():
    """The loss of F = 0 for x_0 falls by e⁹ over the times, so that few uniform draws matter."""
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


def test_traced_parameterizations_have_their_own_times():
    names = ["x0", "v"]
    x = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32)

    def loss(row):
        model = gaussian_model(scaled(zero), parameterization=row, time_sampler="learned")
        return model.loss(model.init(jax.random.key(0)), jax.random.key(1), x)[0]

    rows = [PARAMETERIZATIONS[name]() for name in names]
    losses = jit(jax.vmap(lambda i: loss(stacked(rows, i))))(jnp.arange(2))
    np.testing.assert_allclose(losses, [jit(partial(loss, name))() for name in names], rtol=1e-5)


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
