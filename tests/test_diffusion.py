"""The forward process, its posterior and its bridge: identities of densities, eq. (5)–(9) and (17)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.diffusion import (
    Interval,
    alpha,
    bridge,
    data_interval,
    log1mexp,
    log_alpha,
    log_sigma,
    marginal,
    posterior,
    sigma,
    transition,
)
from vdm_jax.gaussian import kl

SHAPES = [(), (3,), (2, 3)]
EXTREMES = [-60.0, -20.0, -13.3, 0.0, 5.0, 20.0, 60.0]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)
# Dyadic numbers, so that γ + Δ has no rounding and all the error that a test sees is the code's own
gammas = st.integers(-20 * 2**20, 12 * 2**20).map(lambda n: n / 2**20)
widths = st.tuples(st.integers(1, 15), st.integers(-20, 0)).map(lambda n: n[0] * 2.0 ** n[1])


def step(gamma_s, delta) -> Interval:
    return Interval(*(jnp.asarray(x) for x in (gamma_s, gamma_s + delta, delta)))


def noise(seed, shape, n):
    return [jnp.asarray(x) for x in np.random.default_rng(seed).normal(size=(n, *shape))]


def on_the_chain(x0, step, eps_s, eps_t):
    """A latent x_s of x_0 and a latent x_t of that."""
    q = marginal(x0, step.gamma_s)
    xs = q.mean + jnp.exp(0.5 * q.log_var) * eps_s
    q = transition(xs, step)
    return xs, q.mean + jnp.exp(0.5 * q.log_var) * eps_t


@jax.jit
def bayes(x0, xs, xt, step):
    left = posterior(xt, x0, step).log_prob(xs) + marginal(x0, step.gamma_t).log_prob(xt)
    right = transition(xs, step).log_prob(xt) + marginal(x0, step.gamma_s).log_prob(xs)
    return left, right


@given(shape=shapes, seed=seeds, gamma_s=gammas, delta=widths)
def test_bayes_identity(shape, seed, gamma_s, delta):
    """q(x_s|x_t,x_0) q(x_t|x_0) = q(x_t|x_s) q(x_s|x_0), at any points and at likely ones."""
    with jax.enable_x64(True):
        interval = step(gamma_s, delta)
        x0, eps_s, eps_t = noise(seed, shape, 3)
        for points in ((eps_s, eps_t), on_the_chain(x0, interval, eps_s, eps_t)):
            left, right = bayes(x0, *points, interval)
            np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-6)


@given(seed=seeds, gamma_s=gammas, delta=widths)
def test_posterior_is_the_precision_weighted_mean(seed, gamma_s, delta):
    """The textbook product of two Gaussians in x_s, from α and σ alone."""
    with jax.enable_x64(True):
        interval = step(gamma_s, delta)
        x0, xt = noise(seed, (3,), 2)
        a_s, a_t = (1 / np.sqrt(1 + np.exp(g)) for g in interval[:2])
        v_s, v_ts = np.exp(gamma_s) * a_s**2, np.exp(interval.gamma_t) * a_t**2 * -np.expm1(-delta)
        precision = 1 / v_s + (a_t / a_s) ** 2 / v_ts
        mean = (a_s * np.asarray(x0) / v_s + a_t / a_s * np.asarray(xt) / v_ts) / precision
        q = posterior(xt, x0, interval)
        np.testing.assert_allclose(np.exp(q.log_var), 1 / precision, rtol=1e-10)
        np.testing.assert_allclose(q.mean, mean, rtol=1e-9, atol=1e-12)


@jax.jit
def composed(x, before, after):
    """Mean and variance of two transitions in a row, and of one over both intervals."""
    first = transition(x, before)
    second = transition(first.mean, after)
    ratio = transition(jnp.ones_like(x), after).mean
    twice = second.mean, jnp.exp(second.log_var) + ratio**2 * jnp.exp(first.log_var)
    whole = transition(
        x, Interval(before.gamma_s, after.gamma_t, jnp.add(before.delta, after.delta))
    )
    return twice, (whole.mean, jnp.exp(whole.log_var) * jnp.ones_like(x))


@given(shape=shapes, seed=seeds, gamma=gammas, first=widths, second=widths, data=st.booleans())
def test_transitions_compose(shape, seed, gamma, first, second, data):
    """From any latent, and from the data: γ = −∞, Δ = ∞."""
    with jax.enable_x64(True):
        (x,) = noise(seed, shape, 1)
        before = step(gamma, first)
        before = data_interval(before.gamma_t) if data else before
        after = step(gamma + first, second)
        twice, whole = composed(x, before, after)
        np.testing.assert_allclose(twice[0], whole[0], rtol=1e-11)
        np.testing.assert_allclose(twice[1], whole[1], rtol=1e-11)
        if data:
            q = marginal(x, after.gamma_t)
            np.testing.assert_allclose(whole[0], q.mean, rtol=1e-11)
            np.testing.assert_allclose(whole[1], jnp.exp(q.log_var) * jnp.ones(shape), rtol=1e-11)


@jax.jit
def bridge_bayes(xr, xs, xt, before, after):
    whole = Interval(before.gamma_s, after.gamma_t, before.delta + after.delta)
    left = bridge(xr, xt, before, after).log_prob(xs) + transition(xr, whole).log_prob(xt)
    return left, transition(xr, before).log_prob(xs) + transition(xs, after).log_prob(xt)


@given(shape=shapes, seed=seeds, gamma_r=gammas, first=widths, second=widths)
def test_bridge_identity(shape, seed, gamma_r, first, second):
    """q(x_s|x_r,x_t) q(x_t|x_r) = q(x_s|x_r) q(x_t|x_s)."""
    with jax.enable_x64(True):
        before, after = step(gamma_r, first), step(gamma_r + first, second)
        xr, xs, xt = noise(seed, shape, 3)
        left, right = bridge_bayes(xr, xs, xt, before, after)
        np.testing.assert_allclose(left, right, rtol=1e-9)


@jax.jit
def both_transitions(xr, grid, xt, before, after):
    return jax.vmap(
        lambda xs: transition(xr, before).log_prob(xs) + transition(xs, after).log_prob(xt)
    )(grid)


@pytest.mark.parametrize("gamma_r", [-8.0, 0.0, 3.0])
@pytest.mark.parametrize(("first", "second"), [(0.5, 0.25), (3.0, 1.0), (0.01, 2.0)])
def test_bridge_is_the_integral_over_a_grid(gamma_r, first, second):
    with jax.enable_x64(True):
        before, after = step(gamma_r, first), step(gamma_r + first, second)
        xr, xt = jnp.asarray(0.7), jnp.asarray(-0.2)
        q = bridge(xr, xt, before, after)
        deviation = float(jnp.exp(0.5 * q.log_var))
        grid = q.mean + deviation * jnp.linspace(-12, 12, 2001)
        mass = np.asarray(jax.nn.softmax(both_transitions(xr, grid, xt, before, after)))
        mean = mass @ grid
        # a grid centred on a wrong mean, or of a wrong width, would still give the right moments
        np.testing.assert_allclose(q.mean, mean, atol=1e-9 * deviation)
        np.testing.assert_allclose(deviation**2, mass @ (grid - mean) ** 2, rtol=1e-9)


@given(shape=shapes, seed=seeds, gamma_s=gammas, delta=widths)
def test_bridge_from_the_data_is_the_posterior(shape, seed, gamma_s, delta):
    with jax.enable_x64(True):
        x0, xt = noise(seed, shape, 2)
        after = step(gamma_s, delta)
        q, expected = (
            bridge(x0, xt, data_interval(after.gamma_s), after),
            posterior(xt, x0, after),
        )
        np.testing.assert_allclose(q.mean, expected.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(jnp.exp(q.log_var - expected.log_var), 1, rtol=1e-9)


def test_bridge_in_the_symbols_of_luo():
    """Eq. (17) in the per-step coefficients a = 1 − β of a chain."""
    with jax.enable_x64(True):
        a = 1 - np.linspace(0.01, 0.2, 6)
        product = np.cumprod(a)
        gamma = np.log((1 - product) / product)
        xr, xt = noise(0, (3,), 2)
        for i in range(1, 5):  # x_i between x_{i−1} and x_{i+1}
            before, after = step(gamma[i - 1], gamma[i] - gamma[i - 1]), step(gamma[i], 0)
            after = Interval(
                after.gamma_s, jnp.asarray(gamma[i + 1]), jnp.asarray(gamma[i + 1] - gamma[i])
            )
            v = (1 - a[i]) * (1 - a[i + 1]) / (1 - a[i] * a[i + 1])
            past = np.sqrt(a[i]) / (1 - a[i]) * xr
            future = np.sqrt(a[i + 1]) / (1 - a[i + 1]) * xt
            q = bridge(xr, xt, before, after)
            np.testing.assert_allclose(jnp.exp(q.log_var), v, rtol=1e-10)
            np.testing.assert_allclose(q.mean, v * (past + future), rtol=1e-10)
            np.testing.assert_allclose(transition(xr, before).mean, np.sqrt(a[i]) * xr, rtol=1e-10)
            np.testing.assert_allclose(
                jnp.exp(transition(xr, before).log_var), 1 - a[i], rtol=1e-10
            )


@given(gamma=gammas)
def test_signal_and_noise(gamma):
    """Variance preserving, and γ is the negative log-SNR, eq. (5)."""
    with jax.enable_x64(True):
        np.testing.assert_allclose(alpha(gamma) ** 2 + sigma(gamma) ** 2, 1, rtol=1e-14)
        np.testing.assert_allclose(2 * (log_sigma(gamma) - log_alpha(gamma)), gamma, atol=1e-13)


@pytest.mark.parametrize("function", [alpha, sigma])
def test_signal_and_noise_in_float32(function):
    """Relative accuracy at both ends, where 1 − α² or 1 − σ² is zero in float32."""
    gamma = np.asarray(EXTREMES, np.float32)
    single = np.asarray(function(jnp.asarray(gamma)), np.float64)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, function(jnp.asarray(gamma, float)), rtol=3e-6)


@pytest.mark.parametrize("delta", [1e-7, 1e-4, 0.01, 0.5, 0.699, 0.701, 3.0, 15.0, 80.0])
def test_log1mexp(delta):
    value, slope = jax.value_and_grad(log1mexp)(jnp.float32(delta))
    exact = np.float64(np.float32(delta))
    reference = np.log(-np.expm1(-exact)) if delta < 1 else np.log1p(-np.exp(-exact))
    np.testing.assert_allclose(value, reference, rtol=1e-6)
    np.testing.assert_allclose(slope, 1 / np.expm1(exact), rtol=2e-6)


def test_log1mexp_of_the_data_interval():
    assert jax.value_and_grad(log1mexp)(jnp.asarray(jnp.inf)) == (0, 0)


@pytest.mark.parametrize("delta", [0.3, 1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("gamma_s", [-13.3, -4.1, 4.3])
def test_variances_in_float32(gamma_s, delta):
    """From Δ itself: γ_t − γ_s of the rounded γ is off by 10 % of the shortest, or is zero."""

    def variances():
        interval = step(gamma_s, delta)
        past = Interval(interval.gamma_s - 0.5, interval.gamma_s, jnp.asarray(0.5))
        x = jnp.zeros(())
        return [
            jnp.exp(q.log_var)
            for q in (
                transition(x, interval),
                posterior(x, x, interval),
                bridge(x, x, past, interval),
            )
        ]

    single = np.asarray(variances(), np.float64)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, variances(), rtol=1e-5)


@jax.jit
def densities_and_slopes(gamma_t, delta, x0, eps, x0_hat):
    """Every density of the module at likely points, with its gradient in every argument."""

    def total(gamma_s, gamma_t, delta, x0, eps, x0_hat):
        interval = Interval(gamma_s, gamma_t, delta)
        xs, xt = on_the_chain(x0, interval, eps, 2 * eps)
        q, p = posterior(xt, x0, interval), posterior(xt, x0_hat, interval)
        past = Interval(gamma_s - 0.5, gamma_s, jnp.full_like(delta, 0.5))
        densities = (
            marginal(x0, gamma_t).log_prob(xt),
            transition(xs, interval).log_prob(xt),
            q.log_prob(xs),
            bridge(xs, xt, past, interval).log_prob(xs),
        )
        return sum(densities) + kl(q, p)

    run = jax.value_and_grad(total, (0, 1, 2, 3, 4, 5))
    run = jax.vmap(run, in_axes=(0, 0, None, None, None, None))
    return run(gamma_t - delta, gamma_t, delta, x0, eps, x0_hat)


@pytest.mark.parametrize("delta", [1e-6, 0.5, 20.0])
def test_values_and_gradients_are_finite_at_extremes(delta):
    gamma_t = jnp.asarray(EXTREMES)
    x = jnp.asarray([0.9, -0.4, 0.1])
    leaves = jax.tree.leaves(densities_and_slopes(gamma_t, jnp.asarray(delta), x, x[::-1], 0.5 * x))
    assert len(leaves) == 7
    for leaf in leaves:
        assert np.isfinite(leaf).all()


def test_steps_to_the_data_are_finite():
    """Δ = ∞: the posterior's mean is x̂_0, whose gradient is one; nothing turns into NaN."""

    def total(gamma_0, xt, x0):
        interval = data_interval(gamma_0)
        return jnp.sum(posterior(xt, x0, interval).mean) + transition(x0, interval).log_prob(xt)

    x = jnp.asarray([0.9, -0.4])
    q = posterior(x, 2 * x, data_interval(jnp.asarray(-13.3)))
    np.testing.assert_array_equal(q.mean, 2 * x)
    assert q.log_var == -jnp.inf
    run = jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1, 2)), in_axes=(0, None, None)))
    for leaf in jax.tree.leaves(run(jnp.asarray(EXTREMES), x, x)):
        assert np.isfinite(leaf).all()
