"""The five parameterizations mean what they say, and exact weights make each loss the bound, eq. (13)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.diffusion import Interval, alpha, data_interval, marginal, posterior, sigma
from vdm_jax.gaussian import kl
from vdm_jax.parameterizations import (
    PARAMETERIZATIONS,
    bound_weight,
    exact_weight,
    regression_target,
    stacked,
    to_x0,
)
from vdm_jax.schedules import SCHEDULES, interval

ROWS = {name: factory() for name, factory in PARAMETERIZATIONS.items()}
SHAPES = [(), (3,), (2, 3)]
EXTREMES = [-60.0, -20.0, -13.3, 0.0, 5.0, 20.0, 60.0]
BETAS = np.linspace(1e-4, 0.02, 1000)
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)
# multiples of 2^−14, so that γ_s, Δ and γ_t = γ_s + Δ are all exact in float32
gammas = st.integers(-13 * 2**14, 5 * 2**14).map(lambda n: n / 2**14)


def widths(smallest: int):
    return st.tuples(st.integers(1, 15), st.integers(smallest, -1)).map(
        lambda n: n[0] * 2.0 ** n[1]
    )


def step(gamma_s, delta) -> Interval:
    return Interval(*(jnp.asarray(x, float) for x in (gamma_s, gamma_s + delta, delta)))


def draw(seed, shape, n):
    values = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    return [jnp.asarray(x, float) for x in values]


@jax.jit
def losses(x0, eps, F, step):
    """Return exact_weight ‖F − target‖² of every row."""
    return {
        name: exact_weight(step, row(step))
        * jnp.sum(jnp.square(F - regression_target(x0, eps, row.target(step))))
        for name, row in ROWS.items()
    }


@jax.jit
def divergences(x0, eps, F, step):
    """Return the KL between the posteriors of x_0 and of the x̂_0 that F means in every row."""
    xt = alpha(step.gamma_t) * x0 + sigma(step.gamma_t) * eps
    q = posterior(xt, x0, step)
    return {name: kl(q, posterior(xt, to_x0(F, xt, row(step)), step)) for name, row in ROWS.items()}


@given(shape=shapes, seed=seeds, gamma_s=gammas, delta=widths(-12))
def test_weighted_errors_are_the_divergence_in_float64(shape, seed, gamma_s, delta):
    with jax.enable_x64(True):
        x0, eps, F = draw(seed, shape, 3)
        weighted = losses(x0, eps, F, step(gamma_s, delta))
        expected = divergences(x0, eps, F, step(gamma_s, delta))
        for name in ROWS:
            np.testing.assert_allclose(weighted[name], expected[name], rtol=1e-10, err_msg=name)


@given(shape=shapes, seed=seeds, gamma_s=gammas, delta=widths(-14))
def test_weighted_errors_are_the_divergence_in_float32(shape, seed, gamma_s, delta):
    """The loss is in float32; the divergence, a difference of two means, in float64 of the same numbers."""
    weighted = losses(*draw(seed, shape, 3), step(gamma_s, delta))
    with jax.enable_x64(True):
        expected = divergences(*draw(seed, shape, 3), step(gamma_s, delta))
    for name in ROWS:
        np.testing.assert_allclose(weighted[name], expected[name], rtol=1e-5, err_msg=name)


def weights_of(row, steps):
    return jax.vmap(lambda at: exact_weight(at, row(at)))(steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_are_accurate_for_every_number_of_steps(name):
    """Weights in float32 agree with float64 at the same times.

    `eps` sees Δ alone. The others contain e^{±γ}, and γ near −13 is itself rounded to 10⁻⁶ in float32.
    """
    needed = {"from_betas": {"betas": BETAS}, "piecewise_linear": {"gammas": [-13.3, 0.0, 5.0]}}
    schedule = SCHEDULES[name](**needed.get(name, {}))
    params = schedule.init(jax.random.key(0))

    @jax.jit
    def weights(params, s, t):
        steps = interval(schedule, params, s, t)
        return {name: weights_of(row, steps) for name, row in ROWS.items()}

    for timesteps in (1, 10, 10**3, 10**5, 10**7):
        i = np.unique(np.geomspace(1, timesteps, 400).astype(np.int64))
        i = np.resize(np.concatenate([i, timesteps + 1 - i]), 800).astype(np.float32)
        s, t = (i - 1) / np.float32(timesteps), i / np.float32(timesteps)
        values = weights(params, s, t)
        with jax.enable_x64(True):
            params64 = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
            exact = weights(params64, s.astype(np.float64), t.astype(np.float64))
        for row in ROWS:
            rtol = 1e-6 if row == "eps" else 5e-6
            message = f"{row}, T = {timesteps}"
            np.testing.assert_allclose(values[row], exact[row], rtol=rtol, err_msg=message)


@given(gamma_s=gammas, delta=widths(-12))
def test_weights_of_every_space(gamma_s, delta):
    """The weights are the closed forms of docs/equations.md §4, in units of the rate expm1(Δ)."""
    with jax.enable_x64(True):
        at = step(gamma_s, delta)
        gamma_t, rate = gamma_s + delta, np.expm1(delta)
        variance_s, variance_t = 1 / (1 + np.exp(-gamma_s)), 1 / (1 + np.exp(-gamma_t))
        expected = {
            "x0": rate * np.exp(-gamma_t),
            "eps": rate,
            "v": rate * (1 - variance_t),
            "score": rate * variance_t,
            "flow": rate / (1 + np.exp(gamma_t / 2)) ** 2,
            "mean": 1 / (variance_s * -np.expm1(-delta)),
        }
        assert set(expected) == set(ROWS)
        for name, row in ROWS.items():
            weight = exact_weight(at, row(at))
            np.testing.assert_allclose(weight, 0.5 * expected[name], rtol=1e-10, err_msg=name)
            snr = np.exp(-gamma_t) * row(at).out ** 2
            scale = bound_weight(at, 1.0, row(at).out).scale
            np.testing.assert_allclose(scale**2, snr, rtol=1e-12, err_msg=name)


@given(shape=shapes, seed=seeds, gamma_s=gammas, delta=widths(-12))
def test_targets_mean_the_data(shape, seed, gamma_s, delta):
    """The target is (x_0 − skip·x_t)/out, and it means x_0."""
    with jax.enable_x64(True):
        x0, eps = draw(seed, shape, 2)
        at = step(gamma_s, delta)
        xt = alpha(at.gamma_t) * x0 + sigma(at.gamma_t) * eps
        for name, row in ROWS.items():
            preconditioning, target = row(at), regression_target(x0, eps, row.target(at))
            # the terms of this difference may be far larger than the difference
            atol = 1e-14 * float(jnp.max(jnp.abs(preconditioning.skip * xt)) + 1)
            naive = (x0 - preconditioning.skip * xt) / preconditioning.out
            np.testing.assert_allclose(
                target, naive, 1e-10, atol / abs(preconditioning.out), err_msg=name
            )
            np.testing.assert_allclose(
                to_x0(target, xt, preconditioning), x0, 1e-10, atol, err_msg=name
            )


@given(seed=seeds, gamma_s=gammas, delta=widths(-12))
def test_targets_are_what_their_names_say(seed, gamma_s, delta):
    with jax.enable_x64(True):
        x0, eps = draw(seed, (3,), 2)
        at = step(gamma_s, delta)
        a, b = alpha(at.gamma_t), sigma(at.gamma_t)
        xt = a * x0 + b * eps
        expected = {
            "x0": x0,
            "eps": eps,
            "v": a * eps - b * x0,
            "score": jax.grad(lambda x: marginal(x0, at.gamma_t).log_prob(x))(xt),
            "mean": posterior(xt, x0, at).mean,
            "flow": eps - x0,
        }
        assert set(expected) == set(ROWS)
        for name, row in ROWS.items():
            target = regression_target(x0, eps, row.target(at))
            # the score is computed from the difference x_t − α x_0
            np.testing.assert_allclose(target, expected[name], 1e-9, 1e-12 / b**2, err_msg=name)


def test_stacked_rows_equal_the_single_rows():
    """A vmapped call over a traced index gives the numbers, losses and x̂_0 of each row."""
    at = step(-3.0, 0.5)
    x0, eps, F = draw(0, (2, 3), 3)
    xt = alpha(at.gamma_t) * x0 + sigma(at.gamma_t) * eps
    rows = list(ROWS.values())

    def run(row):
        preconditioning, target = row(at), regression_target(x0, eps, row.target(at))
        return (
            preconditioning,
            target,
            to_x0(F, xt, preconditioning),
            exact_weight(at, preconditioning),
        )

    together = jax.jit(jax.vmap(lambda i: run(stacked(rows, i))))(jnp.arange(len(rows)))
    for i, row in enumerate(rows):
        selected = jax.tree.map(lambda values, i=i: values[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), selected, run(row))
    index = jnp.asarray(0)
    assert not stacked(rows, index).continuous
    assert stacked([ROWS["x0"], ROWS["v"]], index).continuous


@pytest.mark.parametrize("name", ROWS)
def test_continuous_rows_have_a_limit(name):
    row, at = ROWS[name], step(-3.0, 0.0)
    assert np.all(np.isfinite([*row(at), *row.target(at)]))  # flat schedules have such intervals
    limit = bool(abs(row(at).out) < 1e6 * abs(row(step(-3.0, 1.0)).out))
    assert limit is row.continuous


@pytest.mark.parametrize("name", ROWS)
def test_needs_signal_marks_rows_that_divide_by_it(name):
    sizes = [abs(ROWS[name](step(-3.0, gamma + 3.0)).out) for gamma in (30.0, 40.0)]
    assert bool(sizes[1] > 100 * sizes[0]) is ROWS[name].needs_signal


@pytest.mark.parametrize("name", ROWS)
def test_last_step_reads_the_same_data(name):
    """Every row is finite over the interval to the data, where its target still means x_0."""
    row, at = ROWS[name], data_interval(jnp.asarray(-13.3))
    x0, eps = draw(1, (3,), 2)
    xt = alpha(at.gamma_t) * x0 + sigma(at.gamma_t) * eps
    x0_hat = to_x0(regression_target(x0, eps, row.target(at)), xt, row(at))
    np.testing.assert_allclose(x0_hat, x0, rtol=1e-5, atol=1e-6)


@jax.jit
def values_and_slopes(gamma_t, delta, x0, eps, net):
    """Return numbers, x̂_0, targets and losses of every row, and gradients in γ_s, γ_t, Δ, x_0, ε, F."""

    def total(row, gamma_s, gamma_t, delta, x0, eps, net):
        at = Interval(gamma_s, gamma_t, delta)
        preconditioning, target = row(at), regression_target(x0, eps, row.target(at))
        xt = alpha(gamma_t) * x0 + sigma(gamma_t) * eps
        loss = exact_weight(at, preconditioning) * jnp.sum(jnp.square(target - net))
        return loss + bound_weight(at, 1.0, preconditioning.out).scale ** 2, (
            preconditioning,
            target,
            to_x0(net, xt, preconditioning),
        )

    def run(row):
        both = jax.value_and_grad(lambda *x: total(row, *x), tuple(range(6)), has_aux=True)
        over = jax.vmap(both, in_axes=(0, 0, None, None, None, None))
        return over(gamma_t - delta, gamma_t, delta, x0, eps, net)

    return {name: run(row) for name, row in ROWS.items()}


@pytest.mark.parametrize("delta", [1e-4, 0.5, 20.0])
def test_values_and_gradients_are_finite_at_extremes(delta):
    x = jnp.asarray([0.9, -0.4, 0.1])
    results = values_and_slopes(jnp.asarray(EXTREMES), jnp.asarray(delta), x, x[::-1], 0.5 * x)
    assert set(results) == set(ROWS)
    for name, values in results.items():
        for leaf in jax.tree.leaves(values):
            assert np.isfinite(leaf).all(), name
