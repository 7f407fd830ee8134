"""Samples of a VDM have the law of its chain and the type of its data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_vdm import (
    FIRST,
    FREQUENCIES,
    LAST,
    LEVELS,
    MILD,
    NO_PARAMS,
    SHAPE,
    constant_network,
    init_params,
    levels_data,
    model_of,
    zeros_of,
)

from vdm_jax.models import Statistics, vdm
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.samplers import SAMPLERS


def test_samples_of_the_best_network_have_the_law_of_the_chain():
    steps, n = 4, 20_000
    law, row = oracles.gaussian(SHAPE), PARAMETERIZATIONS["v"]()
    model = vdm(
        Statistics(SHAPE, None),
        network=constant_network(law.network(row, oracles.interval_of_step(None))),
        schedule=MILD,
        parameterization=row,
        likelihood="gaussian",
    )
    samples = jit(partial(model.sample, n=n, steps=steps))(NO_PARAMS, jax.random.key(0))
    mean, variance = oracles.chain_law(law, np.linspace(FIRST, LAST, steps + 1))
    offset, gain = oracles.affine(law, FIRST)
    covariance = np.diag((gain**2 * variance).ravel())
    oracles.assert_moments(np.asarray(samples), (offset + gain * mean).ravel(), covariance)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_an_exact_base_have_the_data_frequencies(name):
    n = 4000
    wide = {"name": "linear", "gamma_min": -9.0, "gamma_max": 9.0}
    model = model_of(base="histogram", schedule=wide, network=constant_network(zeros_of))
    sample = jit(partial(model.sample, n=n, sampler=name, steps=200))
    samples = sample(NO_PARAMS, jax.random.key(0))
    assert (samples.shape, samples.dtype) == ((n, *SHAPE), jnp.uint8)
    shares = np.mean(np.asarray(samples)[..., None] == np.arange(LEVELS), axis=0)
    error = np.sqrt(FREQUENCIES * (1 - FREQUENCIES) / n)
    np.testing.assert_array_less(np.abs(shares - FREQUENCIES), 4.5 * error + 0.01)


@pytest.mark.parametrize(
    ("levels", "likelihood", "dtype"),
    [
        (2, "discretized_gaussian", jnp.uint8),
        (256, "softmax", jnp.uint8),
        (300, "softmax", jnp.int32),
        (None, "gaussian", jnp.float32),
    ],
)
def test_samples_have_the_stored_type_and_range(levels, likelihood, dtype):
    model = vdm(
        Statistics((3,), levels),
        network=constant_network(lambda xt, gamma_t: 3 * xt),  # leaves [-1, 1]
        likelihood=likelihood,
        parameterization="x0",
    )
    sample = jit(partial(model.sample, n=5, steps=2))
    first, again, other = (sample(NO_PARAMS, jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((5, 3), dtype)
    if levels is not None:
        assert (int(first.min()), int(first.max())) == (0, levels - 1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("likelihood", ["softmax", "histogram"])
@pytest.mark.slow
def test_chain_sampling_skips_untrained_noise_levels(likelihood):
    def nan_at_the_least_noise(xt, gamma_t):
        return jnp.where(gamma_t < FIRST + 0.1, jnp.nan, zeros_of(xt, gamma_t))

    def samples(denoise, timesteps):
        model = model_of(
            network=constant_network(denoise),
            base="histogram",
            likelihood=likelihood,
            timesteps=timesteps,
        )
        x0 = model.sample(NO_PARAMS, jax.random.key(0), 200, steps=4)
        return np.asarray(x0), model.elbo(NO_PARAMS, jax.random.key(0), levels_data(8))

    drawn, bound = samples(nan_at_the_least_noise, 4)
    assert np.all(np.isfinite(bound)) and np.all(np.ptp(drawn, 0) >= LEVELS - 2)
    np.testing.assert_array_equal(drawn, samples(zeros_of, 4)[0])
    assert np.any(drawn != samples(nan_at_the_least_noise, None)[0])  # continuous time calls it


def test_mean_is_sampled_in_steps_of_its_chain():
    model = model_of(parameterization="mean", timesteps=6)
    params = init_params(model)
    for steps in (4, 12):
        with pytest.raises(ValueError, match=f"divisor of timesteps = 6, found {steps}"):
            model.sample(params, jax.random.key(0), 2, steps=steps)
    sample = jit(partial(model.sample, n=2, steps=3))
    assert sample(params, jax.random.key(0)).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match=r"steps: .*found 0"):
        model.sample(params, jax.random.key(0), 2, steps=0)
    with pytest.raises(ValueError, match=r"sampler: unknown name 'dpm'.*choices: ancestral"):
        model.sample(params, jax.random.key(0), 2, steps=2, sampler="dpm")
    fitted = {"name": "ancestral", "variance": "fitted"}
    with pytest.raises(ValueError, match="fitted on the training chain, expected 6, found 3"):
        model.fit_sampler(sampler=fitted, steps=3)
    measure = model.fit_sampler(sampler=fitted, steps=6)
    squares = jit(measure)(params, jax.random.key(1), levels_data(4)).mean(0)
    wide = jit(partial(model.sample, n=2, steps=6, sampler=fitted))
    assert wide(params, jax.random.key(0), fitted=squares).shape == (2, *SHAPE)
    assert model.fit_sampler(steps=6) is None
