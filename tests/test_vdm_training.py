"""The loss of a VDM: paths of the training times, weightings, dropout, batches and keys."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from scipy.stats import norm
from small_vdm import (
    CONTINUOUS,
    ENDS,
    FIRST,
    LAST,
    NO_PARAMS,
    ROWS,
    constant_network,
    init_params,
    keys,
    levels_data,
    model_of,
    zeros_of,
)

from vdm_jax.nets import Network
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.schedules import learned_monotone
from vdm_jax.typing import Batch, as_batch
from vdm_jax.weightings import WEIGHTINGS


@pytest.mark.slow
def test_another_training_path_keeps_the_bound():
    """In continuous time the loss keeps its expectation under other draws, and the evaluation is unchanged."""
    x, n = jnp.asarray(levels_data(8)), 6000
    path = {"name": "sigmoid", **ENDS, "start": -2.0, "end": 3.0}
    plain, other = model_of(base="levels"), model_of(base="levels", train_schedule=path)
    params = init_params(plain)
    losses = [jit(jax.vmap(lambda key, m=m: m.loss(params, key, x)[0])) for m in (plain, other)]
    a, b = (np.asarray(loss(keys(n)), np.float64) for loss in losses)
    assert a.std() > 0 and abs(b.std() / a.std() - 1) > 0.05  # other draws
    error = math.hypot(oracles.standard_error(a), oracles.standard_error(b))
    assert abs(a.mean() - b.mean()) < 4.5 * error
    for part, expected in zip(
        other.elbo(params, jax.random.key(0), x),
        plain.elbo(params, jax.random.key(0), x),
        strict=True,
    ):
        np.testing.assert_array_equal(part, expected)
    assert "train schedule sigmoid" in other.components


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 5}, "is for continuous time, found timesteps = 5"),
        (
            {"schedule": "linear"},
            r"expected the ends \[-13\.3.*, 5\.0\] of the schedule, found \[-4\.0",
        ),
        ({"train_schedule": {"name": "learned_linear"} | ENDS}, "neither .* may be learned"),
        ({"train_schedule": "sigmid"}, "unknown name 'sigmid'; did you mean 'sigmoid'"),
    ],
    ids=str,
)
def test_invalid_training_paths_are_refused(settings, message):
    path = {"name": "sigmoid", **ENDS}
    with pytest.raises(ValueError, match=rf"train_schedule: {message}"):
        model_of(**{"train_schedule": path} | settings)


def test_a_training_path_is_built_inside_traced_functions():
    def loss(key):
        model = model_of(train_schedule={"name": "sigmoid", **ENDS})
        return model.loss(model.init(key), key, levels_data(2))[0]

    assert np.isfinite(jax.jit(loss)(jax.random.key(0)))


# --- loss spaces and weightings ----------------------------------------------------------------------


def test_elbo_weighting_gives_one_loss_in_every_space():
    x = jnp.asarray(levels_data(8))

    @jit
    @partial(jax.vmap, in_axes=(None, 0))
    def loss(params, i):
        model = model_of(
            loss_space=stacked(ROWS, i), timesteps=5, parameterization="v", base="levels"
        )
        return model.loss(params, jax.random.key(0), x)

    params = init_params(model_of(base="levels"))
    values, metrics = loss(params, jnp.arange(len(ROWS)))
    np.testing.assert_allclose(values, metrics["bits_per_dim"], rtol=1e-5)
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


HAND_WEIGHTS = {  # as the papers print them, of ‖x_0 − x̂_0‖² for linear γ; None: the error in the loss space
    "elbo": lambda snr: 0.5 * (LAST - FIRST) * snr,
    "simple": None,
    "min_snr": lambda snr: min(snr, 5.0),
    "sigmoid": lambda snr: 0.5 * (LAST - FIRST) * snr / (1 + snr * math.exp(-2.0)),
    "p2": lambda snr: snr / (1 + snr),
    # half of the densities of γ/2 times γ'(t), of the errors 1/η² + 1/σ_d² and (1 + 1/η)² times that of x_0
    "edm": lambda snr: (
        norm.pdf(-0.5 * math.log(snr), -1.2, 1.2) * 0.5 * (LAST - FIRST) * (snr + 1 / 0.5**2)
    ),
    "logit_normal": lambda snr: (
        norm.pdf(-0.5 * math.log(snr)) * 0.5 * (LAST - FIRST) * (1 + math.sqrt(snr)) ** 2
    ),
}
HAND_OUT = {  # out² of each space over that of x0, from the definition of its target
    "x0": lambda snr: 1.0,
    "eps": lambda snr: 1 / snr,
    "v": lambda snr: 1 / (1 + snr),
    "score": lambda snr: 1 / (1 + snr) / snr,
    "flow": lambda snr: 1 / (1 + math.sqrt(snr)) ** 2,
}


def test_every_weighting_is_its_papers_loss_in_every_space():
    assert set(HAND_WEIGHTS) == set(WEIGHTINGS)
    assert set(HAND_OUT) == set(CONTINUOUS)
    x = jnp.asarray(levels_data(1))
    spaces = [PARAMETERIZATIONS[name]() for name in CONTINUOUS]

    @jit
    def losses(params):
        def metrics(**settings):
            model = model_of(parameterization="v", **settings)
            return model.loss(params, jax.random.key(5), x)[1]

        def in_space(i, weighting):
            return metrics(weighting=weighting, loss_space=stacked(spaces, i))

        each = jnp.arange(len(spaces))
        # a weighting that reveals the λ that all of them drew
        spy = metrics(weighting=lambda log_snr, exact: exact * log_snr)
        return spy, {name: jax.vmap(partial(in_space, weighting=name))(each) for name in WEIGHTINGS}

    spy, by_weighting = jax.tree.map(np.asarray, losses(init_params(model_of())))
    ends = spy["reconstruction"] + spy["prior"]
    snr = math.exp((spy["loss"] - ends) / spy["matching"])
    assert math.exp(-LAST) < snr < math.exp(-FIRST)
    error_x0 = spy["matching"] / (0.5 * (LAST - FIRST) * snr)  # ‖x_0 − x̂_0‖² in bits/dim
    for weighting, metrics in by_weighting.items():
        np.testing.assert_allclose(
            metrics["matching"], spy["matching"].repeat(len(spaces)), rtol=1e-5
        )
        for loss_space, loss in zip(CONTINUOUS, metrics["loss"] - ends, strict=True):
            weight = HAND_WEIGHTS[weighting]
            expected = error_x0 * (1 / HAND_OUT[loss_space](snr) if weight is None else weight(snr))
            case = f"{weighting} in {loss_space}"
            np.testing.assert_allclose(loss, expected, rtol=1e-3, err_msg=case)


@pytest.mark.parametrize("timesteps", [7, None])
def test_simple_loss_is_the_mean_squared_error_of_the_noise(timesteps):
    model = model_of(weighting="simple", timesteps=timesteps, network=constant_network(zeros_of))
    _, metrics = jit(model.loss)(NO_PARAMS, jax.random.key(0), jnp.asarray(levels_data(16)))
    # ε̂ = 0 and γ linear: the bound's term is ½ · rate · ‖ε‖² with one rate for all times
    rate = LAST - FIRST if timesteps is None else 7 * math.expm1((LAST - FIRST) / 7)
    ends = metrics["reconstruction"] + metrics["prior"]
    np.testing.assert_allclose(metrics["loss"] - ends, 2 / rate * metrics["matching"], rtol=1e-4)


# --- batches, keys and steps -------------------------------------------------------------------------


def watched(seen):
    """Return a network that records its inputs in `seen`."""

    def apply(params, xt, gamma_t, extra=None, keys=None):
        seen.append((xt, gamma_t, jax.vmap(jax.random.key_data)(keys)))
        return jnp.tanh(xt) * params

    return Network(lambda key, xt, gamma_t, extra=None: jnp.ones(()), apply)


@pytest.mark.parametrize("timesteps", [5, None])
def test_loss_and_draws_do_not_depend_on_how_the_batch_is_split(timesteps):
    seen = []
    model = model_of(network=watched(seen), timesteps=timesteps)
    params = {"network": jnp.ones(()), "schedule": {}}
    whole = as_batch(jnp.asarray(levels_data(12)))
    np.testing.assert_array_equal(whole.index, np.arange(12))
    np.testing.assert_allclose(whole.phase, np.arange(12) / 12, rtol=1e-6)

    @jit
    def run(batch):
        seen.clear()
        value, _ = model.loss(params, jax.random.key(0), batch)
        return value, seen[0]

    value, draws = run(whole)
    orders = [np.arange(0, 6), np.arange(6, 12), np.arange(11, -1, -1)]
    parts = [run(jax.tree.map(lambda leaf, at=at: leaf[at], whole)) for at in orders]
    for at, (_, part) in zip(orders, parts, strict=True):
        for whole_draw, part_draw in zip(draws, part, strict=True):
            np.testing.assert_array_equal(part_draw, whole_draw[at])
    np.testing.assert_allclose((parts[0][0] + parts[1][0]) / 2, value, rtol=1e-5)
    np.testing.assert_allclose(parts[2][0], value, rtol=1e-5)
    assert len(np.unique(draws[2], axis=0)) == 12  # every example has its own dropout key
    if timesteps is None:  # one time in each twelfth
        place = np.sort((np.asarray(draws[1]) - FIRST) / (LAST - FIRST))
        np.testing.assert_allclose(np.diff(place), 1 / 12, atol=1e-5)


def test_dropout_only_in_training():
    seen = []

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        seen.append(keys is not None)
        return params["w"] * xt

    network = Network(lambda key, xt, gamma_t=None, extra=None: {"w": jnp.ones(())}, apply)
    model = model_of(network=network, likelihood="discretized_gaussian")
    params = model.init(jax.random.key(0))
    for function, expected in ((model.loss, [True, True]), (model.elbo, [False, False])):
        seen.clear()
        jax.eval_shape(function, params, jax.random.key(1), levels_data(2))
        assert seen[:2] == expected


@pytest.mark.parametrize("timesteps", [5, None])
def test_a_training_step_compiles_once(timesteps):
    model, traces = model_of(timesteps=timesteps, base="histogram"), []

    @jit
    def step(params, key, batch):
        traces.append(1)
        (value, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, key, batch)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    params = init_params(model)
    values = []
    for i in range(3):
        batch = as_batch(jnp.asarray(levels_data(8, seed=i)))
        batch = Batch(batch.x, batch.index + 8 * i, batch.phase)
        value, params = step(params, jax.random.key(i), batch)
        values.append(float(value))
    assert len(traces) == 1
    assert np.all(np.isfinite(values))
    assert len(set(values)) == 3


def test_a_learned_schedule_is_in_the_parameters_and_is_trained():
    schedule = learned_monotone(hidden=3, **ENDS)
    model = model_of(schedule=schedule)
    params = init_params(model) | {"schedule": schedule.init(jax.random.key(0))}

    @jit
    @jax.grad
    def gradient(params):
        return model.loss(params, jax.random.key(0), jnp.asarray(levels_data(8)))[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)["schedule"]):
        assert np.all(np.isfinite(leaf)), path
        assert np.all(np.abs(leaf) > 0), path
