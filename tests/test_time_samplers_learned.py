"""Learned times: running averages of the squared losses, moved by every step outside the optimizer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from oracles import jit
from small_times import (
    BITS,
    DIM,
    FIRST,
    LAST,
    RUGGED,
    SHAPE,
    gaussian_model,
    matching_density,
    scaled,
    zero,
)

from vdm_jax.models import with_model_state
from vdm_jax.nets import Network
from vdm_jax.time_samplers import TIME_SAMPLERS, TimeSample
from vdm_jax.time_samplers.bins import bin_edges, updated_moments
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import as_batch


def started(model, optimizer=None):
    """Return the train state of a model, with its model state."""
    params = jax.jit(model.init)(jax.random.key(0))
    state = model.init_model_state(params)
    return init_state(params, optimizer or adam(), jax.random.key(1), model_state=state)


def adam(**changes):
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "decay_steps": None, "decay_to": 0.0}
    settings |= {"weight_decay": 0.1, "b1": 0.9, "b2": 0.99, "clip_norm": 0.1, "accumulate": 1}
    return make_optimizer(**settings | changes)[0]


def test_averages_move_towards_the_squared_losses():
    probabilities = jnp.asarray([0.5, 0.25, 0.125, 0.125])
    moments, loss = jnp.asarray([1.0, 2.0, 3.0, 4.0]), jnp.asarray([5.0, 6.0, 1.0])
    bin = jnp.asarray([1, 1, 3])
    drawn = TimeSample(jnp.zeros(3), jnp.ones(3), bin, probabilities[bin])
    after = updated_moments(moments, drawn, loss, 0.1)
    expected = 0.1 / 3 * np.array([0, (25 - 2 + 36 - 2) / 0.25, 0, (1 - 4) / 0.25])
    np.testing.assert_allclose(after - moments, expected, rtol=1e-5)
    losses = jnp.asarray([np.inf, 1e30, 1.0])
    for scale in (1.0, 1e30):
        assert np.all(np.isfinite(updated_moments(scale * moments, drawn, losses, 0.1)))
    # a single draw may leave an average below zero, which counts as zero
    below = updated_moments(-moments, drawn, loss, 0.1)
    np.testing.assert_allclose(below, updated_moments(0 * moments, drawn, loss, 0.1), rtol=1e-6)


def test_large_losses_are_trained_on():
    """An unscaled `mean` output has large losses near the data, where its targets are of order 1e-3."""
    x = jnp.ones((8, *SHAPE))
    losses = {}
    for times in TIME_SAMPLERS:
        settings = {"parameterization": "mean", "time_sampler": times}
        settings["schedule"] = {"name": "linear", "gamma_min": -13.3, "gamma_max": 5.0}
        model = gaussian_model(scaled(zero), 1000, **settings)
        state = started(model, optax.sgd(1e-30))
        run = jit(make_step(model.loss, optax.sgd(1e-30)))
        for _ in range(2):
            state, metrics = run(state, x)
        assert metrics["skipped"] == 0
        losses[times] = metrics["loss"]
    assert min(losses.values()) > 1e7


def test_averages_recover_from_large_steps():
    """With one example per batch and a high rate, a draw moves the average of its bin past its own loss."""
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
    # never far below zero, and negative averages count as zero
    assert np.min(history) > -np.max(history)


@pytest.mark.parametrize("timesteps", [None, 100])
def test_learned_estimates_converge_to_the_second_moments(timesteps):
    """The estimates start 25 times too high; the second moments of F = 0 for x_0 are known."""
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
    estimates = np.asarray(history, np.float64)
    assert np.all(estimates > 0)
    np.testing.assert_allclose(estimates[2000:].mean(0), expected, rtol=0.06)
    # under these estimates the loss hardly varies
    late = np.asarray(metrics["matching"], np.float64)[2000:]
    assert late.std() < 0.2 * late.mean()
    assert abs(late.mean() - BITS * DIM * np.sqrt(each).mean()) < 5 * oracles.standard_error(late)


# --- averages in the training step -------------------------------------------------------------------


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


def test_averages_move_in_accumulated_but_not_skipped_steps():
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


def test_averages_are_the_same_for_a_divided_batch():
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
