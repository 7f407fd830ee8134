"""The bound against closed forms: exact sums where noise can be summed out, standard errors where not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import marginal
from vdm_jax.elbo import (
    FORMS,
    NoisySample,
    consistency_printed,
    draw_noisy,
    draw_times,
    matching,
    negative_elbo,
    training_interval,
)
from vdm_jax.parameterizations import PARAMETERIZATIONS, regression_target, stacked
from vdm_jax.schedules import SCHEDULES, linear

ALL_FORMS = FORMS | {"consistency_printed": consistency_printed}
CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]
FIRST, LAST = -5.0, 3.0
MILD = {"name": "linear", "gamma_min": FIRST, "gamma_max": LAST}
SPECS = {name: {"name": name} for name in SCHEDULES} | {
    "from_betas": {"name": "from_betas", "betas": np.linspace(1e-3, 0.3, 12)}
}


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def all_terms(error, x0, times, noise, *, schedule, params, timesteps):
    """The matching terms [len(times), len(noise)] at given times and noise, `error(noisy)` = x_0 − x̂_0."""

    def one(t, eps):
        step, rate = training_interval(schedule, params, t, timesteps)
        q = marginal(x0, step.gamma_t)
        at = NoisySample(x0, eps, q.mean + jnp.exp(0.5 * q.log_var) * eps, step, rate)
        return matching(at, error(at))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(times, noise)


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

        found = np.asarray(bound(jnp.arange(len(rows)), jnp.asarray(x0)))
    ends = sum(oracles.ends(gammas[0], gammas[-1], x0))
    for law, parts in zip((data, wrong), found.swapaxes(0, 1), strict=True):
        expected = oracles.matching(law, gammas, x0)
        np.testing.assert_allclose(parts, np.broadcast_to(expected, parts.shape), rtol=1e-9)
        assert np.all(ends + parts > -oracles.chain_log_prob(law, gammas, x0))


def hermite(n: int):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def average_gap(law, timesteps, first=FIRST, last=LAST):
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
def test_gap_to_the_likelihood_falls_like_one_over_T_to_that_of_continuous_time(name):
    law = oracles.LAWS[name](())
    with jax.enable_x64(True):
        limit, wide = average_gap(law, None), average_gap(law, None, first=-12.0, last=12.0)
        T = np.array([64, 128, 256, 512])
        gaps = np.array([average_gap(law, int(n)) for n in T])
    order = np.polyfit(np.log(T), np.log(gaps - limit), 1)[0]
    np.testing.assert_allclose(order, -1, atol=0.02)
    assert abs(2 * gaps[-1] - gaps[-2] - limit) < 0.02 * (gaps[-1] - limit)
    # what is left in continuous time is the ends': it goes as they go to −∞ and +∞
    assert 0 < wide < 1e-4 < limit


# --- the public function: averages of many keys ------------------------------------------------------


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
        assert error < 0.05 * np.mean(np.abs(exact))
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

    @jit
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


# --- the consistency form ----------------------------------------------------------------------------


def all_forms(**settings):
    """(law, x0, keys) -> `negative_elbo` in every form; the forms share keys, and so their draws."""
    row = PARAMETERIZATIONS["v"]()

    @jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def estimate(law, x, key):
        denoise = law.network(row, oracles.interval_of_step(None))
        common = {"parameterization": row} | settings
        return {
            form: negative_elbo(denoise, x, key, form=f, **common) for form, f in ALL_FORMS.items()
        }

    return estimate


@pytest.mark.parametrize("timesteps", [1, 5])
def test_consistency_forms_agree_with_the_denoising_form_and_the_printed_one_does_not(timesteps):
    shape, n = (2,), 40_000
    best, wrong = oracles.gaussian(shape), oracles.gaussian(shape, shift=0.4, scale=3.0)
    x0 = best.sample(3, 1)
    gammas = np.linspace(-2.0, 2.0, timesteps + 1)
    estimate = all_forms(schedule=linear(gamma_min=-2.0, gamma_max=2.0), timesteps=timesteps)
    same = jnp.broadcast_to(jnp.asarray(x0, jnp.float32), (n, *shape))
    for law in (best, wrong):
        exact = sum(oracles.ends(gammas[0], gammas[-1], x0)) + oracles.matching(law, gammas, x0)
        for form, parts in estimate(law, same, keys(n)).items():
            off = np.asarray(parts.total, np.float64) - exact
            error = oracles.standard_error(off)
            excess = oracles.printed_excess(law, gammas) if form == "consistency_printed" else 0
            assert abs(np.mean(off) - excess) < 4 * error, form
            if excess:
                assert np.mean(off) > 10 * error


def test_a_hundred_thousand_steps_are_finite_and_unbiased():
    law, n = oracles.gaussian(()), 20_000
    x0 = law.sample(0, n)
    found = all_forms(schedule=MILD, timesteps=100_000)(law, jnp.asarray(x0, jnp.float32), keys(n))
    assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(found))
    off = found["denoising"].matching - oracles.matching_continuous(law, FIRST, LAST, x0)
    error = oracles.standard_error(off)
    assert error < 0.02 * np.mean(found["denoising"].matching)
    assert abs(np.mean(off)) < 4 * error  # the chain is within 10⁻⁴ of its limit
    # one random term of a fine chain: each log-ratio is of order one, each KL of order 1/T, eq. (18)
    spread = {form: np.std(parts.matching) for form, parts in found.items()}
    assert spread["consistency_log_ratio"] > 100 * spread["consistency_bridge"]
    assert spread["consistency_bridge"] > 100 * spread["denoising"]


# --- data on levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [3, None])
@pytest.mark.parametrize("likelihood", ["softmax", "discretized_gaussian"])
def test_integer_images_have_finite_bounds_and_gradients(likelihood, timesteps):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    images[0], images[1] = 0, 255  # the outer bins

    @jit
    @jax.value_and_grad
    def bound(scale, images, keys):
        def one(x, key):
            return negative_elbo(
                lambda xt, gamma_t: scale * xt + jnp.tanh(gamma_t),
                x,
                key,
                schedule="linear",
                likelihood=likelihood,
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(one)(images, keys))

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


# --- extremes and learned schedules ------------------------------------------------------------------


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

        def one(x, key):
            return negative_elbo(
                lambda xt, gamma_t: net["w"] * xt + net["b"],
                x,
                key,
                schedule=schedule,
                schedule_params=learned,
                parameterization=stacked(rows, i),
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(one)(x, keys))

    found = bound(params, jnp.arange(len(rows)), jnp.asarray(x, jnp.float32), keys(32))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert dict(zip(names, np.isfinite(leaf), strict=True)) == dict.fromkeys(names, True), path


def test_gradient_of_the_bound_reaches_learned_end_points_and_is_right():
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

    found = gradient(schedule.init(jax.random.key(0)), keys(n))
    for name, values in found.items():
        expected = (exact(**{name: 1e-4}) - exact(**{name: -1e-4})) / 2e-4
        error = oracles.standard_error(values)
        assert abs(expected) > 10 * error, name
        assert abs(np.asarray(values, np.float64).mean() - expected) < 4 * error, name


@pytest.mark.parametrize("timesteps", [5, None])
def test_gradient_of_the_bound_reaches_every_parameter_of_a_learned_curve(timesteps):
    schedule = SCHEDULES["learned_monotone"](gamma_min=-5.0, gamma_max=3.0, hidden=4)
    x0 = jnp.asarray(oracles.gaussian((3,)).sample(0, 64), jnp.float32)

    @jit
    @jax.grad
    def gradient(params):
        def one(x, key):
            return negative_elbo(
                lambda xt, gamma_t: xt,
                x,
                key,
                schedule=schedule,
                schedule_params=params,
                timesteps=timesteps,
            ).total

        return jnp.mean(jax.vmap(one)(x0, keys(64)))

    found = gradient(schedule.init(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.all(np.isfinite(leaf)), path
        assert np.all(np.abs(leaf) > 0), path


def test_probe_is_where_the_marginal_says_and_its_interval_ends_on_the_grid():
    schedule, T = linear(), 7
    x0 = jnp.asarray([0.5, -0.25])
    draw = partial(draw_noisy, schedule=schedule, schedule_params=None, timesteps=T)
    times = jnp.asarray((np.arange(T) + 0.999) / T, jnp.float32)
    at = jit(jax.vmap(draw, (0, None, 0)))(keys(T), x0, times)
    gammas = np.linspace(*(schedule.gamma(None, t) for t in (0.0, 1.0)), T + 1)
    step = oracles.float64(at.interval)
    np.testing.assert_allclose(step.gamma_s, gammas[:-1], rtol=1e-5)
    np.testing.assert_allclose(step.gamma_t, gammas[1:], rtol=1e-5)
    np.testing.assert_allclose(at.time_weight, T * np.expm1(step.delta), rtol=3e-6)
    signal, noise = (np.sqrt(oracles.expit(sign * step.gamma_t))[:, None] for sign in (-1, 1))
    np.testing.assert_allclose(at.xt, signal * np.asarray(x0) + noise * at.eps, rtol=1e-4)


@pytest.mark.parametrize("T", [1, 7, 100])
def test_times_of_a_chain_are_its_steps_each_as_often(T):
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
    for n in (49, 1000):  # as many steps as examples: each once, however j/n is rounded
        steps = draw_times(jax.random.key(0), jnp.arange(n, dtype=jnp.float32) / n, n)
        np.testing.assert_array_equal(np.sort(steps), np.arange(n))


@pytest.mark.parametrize("steps", [1, 2**24, np.int64(10)])
def test_whole_numbers_of_steps_are_accepted(steps):
    assert whole_number(steps, "steps", 1, MAX_STEPS) == steps


def test_more_steps_than_float32_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"steps: .* in \[1, 16777216\], found 16777217"):
        whole_number(2**24 + 1, "steps", 1, MAX_STEPS)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("form", ALL_FORMS.values(), ids=ALL_FORMS)
def test_an_output_of_another_shape_than_the_data_is_refused(form, shape):
    def bound(x):
        return negative_elbo(
            lambda xt, gamma_t: jnp.zeros(shape),
            x,
            jax.random.key(0),
            schedule=MILD,
            timesteps=4,
            form=form,
        )

    for function, x in ((bound, jnp.ones((3,))), (jax.vmap(bound), jnp.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"output: expected shape \(3,\), found") as caught:
            function(x)
        assert str(caught.value).endswith(str(shape))


@pytest.mark.parametrize("form", ALL_FORMS.values(), ids=ALL_FORMS)
def test_so_is_one_of_the_step_to_the_data(form):
    calls = []

    def denoise(xt, gamma_t):
        calls.append(gamma_t)
        return xt if len(calls) == 1 else xt[:1]

    with pytest.raises(ValueError, match=r"output: expected shape \(3,\), found \(1,\)"):
        negative_elbo(
            denoise,
            jnp.ones((3,), jnp.uint8),
            jax.random.key(0),
            schedule=MILD,
            likelihood={"name": "discretized_gaussian", "levels": 4},
            timesteps=4,
            form=form,
        )
    assert len(calls) == 2
