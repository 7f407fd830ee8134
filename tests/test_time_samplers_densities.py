"""Densities of the times: exact and bounded probabilities on bins, and draws that keep the mean."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit
from small_times import CHAINS, FIRST, LAST, RUGGED, keys, moments_for

from vdm_jax.specs import build
from vdm_jax.time_samplers import TIME_SAMPLERS, TrainingPath, bin_probabilities, draw_weighted
from vdm_jax.time_samplers.bins import GRAIN, best_mass, bin_edges, mean_square


def best_probabilities(moments, mix, timesteps):
    return bin_probabilities(best_mass(moments, bin_edges(len(moments), timesteps)), mix, timesteps)


@pytest.mark.parametrize("timesteps", CHAINS)
@pytest.mark.parametrize("moments", [RUGGED, RUGGED[:10]], ids=len)
def test_weighted_draws_have_the_mean_of_uniform_draws(moments, timesteps):
    """A quadrature over u in float64 integrates a function with a jump, or counts the steps of a chain."""
    n = 2**19
    with jax.enable_x64(True):
        probabilities = best_probabilities(moments_for(moments, timesteps), 0.1, timesteps)
        drawn = jax.jit(partial(draw_weighted, timesteps=timesteps))(
            jax.random.key(3), jnp.arange(n) / n, probabilities
        )
        t, weight = np.asarray(drawn.t), np.asarray(drawn.weight)
    assert np.max(weight) < 1.01 / 0.1
    if timesteps is None:
        assert t.min() >= 0 and t.max() <= 1
        estimate = np.mean(weight * (np.exp(-3 * t) + (t > 0.3)))
        np.testing.assert_allclose(estimate, (1 - math.exp(-3)) / 3 + 0.7, rtol=2e-5)
    else:
        estimate = np.bincount(t, weight, minlength=timesteps) / n
        np.testing.assert_allclose(estimate, 1 / timesteps, atol=2 * np.max(weight) / n)
    np.testing.assert_array_equal(np.bincount(drawn.bin) > 0, True)


def test_bin_probabilities_accept_any_dtype_and_check_bins():
    for kind in ("int32", "float16", "float32"):
        probabilities = bin_probabilities(jnp.asarray([1, 3], kind), 0.5, None)
        np.testing.assert_array_equal(probabilities, [0.375, 0.625])
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
    """A float32 u in [0, 1) distinguishes only 2¹³ of the 2¹⁸ steps in the bin."""
    probabilities = np.full(64, 2.0**-10, np.float32)
    probabilities[40] = 1 - 63 * 2.0**-10
    draw = partial(draw_weighted, probability=jnp.asarray(probabilities), timesteps=timesteps)
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
    moments = moments_for(RUGGED, timesteps).astype(dtype)
    probabilities = np.asarray(best_probabilities(moments, mix, timesteps), np.float64)
    share = np.diff(bin_edges(64, timesteps)) / (timesteps or 1)
    assert probabilities.sum() == 1
    np.testing.assert_array_equal(probabilities / GRAIN, np.round(probabilities / GRAIN))
    deviations = np.sqrt(np.asarray(moments, np.float32)) * share
    expected = (1 - mix) * deviations / deviations.sum() + mix * share
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1.01 * GRAIN)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_uninformative_moments_give_the_uniform_density(bad):
    moments = jnp.full(64, bad).at[0].set(bad)
    np.testing.assert_allclose(best_probabilities(moments, 0.1, None), 1 / 64, atol=GRAIN)
    single_bad = jnp.ones(64).at[3].set(bad)
    assert np.all(np.isfinite(best_probabilities(single_bad, 0.1, None)))


def test_normal_densities_match_their_papers():
    """Each bin has the mass of a quadrature, and no weight exceeds 1/mix."""
    path = TrainingPath(None, lambda t: FIRST + (LAST - FIRST) * t, jnp.ones_like)
    n = 2**16
    cases = {
        "logit_normal": (lambda t: np.log(t / (1 - t)), 0.4, 0.7),
        "lognormal_sigma": (lambda t: 0.5 * (FIRST + (LAST - FIRST) * t), -0.3, 0.8),
    }
    for name, (normal_of, mean, deviation) in cases.items():
        spec = {"name": name, "mean": mean, "deviation": deviation, "bins": 32, "mix": 0.2}
        sampler = build(TIME_SAMPLERS, spec)
        assert sampler.init(path) is None
        drawn = jit(partial(sampler.sample, None, path))(jax.random.key(0), jnp.arange(n) / n)
        middle = (np.arange(32 * 1000) + 0.5) / (32 * 1000)
        z = (normal_of(middle) - mean) / deviation
        # the density of t is that of the normal variable times its slope
        density = np.exp(-0.5 * z**2) * np.gradient(normal_of(middle), middle)
        mass = density.reshape(32, 1000).sum(1)
        expected = 0.8 * mass / mass.sum() + 0.2 / 32
        frequencies = np.bincount(drawn.bin, minlength=32) / n
        np.testing.assert_allclose(frequencies, expected, atol=2e-4, err_msg=name)
        assert np.max(drawn.weight) < 1.01 / 0.2


def test_mean_square_of_each_bin():
    squares = mean_square(lambda t: 3 * t, 4, None)
    low, high = np.arange(4) / 4, np.arange(1, 5) / 4
    np.testing.assert_allclose(squares, 9 * (high**3 - low**3) / 3 * 4, rtol=0.01)
    np.testing.assert_allclose(mean_square(lambda i: 1.0 * i, 64, 5), np.arange(5) ** 2)
    assert np.all(np.isfinite(mean_square(lambda t: 1e30 * (1 + t), 4, None)))
