"""Mistakes in a comparison are refused in one line before anything is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_comparison import (
    FLOATS,
    NET,
    Linen,
    bare_init,
    compare_small,
    images,
)

import vdm_jax as vdm
from vdm_jax.config import default_vae
from vdm_jax.parameterizations import eps

pytestmark = pytest.mark.usefixtures("without_optimizations")

ONE_NORMAL = vdm.Mixture.of([1.0], [[0.0]], [[1.0]])


class Dropped(nnx.Module):
    def __init__(self):
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, xt, gamma_t):
        return self.drop(xt)


WRONG = [
    ({"parameterizations": ["epz"]}, "parameterizations: unknown name 'epz'; did you mean 'eps'"),
    ({"parameterizations": []}, "parameterizations: expected names"),
    ({"parameterizations": ["v", "v"]}, "parameterizations: expected each once, found 'v' twice"),
    ({"parameterizations": [eps()]}, "parameterizations: expected names, or a mapping"),
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
    ({"data": 300 * FLOATS, "levels": None}, "has a root mean square of .*, expected"),
    ({"data": np.nan * FLOATS, "levels": None}, "has values that are not finite"),
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
        compare_small(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("as_users")
def test_type_errors_and_mistakes_in_losses():
    with pytest.raises(TypeError, match="data: expected a name, an array"):
        compare_small(data=7)
    with pytest.raises(ValueError, match=r"config\.model\.name: expected 'vdm'.* found 'vae'"):
        vdm.compare(config=default_vae())
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
            "statistics: are needed for output_scale 'unit_variance'",
        ),
        ({"eps": Linen()}, {}, r"expected a callable .*, or its parameters beside network="),
        ({"eps": {"w": x}}, {"network": NET}, r"denoisers_or_params\['eps'\]: cannot be applied"),
    ]:
        with pytest.raises(ValueError, match=message):
            vdm.parameterization_losses(given, x, jax.random.key(0), **changes)
    with pytest.raises(ValueError, match=r"x: expected examples \[n, \*d\], found shape \(4,\)"):
        vdm.parameterization_losses({"eps": lambda x, g: x}, x[:, 0], jax.random.key(0))
