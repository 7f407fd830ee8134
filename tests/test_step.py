"""The training step: pure, compiled once, equal under every transformation; its average and optimizer."""

import collections
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.training.optimizer import OPTIMIZERS, make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import Batch

SGD = optax.sgd(0.1)
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)  # a plain array is a batch, too


def user_loss(params, key, x):
    """Return the loss of a regression whose target is drawn at each step."""
    target = jax.random.normal(key, ())
    value = jnp.mean(jnp.square(x @ params["w"] + params["b"] - target))
    return value, {"loss": value, "target": target}


def start(optimizer=SGD, seed=0):
    return init_state({"w": jnp.ones(3), "b": jnp.zeros(())}, optimizer, jax.random.key(seed))


def plain(state):
    return state._replace(key=jax.random.key_data(state.key))


def assert_close(a, b, rtol=1e-6, atol=1e-7):
    a, b = jax.tree.leaves(plain(a)), jax.tree.leaves(plain(b))
    for first, second in zip(a, b, strict=True):
        assert first.dtype == second.dtype and first.shape == second.shape
        np.testing.assert_allclose(first, second, rtol=rtol, atol=atol)


def singles(step, state, n):
    rows = []
    for _ in range(n):
        state, metrics = step(state, X)
        rows.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *rows)


def test_step_is_pure_and_correct():
    state = start()
    before = [np.array(leaf) for leaf in jax.tree.leaves(plain(state))]
    step = make_step(user_loss, SGD)
    after, metrics = step(state, X)
    for leaf, old in zip(jax.tree.leaves(plain(state)), before, strict=True):
        np.testing.assert_array_equal(leaf, old)
    again, _ = step(state, X)
    for leaf, other in zip(*map(jax.tree.leaves, (plain(after), plain(again))), strict=True):
        np.testing.assert_array_equal(leaf, other)

    target = float(jax.random.normal(jax.random.fold_in(state.key, 0), ()))
    residual = X.astype(np.float64).sum(1) - target
    grad_w, grad_b = 2 * residual @ X / 8, 2 * residual.mean()
    np.testing.assert_allclose(after.params["w"], 1 - 0.1 * grad_w, rtol=1e-5)
    np.testing.assert_allclose(after.params["b"], -0.1 * grad_b, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.hypot(np.linalg.norm(grad_w), grad_b), 1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(residual**2), rtol=1e-5)
    assert int(after.step) == 1 and after.key == state.key


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.polyak_sgd(),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    ],
)
def test_optimizers_receive_the_loss(optimizer):
    """The update equals that of a plain optax loop, also beside a model state."""
    step, state = jax.jit(make_step(user_loss, optimizer)), start(optimizer)
    key = jax.random.fold_in(state.key, 0)
    (value, _), grads = jax.value_and_grad(user_loss, has_aux=True)(state.params, key, X)
    updates, _ = optimizer.update(
        grads, optimizer.init(state.params), state.params, value=value, grad=grads
    )
    after, _ = step(state, X)
    expected = optax.apply_updates(state.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.params, expected)

    def counting(params, key, x, count):
        value, metrics = user_loss(params, key, x)
        return value, (metrics, count + 1.0)

    both = init_state(state.params, optimizer, jax.random.key(0), model_state=jnp.zeros(()))
    both, metrics = jax.jit(make_step(counting, optimizer))(both, X)
    assert float(both.model_state) == 1.0 and "target" in metrics
    np.testing.assert_allclose(both.params["w"], expected["w"], rtol=1e-6)


def test_each_step_and_seed_has_its_own_randomness():
    _, metrics = singles(make_step(user_loss, SGD), start(), 3)
    _, others = singles(make_step(user_loss, SGD), start(seed=1), 3)
    drawn = np.concatenate([metrics["target"], others["target"]])
    assert len(set(drawn.tolist())) == 6


@pytest.mark.parametrize("weak", [False, True])
def test_compiles_once(weak):
    traces, fill = [], 0.5 if weak else np.float32(0.5)
    params = {"w": jnp.full((3,), fill), "b": jnp.zeros(())}
    assert jax.typeof(params["w"]).weak_type == weak
    optimizer = optax.inject_hyperparams(optax.adam)(0.1)

    def counted(params, key, x):
        traces.append(x.shape)
        return user_loss(params, key, x)

    step = jax.jit(make_step(counted, optimizer, ema_warmup=True))
    state = jax.jit(lambda: init_state(params, optimizer, jax.random.key(0)))()
    for _ in range(5):
        state, _ = step(state, X)
    assert len(traces) == 1


def test_jit_scan_and_vmap_give_the_numbers_of_single_steps():
    optimizer = optax.adam(0.1)
    step = make_step(user_loss, optimizer, ema_decay=0.9)
    state, rows = singles(step, start(optimizer), 4)
    jitted, jitted_rows = singles(jax.jit(step), start(optimizer), 4)
    assert_close(jitted, state)
    scanned, scanned_rows = jax.jit(lambda s: jax.lax.scan(step, s, jnp.stack([X] * 4)))(
        start(optimizer)
    )
    assert_close(scanned, state)
    for other in (jitted_rows, scanned_rows):
        assert other.keys() == rows.keys()
        for name in rows:
            np.testing.assert_allclose(other[name], rows[name], rtol=1e-6)

    seeds = jnp.arange(3)
    stacked = jax.vmap(lambda seed: start(optimizer, seed))(seeds)
    for _ in range(4):
        stacked, _ = jax.jit(jax.vmap(step, (0, None)))(stacked, X)
    for i in range(3):
        alone, _ = singles(step, start(optimizer, i), 4)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), alone)


def test_an_axis_equals_the_full_batch():
    full, full_metrics = make_step(user_loss, SGD)(start(), X)
    step = make_step(user_loss, SGD, axis_name="devices")
    parts, metrics = jax.vmap(step, (None, 0), axis_name="devices")(start(), X.reshape(4, 2, 3))
    for i in range(4):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], parts), full)
        for name in full_metrics:
            np.testing.assert_allclose(metrics[name][i], full_metrics[name], rtol=1e-6)


def test_an_axis_equals_the_full_batch_of_a_model():
    """Times and noise depend on the place in the global batch, not on the axis."""
    network = Network(
        init=lambda key, xt, gamma_t, extra=None: {"w": jnp.ones(())},
        apply=lambda params, xt, gamma_t, extra=None, keys=None: params["w"] * xt,
    )
    model = vdm(Statistics((2,), None), network=network, likelihood="gaussian")
    index = np.arange(8, dtype=np.int32)
    batch = Batch(np.linspace(-1, 1, 16).reshape(8, 2), index, (index / 8).astype(np.float32))
    state = init_state(model.init(jax.random.key(0)), SGD, jax.random.key(1))
    full, full_metrics = jax.jit(make_step(model.loss, SGD))(state, batch)
    step = make_step(model.loss, SGD, axis_name="devices")
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
    parts, metrics = jax.jit(jax.vmap(step, (None, 0), axis_name="devices"))(state, halves)
    assert full_metrics["grad_norm"] > 0.01
    for i in range(2):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], parts), full, rtol=1e-5)
        for name in full_metrics:
            np.testing.assert_allclose(metrics[name][i], full_metrics[name], rtol=1e-5)


PMAP = """
import jax, sys
sys.path.insert(0, {tests!r})
from test_step import *
assert jax.device_count() == 2
step = jax.pmap(make_step(user_loss, SGD, axis_name="devices"), axis_name="devices", in_axes=(None, 0))
state, metrics = step(start(), X.reshape(2, 4, 3))
full, full_metrics = make_step(user_loss, SGD)(start(), X)
for i in range(2):
    assert_close(jax.tree.map(lambda leaf: leaf[i], state), full)
    np.testing.assert_allclose(metrics["loss"][i], full_metrics["loss"], rtol=1e-6)
print("equal")
"""


def test_pmap_over_two_devices_equals_the_full_batch():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    code = PMAP.format(tests=os.path.dirname(__file__))
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


def test_donation():
    step = jax.jit(make_step(user_loss, SGD), donate_argnums=0)
    expected, _ = singles(make_step(user_loss, SGD), start(), 3)
    state = first = start()
    for _ in range(3):
        state, _ = step(state, X)
    assert_close(state, expected)
    assert first.params["w"].is_deleted() and first.ema_params["w"].is_deleted()


# ---------------------------------------------------------------- average


@pytest.mark.parametrize(
    ("settings", "decay"),
    [
        ({}, lambda i: 0.9999),
        ({"ema_decay": 0.5}, lambda i: 0.5),
        ({"ema_decay": 0.0}, lambda i: 0.0),
        ({"ema_warmup": True}, lambda i: (1 + i) / (10 + i)),
        ({"ema_decay": 0.2, "ema_warmup": True}, lambda i: min(0.2, (1 + i) / (10 + i))),
    ],
)
def test_average_against_a_hand_computation(settings, decay):
    step = jax.jit(make_step(user_loss, SGD, **settings))
    state = start()
    average = np.ones(3)
    moved = 0.0
    for i in range(6):
        state, _ = step(state, X)
        params = np.asarray(state.params["w"], np.float64)
        average = decay(i) * average + (1 - decay(i)) * params
        moved += np.abs(params - 1).max()
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=3e-7)
    assert moved > 0.1


def test_average_is_float32_of_half_precision_parameters():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros((), jnp.bfloat16)}
    state = init_state(params, SGD, jax.random.key(0))
    for _ in range(2):
        assert state.params["w"].dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(state.ema_params)} == {jnp.dtype("float32")}
        state, _ = jax.jit(make_step(user_loss, SGD))(state, X)
    assert np.any(np.asarray(state.ema_params["w"]) != 1)  # bfloat16 would have rounded it back


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan")])
def test_average_refuses(decay):
    with pytest.raises(ValueError, match=rf"ema_decay: expected .*\[0, 1\), found {decay}"):
        make_step(user_loss, SGD, ema_decay=decay)


def test_average_of_no_batches_is_refused():
    with pytest.raises(
        ValueError, match="ema_every: expected a whole number of at least 1, found 0"
    ):
        make_step(user_loss, SGD, ema_every=0)


# ---------------------------------------------------------------- optimizer

DEFAULTS = {
    "learning_rate": 0.5,
    "warmup_steps": 0,
    "decay_steps": None,
    "decay_to": 0.0,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.99,
    "clip_norm": None,
    "accumulate": 1,
}


def optimizer(**settings):
    return make_optimizer(**{**DEFAULTS, **settings})


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, {0: 0.5, 1: 0.5, 10**6: 0.5}),
        ({"warmup_steps": 10}, {0: 0.0, 1: 0.05, 5: 0.25, 10: 0.5, 11: 0.5, 10**6: 0.5}),
        (
            {"warmup_steps": 10, "decay_steps": 110},
            {0: 0.0, 5: 0.25, 10: 0.5, 35: 0.25 * (1 + np.sqrt(0.5)), 60: 0.25, 110: 0, 10**6: 0},
        ),
        ({"decay_steps": 100, "decay_to": 0.1}, {0: 0.5, 50: 0.275, 100: 0.05, 10**6: 0.05}),
    ],
)
def test_warmup_and_decay(settings, rates):
    _, schedule = optimizer(**settings)
    for step, rate in rates.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay_steps", [9, 10])
def test_decay_ends_after_the_warmup(decay_steps):
    message = rf"decay_steps: expected more than warmup_steps = 10, found {decay_steps}$"
    with pytest.raises(ValueError, match=message):
        optimizer(warmup_steps=10, decay_steps=decay_steps)


def updates(transformation, gradients, params=None):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)} if params is None else params
    state, results = transformation.init(params), []
    for gradient in gradients:
        update, state = transformation.update(gradient, state, params)
        results.append(update)
    return results


def gradient(scale):
    return {
        "w": scale * jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
        "b": scale * jnp.asarray([1.0, -2.0]),
    }


def test_learning_rate_depends_on_the_number_of_updates():
    (first, second), (late, _) = (
        updates(optimizer(**settings)[0], [gradient(1.0)] * 2)
        for settings in ({"warmup_steps": 4}, {})
    )
    np.testing.assert_allclose(first["w"], 0)
    np.testing.assert_allclose(second["w"], 0.25 * late["w"], rtol=1e-5)
    np.testing.assert_allclose(late["w"], -0.5, rtol=1e-5)  # Adam's first update is −rate·sign


def test_clipping_uses_the_global_norm():
    norm = float(optax.tree.norm(gradient(1.0)))
    big, small = gradient(100.0), gradient(0.01 / norm)  # norms 100·norm and 0.01
    clipped = updates(optimizer(clip_norm=1.0)[0], [big, small])
    by_hand = updates(optimizer()[0], [gradient(1 / norm), small])
    unclipped = updates(optimizer()[0], [big, small])
    for name in ("w", "b"):
        np.testing.assert_allclose(clipped[1][name], by_hand[1][name], rtol=1e-5)
        assert np.all(np.abs(clipped[1][name] - unclipped[1][name]) > 1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_decay_only_in_matrices(name):
    params = {"w": jnp.full((2, 2), 3.0), "kernel": jnp.full((1, 1, 2, 2), 3.0)}
    params |= {"b": jnp.full(2, 3.0), "end": jnp.asarray(3.0)}
    (update,) = updates(
        optimizer(name=name, weight_decay=0.1)[0], [jax.tree.map(jnp.zeros_like, params)], params
    )
    for leaf, expected in {"w": -0.15, "kernel": -0.15, "b": 0, "end": 0}.items():
        np.testing.assert_allclose(update[leaf], expected, rtol=1e-6)
    # those of other libraries: without names, or with names of attributes
    named = collections.namedtuple("Layer", "weight bias")(params["kernel"], params["w"])
    for tree in ([params["kernel"], params["b"]], named):
        zeros = jax.tree.map(jnp.zeros_like, tree)
        (update,) = updates(optimizer(name=name, weight_decay=0.1)[0], [zeros], tree)
        np.testing.assert_allclose(update[0], -0.15, rtol=1e-6)
        np.testing.assert_array_equal(update[1], 0)


def test_muon_updates_are_orthogonal():
    """The update of a gradient U·S·Vᵀ is U·Vᵀ, to the precision of the iteration, at each place of a kernel."""
    draw = np.random.default_rng(0).standard_normal
    gradients = {"kernel": jnp.asarray(draw((2, 4, 3))), "b": jnp.asarray(draw(3))}
    gradients["w"] = gradients["kernel"][0]
    (update,) = updates(optimizer(name="muon")[0], [gradients], gradients)
    (nadams,) = updates(optax.nadamw(0.5, b2=0.99, weight_decay=0.0), [gradients], gradients)
    for given, gradient in zip(update["kernel"], gradients["kernel"], strict=True):
        u, s, v = np.linalg.svd(gradient, full_matrices=False)
        inner = u.T @ np.asarray(given) @ v.T / (-0.5 * 0.2 * np.sqrt(4))
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-5)
        assert np.all((np.diag(inner) > 0.6) & (np.diag(inner) < 1.3)) and s[0] > 1.5 * s[-1]
    np.testing.assert_allclose(update["w"], update["kernel"][0], rtol=1e-5)
    np.testing.assert_allclose(update["b"], nadams["b"], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(name):
    traces = []

    def loss(params, key, x):
        traces.append(name)
        value = jnp.mean(jnp.square(x @ params["kernel"] + params["bias"][None] - 0.3 * x))
        return value, {"loss": value}

    transformation, _ = optimizer(name=name, learning_rate=0.03, clip_norm=1.0)
    state = init_state(
        {"kernel": jnp.eye(3), "bias": jnp.ones(3)}, transformation, jax.random.key(0)
    )
    step = jax.jit(make_step(loss, transformation))
    state, first = step(state, X)
    count = len(traces)
    for _ in range(100):
        state, last = step(state, X)
    assert last["loss"] < 0.05 * first["loss"]
    assert len(traces) == count  # compiled once


def test_model_state_under_an_axis():
    """Floats are averaged; a counter stays a whole number."""

    def loss(params, key, x, state):
        value, metrics = user_loss(params, key, x)
        return value, (metrics, {"count": state["count"] + 1, "mean": jnp.mean(x)})

    first = {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(())}
    state = init_state(start().params, SGD, jax.random.key(0), model_state=first)
    step = jax.vmap(make_step(loss, SGD, axis_name="parts"), (None, 0), axis_name="parts")
    after, _ = step(state, X.reshape(2, -1, *X.shape[1:]))
    assert after.model_state["count"].dtype == np.int32
    np.testing.assert_array_equal(after.model_state["count"], [1, 1])
    np.testing.assert_allclose(after.model_state["mean"], jnp.mean(X), rtol=1e-5)


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"name: unknown name 'adam'; did you mean 'adamw'"):
        optimizer(name="adam")


def test_accumulated_half_batches_equal_one_full_batch():
    def loss(params, key, x):
        value = jnp.mean(jnp.square(x @ params["w"] - 1))
        return value, {"loss": value}

    def trained(accumulate, batches):
        transformation, _ = optimizer(
            learning_rate=0.1, accumulate=accumulate, clip_norm=0.1, weight_decay=0.01
        )
        state = init_state({"w": jnp.ones((3, 1))}, transformation, jax.random.key(0))
        average = {"ema_decay": 0.9, "ema_warmup": True, "ema_every": accumulate}
        step = jax.jit(make_step(loss, transformation, **average))
        states = [state := step(state, batch)[0] for batch in batches]
        averages.append([state.ema_params["w"] for state in states])
        return [state.params["w"] for state in states]

    averages = []
    whole = trained(1, [X, 2 * X])
    halves = trained(2, [X[:4], X[4:], 2 * X[4:], 2 * X[:4]])
    np.testing.assert_array_equal(halves[0], 1)  # nothing before the whole batch was seen
    np.testing.assert_array_equal(halves[1], halves[2])
    np.testing.assert_allclose(halves[1], whole[0], rtol=1e-5)
    np.testing.assert_allclose(halves[3], whole[1], rtol=1e-5)
    assert np.all(np.abs(whole[0] - 1) > 1e-3) and np.all(whole[0] != whole[1])
    of_whole, of_halves = averages
    np.testing.assert_array_equal(of_halves[0], 1)
    np.testing.assert_allclose(of_halves[1::2], of_whole, rtol=1e-5)
    np.testing.assert_array_equal(of_halves[2], of_halves[1])


def test_average_follows_an_accumulating_optimizer_through_skipped_steps():
    """One batch that is not finite delays the update and the average alike."""
    optimizer = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    step = make_step(
        lambda params, key, x: (params * jnp.mean(x), {}), optimizer, ema_decay=0.0, ema_every=2
    )
    state = init_state(jnp.zeros(()), optimizer, jax.random.key(0))
    averages = []
    for value in (1.0, np.nan, 1.0, 1.0, 1.0):
        state, metrics = step(state, jnp.full(1, value))
        assert float(metrics["skipped"]) == float(np.isnan(value))
        averages.append((float(state.params), float(state.ema_params)))
    assert averages == [(0, 0), (0, 0), (-1, -1), (-1, -1), (-2, -2)]
