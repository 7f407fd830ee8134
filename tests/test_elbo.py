"""The bound as an average over many keys, on continuous data and on levels, within standard errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_elbo import CONTINUOUS, FIRST, LAST, MILD, keys

from vdm_jax.elbo import negative_elbo
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import SCHEDULES, linear


@pytest.mark.parametrize("timesteps", [6, None])
@pytest.mark.parametrize("shape", oracles.SHAPES, ids=str)
def test_estimate_is_unbiased_for_any_shape(shape, timesteps):
    law, n = oracles.gaussian(shape), 4000
    x0 = law.sample(0, n)
    gammas = np.linspace(FIRST, LAST, 7)
    row = PARAMETERIZATIONS["eps"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jit
    @jax.vmap
    def estimate(x, key):
        return negative_elbo(denoise, x, key, schedule=MILD, timesteps=timesteps)

    elbo = estimate(jnp.asarray(x0, jnp.float32), keys(n))
    if timesteps is None:
        expected = oracles.matching_continuous(law, FIRST, LAST, x0)
    else:
        expected = oracles.matching(law, gammas, x0)
    reconstruction, prior = oracles.ends(FIRST, LAST, x0)
    np.testing.assert_allclose(elbo.prior, prior, rtol=1e-4, atol=1e-5)
    for part, exact in ((elbo.matching, expected), (elbo.reconstruction, reconstruction)):
        difference = np.asarray(part, np.float64) - exact
        error = oracles.standard_error(difference)
        assert error < 0.05 * np.mean(np.abs(exact))
        assert abs(np.mean(difference)) < 4 * error
    gap = np.asarray(elbo.total, np.float64) + law.log_prob(x0)
    assert np.mean(gap) > -4 * oracles.standard_error(gap)


@pytest.mark.parametrize("name", oracles.LAWS)
def test_average_bound_is_above_the_negative_log_likelihood(name):
    shape, n, T = (2, 3), 20_000, 4
    law = oracles.LAWS[name](shape)
    x0 = law.sample(1, n)
    row = PARAMETERIZATIONS["x0"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jit
    @jax.vmap
    def estimate(x, key):
        return negative_elbo(
            denoise, x, key, schedule=MILD, parameterization="x0", timesteps=T
        ).total

    gap = np.asarray(estimate(jnp.asarray(x0, jnp.float32), keys(n)), np.float64) + law.log_prob(x0)
    # four steps leave a gap of many standard errors, so that a bound that is a few per cent too small fails
    assert np.mean(gap) > 10 * oracles.standard_error(gap)


@pytest.mark.parametrize("timesteps", [10, None])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_parameterization_gives_the_same_estimate(timesteps, double):
    names = CONTINUOUS if timesteps is None else list(PARAMETERIZATIONS)
    law = oracles.mixture((2, 3, 4))
    with jax.enable_x64(double):
        x0 = jnp.asarray(law.sample(0, 16), float)
        schedule = linear(gamma_min=FIRST, gamma_max=LAST)
        interval_of = oracles.interval_of_step(schedule, None, timesteps)

        @jit
        @jax.vmap
        def bounds(x, key):
            return [
                negative_elbo(
                    law.network(PARAMETERIZATIONS[name](), interval_of),
                    x,
                    key,
                    schedule=schedule,
                    parameterization=name,
                    timesteps=timesteps,
                )
                for name in names
            ]

        first, *others = bounds(x0, keys(16))
    assert first.matching.dtype == (np.float64 if double else np.float32)
    for other in others:
        rtol = 1e-13 if double else 1e-5
        assert_close = partial(np.testing.assert_allclose, rtol=rtol)
        jax.tree.map(assert_close, other, first)


# --- data on levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [3, None])
@pytest.mark.parametrize("likelihood", ["softmax", "discretized_gaussian"])
def test_integer_images_have_finite_bounds_and_gradients(likelihood, timesteps):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    images[0], images[1] = 0, 255  # the outer bins

    @jit
    @jax.value_and_grad
    def bound(scale, images, keys):
        def single(x, key):
            return negative_elbo(
                lambda xt, gamma_t: scale * xt + jnp.tanh(gamma_t),
                x,
                key,
                schedule="linear",
                likelihood=likelihood,
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(single)(images, keys))

    value, gradient = bound(0.9, jnp.asarray(images), keys(4))
    assert np.isfinite(value)
    assert np.isfinite(gradient)
    assert gradient != 0


def test_likelihood_reads_the_network_only_if_it_denoises():
    x = jnp.full((3,), 2, jnp.uint8)

    def reconstruction(scale, name):
        return negative_elbo(
            lambda xt, gamma_t: scale * xt,
            x,
            jax.random.key(0),
            schedule=MILD,
            likelihood={"name": name, "levels": 4},
        ).reconstruction

    for name, reads in (("softmax", False), ("discretized_gaussian", True)):
        low, high = jit(jax.vmap(partial(reconstruction, name=name)))(jnp.array([0.1, 0.9]))
        assert (low != high) == reads


# --- mistakes ----------------------------------------------------------------------------------------

LEARNED = "the schedule is learned, expected schedule.init\\(key\\)"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"schedule": "liner"},
            ValueError,
            "schedule: unknown name 'liner'; did you mean 'linear'",
        ),
        ({"schedule": "liner"}, ValueError, "choices: " + ", ".join(sorted(SCHEDULES))),
        ({"parameterization": "epz"}, ValueError, "parameterization: .*'epz'.*did you mean 'eps'"),
        ({"likelihood": "gauss"}, ValueError, "likelihood: .*'gauss'.*choices: .*softmax"),
        ({"form": "printed"}, ValueError, "form: .*choices: .*consistency_log_ratio, denoising"),
        ({"schedule": {"name": "linear", "gamma_mim": 1.0}}, ValueError, "mean 'gamma_min'"),
        ({"parameterization": "mean"}, ValueError, "'mean' .*continuous.*timesteps=T, found None"),
        ({"form": "consistency_bridge"}, ValueError, "'consistency_bridge' .*found None"),
        ({"timesteps": 0}, ValueError, "timesteps: expected a whole number in .*, found 0"),
        ({"timesteps": -5}, ValueError, "found -5"),
        (
            {"likelihood": "softmax"},
            TypeError,
            "'softmax': expected integers 0..255, found float32",
        ),
        ({"likelihood": "discretized_gaussian"}, TypeError, "expected integers 0..255"),
        ({"schedule": "learned_linear"}, ValueError, LEARNED),
        ({"schedule": "learned_monotone"}, ValueError, LEARNED),
        ({"schedule": "from_betas"}, ValueError, "schedule: 'from_betas' needs betas"),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, error, message):
    settings = {"schedule": "linear"} | settings
    with pytest.raises(error, match=message):
        negative_elbo(lambda xt, gamma_t: xt, jnp.zeros((2,)), jax.random.key(0), **settings)
