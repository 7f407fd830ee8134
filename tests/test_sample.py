"""Samples are drawn in chunks, and each depends only on the key and its number."""

import re
from dataclasses import replace
from functools import wraps
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.config import default, resolve
from vdm_jax.models import MODELS, Statistics, build_model
from vdm_jax.runs.trained import SAMPLES_PER_DEVICE, TrainedModel
from vdm_jax.training.state import TrainState

SHAPE, LEVELS, TINY = (2, 3), 64, {"name": "mlp", "width": 8, "depth": 1}
PARTS = {"encoder": TINY, "decoder": TINY, "likelihood": "softmax"}
VDM = {"name": "vdm", "network": TINY, "likelihood": "softmax"}
FAMILIES = {
    "vdm": (VDM, {"sampler": "ancestral", "steps": 3}),
    "vdm, ddim": (VDM, {"sampler": "ddim", "steps": 3}),
    "vdm, chain": (VDM | {"timesteps": 4, "parameterization": "mean"}, {"steps": 2}),
    "vae": ({"name": "vae", "latent": 3, **PARTS}, {}),
    "vae, expected": ({"name": "vae", "latent": 3, **PARTS}, {"draw": False}),
    "mhvae": (
        {
            "name": "mhvae",
            "chain": {
                "name": "gaussian",
                "latents": [4, 2],
                "level": TINY,
                "encoder": TINY,
                "decoder": TINY,
            },
            "likelihood": "softmax",
        },
        {},
    ),
    "mhvae, diffusion": (
        {
            "name": "mhvae",
            "chain": {"name": "diffusion", "timesteps": 2, "network": TINY},
            "likelihood": "softmax",
        },
        {},
    ),
}


def run_of(name):
    """Return an untrained run with random parameters."""
    spec, settings = FAMILIES[name]
    statistics = Statistics(SHAPE, LEVELS, 0.4)
    model = build_model(spec, statistics)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, params, params, (), None, jax.random.key(0))
    resolved = replace(resolve(default()), sample={"count": 4, **settings})
    return TrainedModel(resolved, model, statistics, state, Path("nowhere"))


def test_every_family_is_tested():
    assert {spec["name"] for spec, _ in FAMILIES.values()} == set(MODELS)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_chunks_are_parts_of_one_program(name, capsys):
    run, key, traced = run_of(name), jax.random.key(3), []
    model = run.model

    @wraps(model.sample)
    def sample(params, key, n, **settings):
        traced.append(n)
        return model.sample(params, key, n, **settings)

    run = replace(run, model=model._replace(sample=sample))
    whole = np.asarray(run.sample(key, 10))
    assert whole.shape == (10, *SHAPE) and whole.dtype == np.uint8
    assert capsys.readouterr().err == ""  # no bar for one chunk
    for size in (4, 7):
        np.testing.assert_array_equal(run.sample(key, 10, batch_size=size), whole)
    assert re.search("sample.*/10", capsys.readouterr().err)
    assert traced == [10, 4, 5]  # the chunks of a call share one program
    np.testing.assert_array_equal(run.sample(key, 3), whole[:3])
    assert len(np.unique(whole.reshape(10, -1), axis=0)) > 3  # not the same chunk again and again
    assert np.any(np.asarray(run.sample(jax.random.key(4), 10)) != whole)


def test_many_samples_are_drawn_in_chunks_by_default():
    run, sizes = run_of("vae"), []

    def sample(params, key, n, draw=True, first=0):
        del params, key, draw
        sizes.append(n)
        return (first + jnp.arange(n, dtype=jnp.int32))[:, None]

    run = TrainedModel(
        run.settings, run.model._replace(sample=sample), run.statistics, run.state, run.workdir
    )
    n = 4 * SAMPLES_PER_DEVICE + 1
    np.testing.assert_array_equal(run.sample(jax.random.key(0), n)[:, 0], np.arange(n))
    assert len(sizes) == 1 and sizes[0] <= SAMPLES_PER_DEVICE


WRONG = [
    ({"n": -1}, "n: expected a whole number of at least 1, found -1"),
    ({"n": 0}, "n: expected a whole number of at least 1, found 0"),
    ({"n": 1.5}, "n: expected a whole number of at least 1, found 1.5"),
    ({"n": True}, "n: expected a whole number"),
    ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, found 0"),
    ({"batch_size": 2.5}, "batch_size: expected a whole number"),
    ({"key": jnp.zeros(2, jnp.uint32)}, "key: expected a key such as .*wrap_key_data"),
    ({"stepz": 3}, "sample: no option 'stepz'; did you mean 'steps'"),
    ({"first": 3}, "sample: no option 'first'"),
    ({"steps": 1.5}, "sample.steps: expected a whole number in .*, found 1.5"),
    ({"sampler": "ddmi"}, "sample.sampler: unknown name 'ddmi'; did you mean 'ddim'"),
]


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_mistakes_are_one_line(changes, message):
    arguments = {"key": jax.random.key(0), "n": 2} | changes
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        run_of("vdm").sample(**arguments)
    assert "\n" not in str(caught.value)
