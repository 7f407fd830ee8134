"""The path between the ends of a schedule is trained on the variance of the loss, in the same backward pass."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from oracles import jit

from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.schedules import learned_monotone
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.variance import per_example_params, record_loss

SHAPE = (3,)
BITS = 1 / (3 * math.log(2))
SMALL = {"gamma_min": -4.0, "gamma_max": 5.0, "hidden": 4}
NETWORK = Network(
    lambda key, xt, gamma_t, extra=None: 0.3 * jax.random.normal(key, (4, 3)),
    lambda w, xt, gamma_t, extra=None, keys=None: jnp.tanh(
        jnp.concatenate([xt, gamma_t[:, None]], 1) @ w
    ),
)
BATCH = jnp.asarray(oracles.gaussian(SHAPE).sample(0, 8), jnp.float32)


def model_of(trained_on, timesteps=None, **settings):
    return vdm(
        Statistics(SHAPE, None, 0.5),
        network=NETWORK,
        schedule=learned_monotone(trained_on=trained_on, **SMALL),
        parameterization="v",
        likelihood="gaussian",
        timesteps=timesteps,
        **settings,
    )


def params_of(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.mark.parametrize("times", ["uniform", {"name": "analytic", "bins": 4}], ids=str)
@pytest.mark.slow
def test_the_interior_is_trained_on_the_second_moment(times):
    """Direct differentiation in float64 gives the same gradient; ends and network follow the bound."""
    key = jax.random.key(1)
    with jax.enable_x64(True):
        by_variance, by_bound = (model_of(on, time_sampler=times) for on in ("variance", "bound"))
        params = jax.tree.map(lambda leaf: leaf.astype(float), params_of(by_bound))
        x = BATCH.astype(float)

        def second_moment(params):
            drawn = by_bound.per_noise_level.draw(params, key, x)
            return jnp.mean(jnp.square(BITS * drawn.loss.matching))

        @jit
        def run(params):
            def gradient(model):
                return jax.value_and_grad(lambda p: model.loss(p, key, x)[0])(params)

            return gradient(by_variance), gradient(by_bound), jax.grad(second_moment)(params)

        (value, gradients), (bound_value, bound), expected = jax.device_get(run(params))
    np.testing.assert_allclose(value, bound_value, rtol=1e-12)
    expected = expected["schedule"]["curve"]
    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, gradients["schedule"]["curve"], expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    for name in ("gamma_min", "log_width"):
        close(gradients["schedule"][name], bound["schedule"][name])
        assert abs(bound["schedule"][name]) > 1e-3
    jax.tree.map(close, gradients["network"], bound["network"])


def program(model):
    """Return the program of the gradient of the loss as text."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    gradient = jax.grad(lambda params: model.loss(params, jax.random.key(1), BATCH)[0])
    return str(jax.make_jaxpr(gradient)(shapes))


def test_a_chain_is_trained_on_its_bound():
    assert program(model_of("variance", 5)) == program(model_of("bound", 5))
    assert program(model_of("variance")) != program(model_of("bound"))


def test_no_second_evaluation_of_the_network():
    """The only additional matrix products sum over the copies of each parameter of the curve."""
    texts = {on: program(model_of(on)) for on in ("variance", "bound")}
    counts = {on: (text.count("dot_general"), text.count("erf_inv")) for on, text in texts.items()}
    curve = len(jax.tree.leaves(learned_monotone(**SMALL).init(jax.random.key(0))["curve"]))
    products, draws = counts["bound"]
    assert products > 0 and draws > 0
    assert counts["variance"] == (products + curve, draws)


@pytest.mark.parametrize("runs", [1, 3])
def test_pieces_give_the_gradient_of_a_mean_square(runs):
    """The gradient is right for one run and for several runs side by side."""

    def tied(weights, x):
        each, handle = per_example_params(weights, jnp.zeros(x.shape[0]))
        return jnp.mean(
            record_loss(
                jax.vmap(lambda w, x: jnp.sum(jnp.tanh(w["a"] * x)) + w["b"])(each, x), handle
            )
        )

    def square(weights, x):
        return jnp.mean(
            jax.vmap(lambda x: jnp.square(jnp.sum(jnp.tanh(weights["a"] * x)) + weights["b"]))(x)
        )

    rng = np.random.default_rng(0)
    weights = {
        "a": jnp.asarray(rng.normal(size=(runs, 3))),
        "b": jnp.asarray(rng.normal(size=runs)),
    }
    x = jnp.asarray(rng.normal(size=(5, 3)))
    gradients, expected = (jax.vmap(jax.grad(f), (0, None))(weights, x) for f in (tied, square))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), gradients, expected)


def test_training_the_curve_lowers_only_the_variance():
    """Only the curve is trained, for a network that predicts zero; the mean of the loss stays."""
    model = vdm(
        Statistics(SHAPE, None, 0.5),
        network=Network(lambda *_: {}, lambda params, xt, *_: 0 * xt),
        schedule=learned_monotone(learn_ends=False, **SMALL),
        parameterization="x0",
        likelihood="gaussian",
    )
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(curve, key):
        schedule = params["schedule"] | {"curve": curve}
        return model.loss(params | {"schedule": schedule}, key, BATCH)[0]

    adam = optax.adam(0.02)

    def step(state, key):
        curve, inner = state
        updates, inner = adam.update(jax.grad(loss)(curve, key), inner)
        return (optax.apply_updates(curve, updates), inner), None

    keys = jax.random.split(jax.random.key(2), 1000)
    start = params["schedule"]["curve"]
    (end, _), _ = jit(lambda c: jax.lax.scan(step, (c, adam.init(c)), keys))(start)
    values = [np.asarray(jit(jax.vmap(loss, (None, 0)))(c, keys), np.float64) for c in (start, end)]
    assert values[1].std() < 0.5 * values[0].std()
    error = math.hypot(*map(oracles.standard_error, values))
    assert abs(values[0].mean() - values[1].mean()) < 4.5 * error


@pytest.mark.parametrize("times", ["uniform", "analytic", "learned"])
@pytest.mark.slow
def test_half_precision_parameters_are_trained(times):
    """All parameters are trained; the averages of learned times keep float32."""
    model, optimizer = model_of("variance", time_sampler=times), optax.sgd(1e-2)
    params = params_of(model)
    model_state = model.init_model_state(params)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    state = init_state(params, optimizer, jax.random.key(1), model_state=model_state)
    for tree, kind in ((state.params, jnp.bfloat16), (state.model_state, jnp.float32)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype(kind)}
    after, metrics = jit(make_step(model.loss, optimizer))(state, BATCH)
    assert metrics["skipped"] == 0
    same = [
        jnp.array_equal(*two)
        for two in zip(*map(jax.tree.leaves, (state.params, after.params)), strict=True)
    ]
    assert sum(same) <= len(same) // 3


def test_trained_on_accepts_variance_or_bound():
    with pytest.raises(
        ValueError, match="trained_on: expected 'variance' or 'bound', found 'elbo'"
    ):
        learned_monotone(trained_on="elbo")
    assert learned_monotone().interior == "curve"
    assert learned_monotone(trained_on="bound").interior is None
