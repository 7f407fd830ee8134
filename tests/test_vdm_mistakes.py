"""A VDM accepts networks of every kind and refuses settings, networks and data that do not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit
from small_vdm import SHAPE, STATISTICS, init_params, model_of

from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.typing import as_batch


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "mpl"}, "network: unknown name 'mpl'; did you mean 'mlp'"),
        ({"network": {"name": "mlp", "widht": 3}}, "'mlp' has no argument 'widht'.*'width'"),
        ({"network": {"name": "mlp", "dropout": 1.5}}, "network.dropout: expected a number in"),
        ({"base": "level"}, "base: .*did you mean 'levels'"),
        ({"output_scale": "unit_varianc"}, "output_scale: .*choices: none, unit_variance"),
        ({"loss_space": "epsilon"}, "loss_space: .*choices: eps, flow, mean, score, v, x0"),
        ({"weighting": "snr"}, "weighting: .*choices: edm, elbo"),
        ({"likelihood": "gaussian"}, "likelihood: the data have 4 levels"),
        ({"likelihood": {"name": "softmax", "levels": 8}}, "the likelihood is of 8 levels"),
        ({"parameterization": "mean"}, "parameterization: 'mean' .*timesteps=T, found None"),
        ({"loss_space": "mean"}, "loss_space: 'mean' .*timesteps=T, found None"),
        ({"timesteps": 0}, "timesteps: expected a whole number in .*, found 0"),
        (
            {"schedule": "learned_linear", "weighting": "simple"},
            "weighting: a learned schedule is trained on the bound",
        ),
        (
            {"schedule": "learned_monotone", "weighting": {"name": "p2"}},
            "weighting: .*expected 'elbo'",
        ),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        vdm(STATISTICS, **settings)


@pytest.mark.usefixtures("as_users")
def test_defaults_and_wrong_arguments_of_calls():
    x, key = jnp.zeros((2, *SHAPE), jnp.uint8), jax.random.key(0)
    # `mean` needs a divisor of its 7 steps, so that the default is not 1000
    mean = model_of(parameterization="mean", timesteps=7)
    params = init_params(mean)
    assert jax.eval_shape(lambda key: mean.sample(params, key, 2), key).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 1, found 0"):
        mean.elbo(params, key, x, draws=0)
    with pytest.raises(
        TypeError, match=r"batch: expected a `Batch` or an array .* dict of 'image'"
    ):
        mean.loss(params, key, {"image": x})
    with pytest.raises(TypeError, match=r"batch: expected .*, found an array of shape \(\)"):
        mean.loss(params, key, jnp.zeros((), jnp.uint8))


def test_floats_for_data_on_levels_are_refused():
    model = model_of()
    params = init_params(model)
    for function in (model.loss, model.elbo):
        with pytest.raises(TypeError, match=r"'softmax': expected integers 0\.\.3, found float32"):
            function(params, jax.random.key(0), jnp.zeros((2, *SHAPE)))


def test_data_of_another_shape_than_the_statistics_are_refused():
    """A convolutional network alone would accept other shapes."""
    model = vdm(Statistics((8, 8, 1), 4), network={"name": "unet", "channels": (8,), "blocks": 1})
    key, x = jax.random.key(0), jnp.zeros((2, 4, 4, 1), jnp.uint8)
    params = jax.eval_shape(model.init, key)
    edges = np.linspace(-5.0, 5.0, 3)
    calls = {
        "loss": model.loss,
        "elbo": model.elbo,
        "by noise": lambda params, key, x: model.per_noise_level.elbo(params, key, x, edges),
        "draw": model.per_noise_level.draw,
        "batch": lambda params, key, x: model.loss(params, key, as_batch(x)),
    }
    for call in calls.values():
        with pytest.raises(
            ValueError, match=r"batch: .* expected shape \(8, 8, 1\), found \(4, 4, 1\)"
        ):
            jax.eval_shape(call, params, key, x)


# --- networks ----------------------------------------------------------------------------------------


class Module(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t, extra):
        inputs = xt, extra, jnp.broadcast_to(gamma_t[:, None, None], xt.shape)
        return nn.Dense(xt.shape[-1])(jnp.concatenate(inputs, -1))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (Module(), 2),
        (lambda xt, gamma_t: gamma_t * xt, 0),
        ((lambda key, xt: jnp.ones(()), lambda params, xt, gamma_t: params * xt), 1),
    ],
)
@pytest.mark.slow
def test_networks_of_every_kind_are_accepted(network, parameters):
    model, key = model_of(network=network, base="levels"), jax.random.key(0)
    params = model.init(key)
    assert len(jax.tree.leaves(params["network"])) == parameters
    loss, _ = model.loss(params, key, jnp.zeros((2, *SHAPE), jnp.uint8))
    assert np.isfinite(loss)
    with pytest.raises(ValueError, match=r"network: cannot be applied to xt"):
        model_of(network=lambda xt: xt)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "mlp", "outputs": (1, 1)}, r"network: gives \(1, 1\) for data \(2, 3\)"),
        ({"name": "conv_encoder", "outputs": SHAPE}, "conv_encoder: is no denoiser"),
    ],
)
def test_networks_that_are_no_denoisers_are_refused(network, message):
    model = model_of(network=network)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key: model.loss(model.init(key), key, jnp.zeros((2, *SHAPE), jnp.uint8)),
            jax.random.key(0),
        )


def short_init(key, xt):
    del key, xt
    return {"scale": jnp.ones(())}


def short_apply(params, xt, gamma_t):
    del gamma_t
    return params["scale"] * xt


def test_network_functions_may_take_fewer_arguments():
    key, x = jax.random.key(0), jnp.zeros((2, *SHAPE), jnp.uint8)

    @jit
    def losses():
        pair = short_init, short_apply
        models = [model_of(network=network, base="levels") for network in (Network(*pair), pair)]
        return [model.loss(model.init(key), key, x)[0] for model in models]

    of_network, of_pair = losses()
    assert of_network == of_pair and np.isfinite(of_network)
    with pytest.raises(ValueError, match=r"network: apply takes 'params'"):
        model_of(network=Network(short_init, lambda params: params))
