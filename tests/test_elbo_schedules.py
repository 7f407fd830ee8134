"""The bound under extreme and learned schedules, and the draws of its times and latents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_elbo import CONTINUOUS, keys

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.elbo import draw_noisy, draw_times, negative_elbo
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.schedules import SCHEDULES, linear


@pytest.mark.parametrize(("timesteps", "end"), [(1, 20.0), (10, 60.0), (None, 20.0), (None, 60.0)])
def test_extreme_schedules_have_finite_values_and_gradients(timesteps, end):
    names = CONTINUOUS if timesteps is None else list(PARAMETERIZATIONS)
    rows = [PARAMETERIZATIONS[name]() for name in names]
    schedule = SCHEDULES["learned_linear"](gamma_min=-end, gamma_max=end)
    x = oracles.mixture((2, 3)).sample(0, 32)
    params = {"w": jnp.float32(0.3), "b": jnp.float32(0.1)}, schedule.init(jax.random.key(0))

    @jit
    @partial(jax.vmap, in_axes=(None, 0, None, None))
    @jax.value_and_grad
    def bound(params, i, x, keys):
        net, learned = params

        def single(x, key):
            return negative_elbo(
                lambda xt, gamma_t: net["w"] * xt + net["b"],
                x,
                key,
                schedule=schedule,
                schedule_params=learned,
                parameterization=stacked(rows, i),
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(single)(x, keys))

    results = bound(params, jnp.arange(len(rows)), jnp.asarray(x, jnp.float32), keys(32))
    for path, leaf in jax.tree_util.tree_leaves_with_path(results):
        assert dict(zip(names, np.isfinite(leaf), strict=True)) == dict.fromkeys(names, True), path


def test_gradient_of_learned_end_points_is_exact():
    law, T, n = oracles.gaussian((2,)), 2, 80_000
    schedule = SCHEDULES["learned_linear"](gamma_min=-3.0, gamma_max=0.0)
    x0 = law.sample(0, 1)
    row = PARAMETERIZATIONS["eps"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jit
    @partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def gradient(params, key):
        return negative_elbo(
            denoise,
            jnp.asarray(x0[0], jnp.float32),
            key,
            schedule=schedule,
            schedule_params=params,
            timesteps=T,
        ).total

    def exact(gamma_min=0.0, log_width=0.0):
        first = -3.0 + gamma_min
        gammas = np.linspace(first, first + 3.0 * np.exp(log_width), T + 1)
        ends = sum(oracles.ends(gammas[0], gammas[-1], x0))
        return (ends + oracles.matching(law, gammas, x0))[0]

    gradients = gradient(schedule.init(jax.random.key(0)), keys(n))
    for name, values in gradients.items():
        expected = (exact(**{name: 1e-4}) - exact(**{name: -1e-4})) / 2e-4
        error = oracles.standard_error(values)
        assert abs(expected) > 10 * error, name
        assert abs(np.asarray(values, np.float64).mean() - expected) < 4 * error, name


@pytest.mark.parametrize("timesteps", [5, None])
def test_gradient_reaches_every_parameter_of_a_learned_curve(timesteps):
    schedule = SCHEDULES["learned_monotone"](gamma_min=-5.0, gamma_max=3.0, hidden=4)
    x0 = jnp.asarray(oracles.gaussian((3,)).sample(0, 64), jnp.float32)

    @jit
    @jax.grad
    def gradient(params):
        def single(x, key):
            return negative_elbo(
                lambda xt, gamma_t: xt,
                x,
                key,
                schedule=schedule,
                schedule_params=params,
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(single)(x0, keys(64)))

    gradients = gradient(schedule.init(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        assert np.all(np.abs(leaf) > 0), path


# --- draws of times and latents ----------------------------------------------------------------------


def test_noisy_samples_follow_the_marginal_on_the_grid():
    schedule, T = linear(), 7
    x0 = jnp.asarray([0.5, -0.25])
    draw = partial(draw_noisy, schedule=schedule, schedule_params=None, timesteps=T)
    times = jnp.asarray((np.arange(T) + 0.999) / T, jnp.float32)
    noisy = jit(jax.vmap(draw, (0, None, 0)))(keys(T), x0, times)
    gammas = np.linspace(*(schedule.gamma(None, t) for t in (0.0, 1.0)), T + 1)
    step = oracles.float64(noisy.interval)
    np.testing.assert_allclose(step.gamma_s, gammas[:-1], rtol=1e-5)
    np.testing.assert_allclose(step.gamma_t, gammas[1:], rtol=1e-5)
    np.testing.assert_allclose(noisy.time_weight, T * np.expm1(step.delta), rtol=3e-6)
    signal, noise = (np.sqrt(oracles.expit(sign * step.gamma_t))[:, None] for sign in (-1, 1))
    np.testing.assert_allclose(noisy.xt, signal * np.asarray(x0) + noise * noisy.eps, rtol=1e-4)


@pytest.mark.parametrize("T", [1, 7, 100])
def test_times_of_a_chain_are_uniform_over_its_steps(T):
    times = jit(jax.vmap(lambda key: draw_times(key, 0.0, T)))(keys(70_000))
    assert jnp.issubdtype(times.dtype, jnp.integer)
    counts = np.bincount(times, minlength=T)
    assert len(counts) == T
    assert np.all(np.abs(counts - 70_000 / T) < 4.5 * np.sqrt(70_000 / T))


def test_times_are_stratified_over_the_phases_of_a_batch():
    n = 8
    phases = jnp.arange(n) / n
    for seed in range(3):
        steps = draw_times(jax.random.key(seed), phases, 4)
        np.testing.assert_array_equal(np.bincount(steps), np.full(4, 2))
        times = np.sort(draw_times(jax.random.key(seed), phases, None))
        np.testing.assert_allclose(np.diff(times), 1 / n, atol=1e-6)
        assert 0 <= times[0] < 1 / n
    for n in (49, 1000):  # with as many steps as examples each occurs once, however j/n is rounded
        steps = draw_times(jax.random.key(0), jnp.arange(n, dtype=jnp.float32) / n, n)
        np.testing.assert_array_equal(np.sort(steps), np.arange(n))


@pytest.mark.parametrize("steps", [1, 2**24, np.int64(10)])
def test_whole_numbers_of_steps_are_accepted(steps):
    assert whole_number(steps, "steps", 1, MAX_STEPS) == steps


def test_more_steps_than_float32_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"steps: .* in \[1, 16777216\], found 16777217"):
        whole_number(2**24 + 1, "steps", 1, MAX_STEPS)
