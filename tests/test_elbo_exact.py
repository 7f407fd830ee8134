"""The bound against closed forms where the noise can be summed out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_elbo import FIRST, LAST

from vdm_jax.diffusion import marginal
from vdm_jax.elbo import NoisySample, matching, training_interval
from vdm_jax.parameterizations import PARAMETERIZATIONS, regression_target, stacked
from vdm_jax.schedules import SCHEDULES, linear

SPECS = {name: {"name": name} for name in SCHEDULES} | {
    "from_betas": {"name": "from_betas", "betas": np.linspace(1e-3, 0.3, 12)},
    "piecewise_linear": {"name": "piecewise_linear", "gammas": [-8.0, -2.0, -1.0, 6.0]},
}


def all_terms(error, x0, times, noise, *, schedule, params, timesteps):
    """Return the matching terms [len(times), len(noise)]; `error(noisy)` is x_0 − x̂_0."""

    def term(t, eps):
        step, rate = training_interval(schedule, params, t, timesteps)
        q = marginal(x0, step.gamma_t)
        noisy = NoisySample(x0, eps, q.mean + jnp.exp(0.5 * q.log_var) * eps, step, rate)
        return matching(noisy, error(noisy))

    return jax.vmap(jax.vmap(term, (None, 0)), (0, None))(times, noise)


def error_of(denoise, row):
    """Return the error x_0 − x̂_0 of a network as a function of a noisy sample."""

    def error(noisy):
        target = regression_target(noisy.x0, noisy.eps, row.target(noisy.interval))
        return row(noisy.interval).out * (target - denoise(noisy.xt, noisy.interval.gamma_t))

    return error


def opposite(shape):
    """Return ε = ±1 everywhere, an exact rule for the mean of a sum of squares that are affine in each ε."""
    return jnp.stack([jnp.ones(shape), -jnp.ones(shape)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_gives_the_closed_form(name):
    shape, T = (3,), 9
    data, wrong = oracles.gaussian(shape), oracles.gaussian(shape, shift=0.3, scale=2.0)
    x0 = data.sample(0, 4)
    with jax.enable_x64(True):
        schedule = SCHEDULES[name](**{k: v for k, v in SPECS[name].items() if k != "name"})
        params = schedule.init(jax.random.key(0))
        gammas = np.asarray(schedule.gamma(params, jnp.arange(T + 1) / T))
        rows = [row() for row in PARAMETERIZATIONS.values()]

        @jit
        @partial(jax.vmap, in_axes=(0, None))
        def bound(i, x0):
            row = stacked(rows, i)
            interval_of = oracles.interval_of_step(schedule, params, T)

            def total(law, x0):
                error = error_of(law.network(row, interval_of), row)
                return jnp.mean(
                    all_terms(
                        error,
                        x0,
                        (jnp.arange(T) + 0.5) / T,
                        opposite(shape),
                        schedule=schedule,
                        params=params,
                        timesteps=T,
                    )
                )

            return jnp.stack([jax.vmap(partial(total, law))(x0) for law in (data, wrong)])

        bounds = np.asarray(bound(jnp.arange(len(rows)), jnp.asarray(x0)))
    ends = sum(oracles.ends(gammas[0], gammas[-1], x0))
    for law, parts in zip((data, wrong), bounds.swapaxes(0, 1), strict=True):
        expected = oracles.matching(law, gammas, x0)
        np.testing.assert_allclose(parts, np.broadcast_to(expected, parts.shape), rtol=1e-9)
        assert np.all(ends + parts > -oracles.chain_log_prob(law, gammas, x0))


def hermite(n: int):
    """Return nodes and weights for expectations under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def average_gap(law, timesteps, first=FIRST, last=LAST):
    """Return E[−ELBO + log p(x)] over one-dimensional data, by quadrature; None is continuous time."""
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
    parts = partial(
        all_terms,
        error,
        times=jnp.asarray(t),
        noise=jnp.asarray(nodes),
        schedule=linear(gamma_min=first, gamma_max=last),
        params=None,
        timesteps=timesteps,
    )
    total = jit(jax.vmap(lambda x0: jnp.einsum("te,t,e->", parts(x0), by, weights)))
    ends = sum(oracles.ends(first, last, x0))
    return share @ (np.asarray(total(jnp.asarray(x0))) + ends + law.log_prob(x0))


@pytest.mark.parametrize("name", oracles.LAWS)
def test_gap_falls_like_one_over_T_to_continuous_time(name):
    law = oracles.LAWS[name](())
    with jax.enable_x64(True):
        limit, wide = average_gap(law, None), average_gap(law, None, first=-12.0, last=12.0)
        T = np.array([64, 128, 256, 512])
        gaps = np.array([average_gap(law, int(n)) for n in T])
    order = np.polyfit(np.log(T), np.log(gaps - limit), 1)[0]
    np.testing.assert_allclose(order, -1, atol=0.02)
    assert abs(2 * gaps[-1] - gaps[-2] - limit) < 0.02 * (gaps[-1] - limit)
    # the gap of continuous time is due to the ends, and vanishes as they go to −∞ and +∞
    assert 0 < wide < 1e-4 < limit
