"""The bound against closed forms: exact sums where noise can be summed out, standard errors where not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vdm_jax.diffusion import marginal
from vdm_jax.elbo import FORMS, Probe, matching, negative_elbo, probe, training_interval
from vdm_jax.parameterizations import PARAMETERIZATIONS, regression_target, stacked
from vdm_jax.schedules import SCHEDULES, linear

CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]
FIRST, LAST = -5.0, 3.0
MILD = {"name": "linear", "gamma_min": FIRST, "gamma_max": LAST}
SPECS = {name: {"name": name} for name in SCHEDULES} | {
    "from_betas": {"name": "from_betas", "betas": np.linspace(1e-3, 0.3, 12)}
}


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def terms(predict, x0, *, schedule, params, timesteps, noise):
    """One row per interval of the matching terms of `predict(xt, interval) -> error`, noise given."""
    step, rate = training_interval(
        schedule, params, (jnp.arange(timesteps) + 0.5) / timesteps, timesteps
    )

    def one(step, rate, eps):
        q = marginal(x0, step.gamma_t)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
        at = Probe(x0, eps, xt, step, rate)
        return matching(at, predict(at))

    return jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))(step, rate, noise)


def error_of(denoise, row):
    def error(at):
        target = regression_target(at.x0, at.eps, row.target(at.interval))
        return row(at.interval).out * (target - denoise(at.xt, at.interval.gamma_t))

    return error


def opposite(shape):
    """ε = ±1 everywhere: an exact rule for the mean of a sum of squares that are affine in each ε."""
    return jnp.stack([jnp.ones(shape), -jnp.ones(shape)])


# --- exact sums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_row_and_schedule_gives_the_closed_form_and_stays_below_its_own_likelihood(name):
    shape, T = (3,), 9
    data, wrong = oracles.gaussian(shape), oracles.gaussian(shape, shift=0.3, scale=2.0)
    x0 = data.sample(0, 4)
    with jax.enable_x64(True):
        schedule = SCHEDULES[name](**{k: v for k, v in SPECS[name].items() if k != "name"})
        params = schedule.init(jax.random.key(0))
        gammas = np.asarray(schedule.gamma(params, jnp.arange(T + 1) / T), np.float64)
        rows = [row() for row in PARAMETERIZATIONS.values()]

        @jax.jit
        @partial(jax.vmap, in_axes=(0, None))
        def bound(i, x0):
            row = stacked(rows, i)
            interval_of = oracles.interval_of_step(schedule, params, T)

            def total(law, x0):
                error = error_of(law.network(row, interval_of), row)
                parts = terms(
                    error, x0, schedule=schedule, params=params, timesteps=T, noise=opposite(shape)
                )
                return jnp.mean(parts)

            return jnp.stack([jax.vmap(partial(total, law))(x0) for law in (data, wrong)])

        found = np.asarray(bound(jnp.arange(len(rows)), jnp.asarray(x0)))
    ends = sum(oracles.ends(gammas[0], gammas[-1], x0))
    for law, parts in zip((data, wrong), found.swapaxes(0, 1), strict=True):
        expected = oracles.matching(law, gammas, x0)
        np.testing.assert_allclose(parts, np.broadcast_to(expected, parts.shape), rtol=1e-9)
        assert np.all(ends + parts > -oracles.chain_log_prob(law, gammas, x0))


def hermite(n: int):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def average_gap(law, timesteps):
    """E[−ELBO + log p(x)] over the data of a one-dimensional law, by quadrature; continuous for None."""
    nodes, weights = hermite(40)
    x0 = np.concatenate(
        [m + np.sqrt(v) * nodes for m, v in zip(law.means, law.variances, strict=True)]
    )
    share = np.concatenate([w * weights for w in law.weights])
    if timesteps is None:
        t, by = np.polynomial.legendre.leggauss(120)
        t, by = (t + 1) / 2, by / 2
    else:
        t, by = (np.arange(timesteps) + 0.5) / timesteps, np.full(timesteps, 1 / timesteps)
    row = PARAMETERIZATIONS["v"]()
    error = error_of(law.network(row, oracles.interval_of_step(None)), row)

    @jax.jit
    def total(x0):
        step, rate = training_interval(
            linear(gamma_min=FIRST, gamma_max=LAST), None, jnp.asarray(t), timesteps
        )

        def one(x0, step, rate, eps):
            q = marginal(x0, step.gamma_t)
            at = Probe(x0, eps, q.mean + jnp.exp(0.5 * q.log_var) * eps, step, rate)
            return matching(at, error(at))

        over_noise = jax.vmap(one, (None, None, None, 0))
        over_times = jax.vmap(over_noise, (None, 0, 0, None))
        parts = jax.vmap(over_times, (0, None, None, None))(x0, step, rate, jnp.asarray(nodes))
        return jnp.einsum("xte,t,e->x", parts, by, weights)

    ends = sum(oracles.ends(FIRST, LAST, x0))
    return share @ (np.asarray(total(jnp.asarray(x0))) + ends + law.log_prob(x0))


@pytest.mark.parametrize("name", oracles.LAWS)
def test_gap_to_the_likelihood_falls_like_one_over_T_to_that_of_continuous_time(name):
    law = oracles.LAWS[name](())
    with jax.enable_x64(True):
        limit = average_gap(law, None)
        T = np.array([32, 64, 128, 256])
        gaps = np.array([average_gap(law, int(n)) for n in T])
    # what is left in continuous time is the decoder's and the prior's; both ends of γ are finite
    assert 0 < limit < 0.02
    assert np.all(np.diff(gaps) < 0)
    order = np.polyfit(np.log(T), np.log(gaps - limit), 1)[0]
    np.testing.assert_allclose(order, -1, atol=0.02)
    np.testing.assert_allclose(2 * gaps[-1] - gaps[-2], limit, rtol=2e-3)


# --- the public function: averages of many keys ------------------------------------------------------


@pytest.mark.parametrize("timesteps", [6, None])
@pytest.mark.parametrize("shape", oracles.SHAPES, ids=str)
def test_estimate_is_unbiased_for_any_shape(shape, timesteps):
    law, n = oracles.gaussian(shape), 4000
    x0 = law.sample(0, n)
    gammas = np.linspace(FIRST, LAST, 7)
    row = PARAMETERIZATIONS["eps"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jax.jit
    @jax.vmap
    def estimate(x, key):
        return negative_elbo(denoise, x, key, schedule=MILD, timesteps=timesteps)

    found = estimate(jnp.asarray(x0, jnp.float32), keys(n))
    if timesteps is None:
        expected = oracles.matching_continuous(law, FIRST, LAST, x0)
    else:
        expected = oracles.matching(law, gammas, x0)
    reconstruction, prior = oracles.ends(FIRST, LAST, x0)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-4, atol=1e-5)
    for part, exact in ((found.matching, expected), (found.reconstruction, reconstruction)):
        off = np.asarray(part, np.float64) - exact
        error = oracles.standard_error(off)
        assert error < 0.03 * np.mean(np.abs(exact))
        assert abs(np.mean(off)) < 4 * error
    gap = np.asarray(found.total, np.float64) + law.log_prob(x0)
    assert np.mean(gap) > -4 * oracles.standard_error(gap)


@pytest.mark.parametrize("name", oracles.LAWS)
def test_average_bound_is_above_the_negative_log_likelihood(name):
    shape, n, T = (2, 3), 20_000, 4
    law = oracles.LAWS[name](shape)
    x0 = law.sample(1, n)
    row = PARAMETERIZATIONS["x0"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jax.jit
    @jax.vmap
    def estimate(x, key):
        return negative_elbo(
            denoise, x, key, schedule=MILD, parameterization="x0", timesteps=T
        ).total

    gap = np.asarray(estimate(jnp.asarray(x0, jnp.float32), keys(n)), np.float64) + law.log_prob(x0)
    # four steps leave a gap of many standard errors, so that a bound too small by a few per cent fails
    assert np.mean(gap) > 10 * oracles.standard_error(gap)


@pytest.mark.parametrize("timesteps", [10, None])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_parameterization_gives_the_same_number_for_the_same_key(timesteps, double):
    names = CONTINUOUS if timesteps is None else list(PARAMETERIZATIONS)
    law = oracles.mixture((2, 3, 4))
    with jax.enable_x64(double):
        x0 = jnp.asarray(law.sample(0, 16), float)
        schedule = linear(gamma_min=FIRST, gamma_max=LAST)
        interval_of = oracles.interval_of_step(schedule, None, timesteps)

        @jax.jit
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

        first, *others = jax.tree.map(np.asarray, bounds(x0, keys(16)))
    assert first.total.dtype == (np.float64 if double else np.float32)
    for other in others:
        np.testing.assert_allclose(other.total, first.total, rtol=1e-13 if double else 1e-5)
        np.testing.assert_allclose(other.matching, first.matching, rtol=1e-12 if double else 3e-5)


# --- the consistency form ----------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [1, 5])
def test_consistency_forms_agree_with_the_denoising_form_and_the_printed_one_does_not(timesteps):
    shape, n = (2,), 40_000
    data = oracles.gaussian(shape)
    x0 = data.sample(3, 1)
    gammas = np.linspace(-2.0, 2.0, timesteps + 1)
    schedule = linear(gamma_min=-2.0, gamma_max=2.0)
    row = PARAMETERIZATIONS["v"]()
    laws = {"best": data, "wrong": oracles.gaussian(shape, shift=0.4, scale=3.0)}

    @partial(jax.jit, static_argnums=0)
    def totals(form, x, keys, law):
        denoise = law.network(row, oracles.interval_of_step(None))

        def one(key):
            return negative_elbo(
                denoise,
                x,
                key,
                schedule=schedule,
                parameterization=row,
                timesteps=timesteps,
                form=form,
            )

        return jax.vmap(one)(keys).total

    for law in laws.values():
        exact = sum(oracles.ends(gammas[0], gammas[-1], x0)) + oracles.matching(law, gammas, x0)
        for i, form in enumerate(FORMS):
            found = totals(form, jnp.asarray(x0[0], jnp.float32), keys(n, i), law)
            off, error = np.mean(found, dtype=np.float64) - exact[0], oracles.standard_error(found)
            excess = oracles.printed_excess(law, gammas) if form == "consistency_printed" else 0
            assert abs(off - excess) < 4 * error, form
            if form == "consistency_printed":
                assert off > 10 * error


@pytest.mark.parametrize("form", FORMS)
def test_a_hundred_thousand_steps_are_finite_and_unbiased(form):
    T, n = 100_000, 20_000
    law = oracles.gaussian(())
    x0 = law.sample(0, n)
    row = PARAMETERIZATIONS["eps"]()
    denoise = law.network(row, oracles.interval_of_step(None))

    @jax.jit
    @jax.vmap
    def estimate(x, key):
        return negative_elbo(denoise, x, key, schedule=MILD, timesteps=T, form=form)

    found = estimate(jnp.asarray(x0, jnp.float32), keys(n))
    assert all(np.all(np.isfinite(part)) for part in found)
    exact = sum(oracles.ends(FIRST, LAST, x0))
    exact += oracles.matching_continuous(law, FIRST, LAST, x0)  # the limit, to a part in 10⁵
    off = np.asarray(found.total, np.float64) - exact
    print(form, np.mean(off), oracles.standard_error(off), np.std(off), oracles.printed_excess(law, np.linspace(FIRST, LAST, T+1)))
