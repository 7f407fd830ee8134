"""Every schedule is monotone, exact at its ends, and has accurate differences at float32 times (§7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import Interval, alpha, posterior, sigma
from vdm_jax.schedules import GAMMA_MAX, GAMMA_MIN, SCHEDULES, Schedule, interval

BETAS = np.linspace(1e-4, 0.02, 1000)
GAMMAS = np.sort(np.random.default_rng(0).uniform(GAMMA_MIN, GAMMA_MAX, 30))
ARGUMENTS = {  # of schedules that do not take end points
    "from_betas": {"betas": BETAS},
    "linear_betas": {},
    "piecewise_linear": {"gammas": GAMMAS},
}
NAMES = list(SCHEDULES)
FREE = [name for name in NAMES if name not in ARGUMENTS]
TIMESTEPS = [1, 10, 10**3, 10**5, 10**7]


def make(name: str, **kwargs) -> Schedule:
    return SCHEDULES[name](**ARGUMENTS.get(name, {}), **kwargs)


def as_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)


def grid_times(timesteps: int, size: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Return `size` float32 times (i−1)/T and i/T from both ends of the chain and between."""
    if timesteps <= size:
        i = np.resize(np.arange(1, timesteps + 1), size)
    else:
        low, high = np.arange(1, 401), np.arange(timesteps - 399, timesteps + 1)
        between = np.random.default_rng(0).integers(1, timesteps + 1, size - 800)
        i = np.concatenate([low, between, high])
    i, total = i.astype(np.float32), np.float32(timesteps)
    return (i - 1) / total, i / total


@pytest.mark.parametrize("name", NAMES)
def test_delta_is_accurate_for_every_number_of_steps(name):
    """The relative error in float32 is small against float64 at the same times."""
    schedule = make(name)
    params = schedule.init(jax.random.key(0))
    delta = jax.jit(schedule.delta)
    for timesteps in TIMESTEPS:
        s, t = grid_times(timesteps)
        assert np.all(s < t)
        values = np.asarray(delta(params, s, t), np.float64)
        with jax.enable_x64(True):
            exact = delta(as_float64(params), s.astype(np.float64), t.astype(np.float64))
        np.testing.assert_allclose(values, exact, rtol=1e-6, err_msg=f"T = {timesteps}")
        assert np.all(values > 0)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("ends", [(-80.0, 80.0), (-60.0, 30.0), (-5.0, 80.0)])
def test_delta_of_the_whole_way_is_finite_at_the_widest_ends(name, ends):
    schedule = make(name, gamma_min=ends[0], gamma_max=ends[1])
    params = schedule.init(jax.random.key(0))
    np.testing.assert_allclose(schedule.delta(params, 0.0, 1.0), ends[1] - ends[0], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_delta_is_the_difference_of_gamma(name):
    with jax.enable_x64(True):
        schedule = make(name)
        params = schedule.init(jax.random.key(1))
        s, t = jnp.sort(jax.random.uniform(jax.random.key(0), (2, 500)), axis=0)
        step = interval(schedule, params, s, t)
        assert isinstance(step, Interval)
        np.testing.assert_allclose(step.delta, step.gamma_t - step.gamma_s, rtol=0, atol=1e-11)
        np.testing.assert_array_equal(schedule.delta(params, t, t), 0)


@pytest.mark.parametrize("name", NAMES)
def test_gamma_increases(name):
    with jax.enable_x64(True):
        schedule = make(name)
        gamma = schedule.gamma(schedule.init(jax.random.key(2)), jnp.linspace(0, 1, 3001))
        assert np.all(np.diff(gamma) > 0)


@pytest.mark.parametrize("ends", [(GAMMA_MIN, GAMMA_MAX), (-20.0, 20.0), (0.5, 1.0)])
@pytest.mark.parametrize("name", FREE)
def test_end_points_are_kept(name, ends):
    for x64, rtol in ((False, 2e-7), (True, 1e-14)):
        with jax.enable_x64(x64):
            schedule = make(name, gamma_min=ends[0], gamma_max=ends[1])
            params = schedule.init(jax.random.key(0))
            values = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
            np.testing.assert_allclose(values, ends, rtol=rtol)
            np.testing.assert_allclose(
                schedule.delta(params, 0.0, 1.0), ends[1] - ends[0], rtol=rtol
            )


@pytest.mark.parametrize("name", NAMES)
def test_dgamma_is_the_slope_of_gamma(name):
    """The derivative γ' agrees with central differences and γ is unchanged, also in float32."""
    schedule = make(name)
    gamma_and_dgamma = jax.jit(schedule.gamma_and_dgamma)
    # off the knots of `from_betas`, where γ' jumps
    t = (np.arange(0, 999, 37) + 0.5).astype(np.float32) / np.float32(999)
    params = schedule.init(jax.random.key(3))
    gamma32, slope32 = gamma_and_dgamma(params, t)
    with jax.enable_x64(True):
        params, t = as_float64(params), jnp.asarray(t, float)
        gamma, slope = gamma_and_dgamma(params, t)
        h = 1e-5 * t  # γ' of some schedules grows like 1/t
        difference = (schedule.gamma(params, t + h) - schedule.gamma(params, t - h)) / (2 * h)
        np.testing.assert_allclose(gamma, schedule.gamma(params, t), rtol=1e-12)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)
        np.testing.assert_allclose(slope32, slope, rtol=1e-5)
        np.testing.assert_allclose(gamma32, gamma, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_derivatives_are_finite_at_both_ends(name):
    schedule = make(name)
    params = schedule.init(jax.random.key(4))
    one, zero = jnp.ones(()), jnp.zeros(())

    @jax.jit
    def everything(params):
        gamma = jax.value_and_grad(schedule.gamma, (0, 1))
        delta = jax.value_and_grad(schedule.delta, (0, 1, 2))
        slope = jax.grad(lambda params, t: schedule.gamma_and_dgamma(params, t)[1])
        ends = [
            (gamma(params, t), schedule.gamma_and_dgamma(params, t), slope(params, t))
            for t in (zero, one)
        ]
        return ends, [delta(params, *times) for times in ((zero, one), (zero, zero), (one, one))]

    for leaf in jax.tree.leaves(everything(params)):
        assert np.isfinite(leaf).all()
    rates = [schedule.gamma_and_dgamma(params, t)[1] for t in (zero, one)]
    assert min(rates) > 0


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_elementwise_and_take_numbers(name):
    schedule = make(name)
    params = schedule.init(jax.random.key(5))
    t = jnp.asarray([[0.1, 0.25, 0.5], [0.75, 0.9, 1.0]])
    gamma, delta = jax.jit(schedule.gamma)(params, t), jax.jit(schedule.delta)(params, 0.5 * t, t)
    assert gamma.shape == delta.shape == t.shape and gamma.dtype == jnp.float32
    for i, time in np.ndenumerate(np.asarray(t, np.float64)):
        np.testing.assert_allclose(schedule.gamma(params, float(time)), gamma[i], rtol=1e-5)
        np.testing.assert_allclose(
            schedule.delta(params, float(time) / 2, float(time)), delta[i], rtol=1e-5
        )


def test_linear_is_linear():
    schedule = make("linear", gamma_min=-4.0, gamma_max=6.0)
    times = jnp.asarray([0.0, 0.3, 1.0])
    np.testing.assert_allclose(schedule.gamma({}, times), [-4, -1, 6], rtol=1e-6)
    learned = make("learned_linear", gamma_min=-4.0, gamma_max=6.0)
    moved = {"gamma_min": jnp.asarray(1.0), "log_width": jnp.log(0.5)}
    np.testing.assert_allclose(learned.gamma(moved, times), [-3, -1.5, 2], rtol=1e-6)


def test_cosine_is_an_angle_linear_in_time():
    with jax.enable_x64(True):
        t = jnp.linspace(0, 1, 101)
        gamma = make("cosine").gamma({}, t)
        angle = np.arctan2(sigma(gamma), alpha(gamma))
        np.testing.assert_allclose(np.diff(angle, 2), 0, atol=1e-15)
        # with ends at ±∞ it is α = cos(πt/2)
        wide = make("cosine", gamma_min=-60.0, gamma_max=60.0).gamma({}, t)
        np.testing.assert_allclose(alpha(wide), np.cos(np.pi * t / 2), atol=1e-12)


def test_sigmoid_is_a_logistic_variance():
    with jax.enable_x64(True):
        t = jnp.linspace(0, 1, 101)
        variance = sigma(make("sigmoid", start=-2.0, end=4.0).gamma({}, t)) ** 2
        logistic = jax.nn.sigmoid(-2.0 + 6.0 * t)
        slope = np.diff(variance) / np.diff(logistic)
        np.testing.assert_allclose(slope, slope[0], rtol=1e-10)


def test_from_betas_is_the_chain_of_ddpm():
    """The product ᾱ and the mean and variance of the posterior follow Ho et al., in float64."""
    with jax.enable_x64(True):
        schedule = make("from_betas")
        product = np.cumprod(1 - BETAS)
        times = jnp.arange(1000) / 999
        np.testing.assert_allclose(alpha(schedule.gamma({}, times)) ** 2, product, rtol=1e-12)
        steps = interval(schedule, {}, times[:-1], times[1:])
        beta, before, after = BETAS[1:], product[:-1], product[1:]
        variance = beta * (1 - before) / (1 - after)
        of_x0 = beta * np.sqrt(before) / (1 - after)
        of_xt = (1 - before) * np.sqrt(1 - beta) / (1 - after)
        over_steps = jax.jit(jax.vmap(posterior, (None, None, 0)))
        q = over_steps(jnp.asarray(0.7), jnp.asarray(-0.3), steps)
        np.testing.assert_allclose(np.exp(q.log_var), variance, rtol=1e-9)
        np.testing.assert_allclose(q.mean, 0.7 * of_xt - 0.3 * of_x0, rtol=1e-9, atol=1e-12)


def test_from_betas_is_linear_between_its_knots():
    with jax.enable_x64(True):
        schedule = make("from_betas")
        knots = schedule.gamma({}, jnp.arange(1000) / 999)
        part = jnp.asarray([0.25, 0.5, 0.9])
        for i in (0, 1, 500, 998):
            expected = knots[i] + part * (knots[i + 1] - knots[i])
            values = schedule.gamma({}, (i + part) / 999)
            np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 7, 100, 1000])
def test_from_betas_keeps_its_ends(size):
    betas = np.random.default_rng(size).uniform(1e-4, min(0.3, 30 / size), size)
    product = np.cumprod(1 - betas)[[0, -1]]
    schedule = SCHEDULES["from_betas"](betas=betas)
    for x64, rtol in ((False, 1.2e-7), (True, 1e-12)):
        with jax.enable_x64(x64):
            values = [schedule.gamma({}, t) for t in (0.0, 1.0)]
            np.testing.assert_allclose(values, np.log((1 - product) / product), rtol=rtol)


def test_from_betas_between_neighbouring_floats():
    """Differences are exact one float32 step from, to and across knots where the slope jumps a thousandfold."""
    schedule = SCHEDULES["from_betas"](betas=np.tile([1e-4, 0.3], 50))
    delta = jax.jit(schedule.delta)
    bits = (np.arange(1, 99) / 99).astype(np.float32).view(np.int32)
    for shift in range(-3, 3):
        low, high = (bits + shift).view(np.float32), (bits + shift + 1).view(np.float32)
        values = np.asarray(delta({}, low, high), np.float64)
        with jax.enable_x64(True):
            exact = delta({}, low.astype(np.float64), high.astype(np.float64))
            knots = schedule.gamma({}, jnp.arange(100) / 99)
        np.testing.assert_allclose(values, exact, rtol=1e-6)
        gamma = np.interp(np.asarray([low, high], np.float64), np.arange(100) / 99, knots)
        np.testing.assert_allclose(values, gamma[1] - gamma[0], rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("learn_ends", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_learned_monotone_keeps_its_ends_under_any_weights(learn_ends, seed):
    schedule = make("learned_monotone", learn_ends=learn_ends)
    params = schedule.init(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params["curve"])
    keys = jax.random.split(jax.random.key(100 + seed), len(leaves))
    wild = [1e3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    assert ("gamma_min" in params) is learn_ends
    gamma, ends = jax.jit(schedule.gamma), jnp.asarray([0.0, 1.0])
    first = gamma(params, ends)
    params = params | {"curve": jax.tree.unflatten(structure, wild)}
    np.testing.assert_array_equal(gamma(params, ends), first)
    expected = np.asarray([GAMMA_MIN, GAMMA_MAX], np.float32)
    # the last end is learned as first + width, a sum
    np.testing.assert_allclose(first, expected, rtol=2e-7 if learn_ends else 0)
    with jax.enable_x64(True):
        exact, t = as_float64(params), jnp.linspace(0, 1, 2001)
        assert np.all(np.diff(gamma(exact, t)) > 0)
        assert np.all(schedule.delta(exact, t[:-1], t[1:]) > 0)


def test_learned_ends_move_and_keep_their_order():
    for name in ("learned_linear", "learned_monotone"):
        schedule = make(name)
        params = schedule.init(jax.random.key(0)) | {
            "gamma_min": jnp.asarray(2.0),
            "log_width": jnp.asarray(-30.0),
        }
        first, last = schedule.gamma(params, 0.0), schedule.gamma(params, 1.0)
        np.testing.assert_allclose(first, GAMMA_MIN + 2, rtol=1e-6)
        assert first <= last  # γ itself cannot resolve the width, the difference can
        width = schedule.delta(params, 0.0, 1.0)
        np.testing.assert_allclose(width, (GAMMA_MAX - GAMMA_MIN) * np.exp(-30), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_learned_schedules_depend_on_their_params(name):
    schedule = make(name)
    params = schedule.init(jax.random.key(0))
    assert schedule.learned is bool(jax.tree.leaves(params)) is name.startswith("learned")
    if schedule.learned:
        slopes = jax.jit(jax.grad(schedule.gamma))(params, 0.3)
        assert all(np.any(slope != 0) for slope in jax.tree.leaves(slopes))
        for broken in ({}, None):
            with pytest.raises(ValueError, match=rf"{name}.*learned.*schedule\.init"):
                schedule.gamma(broken, 0.3)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_ends_in_the_wrong_order_are_refused(name, ends):
    with pytest.raises(ValueError, match=r"gamma_min: expected less than gamma_max = .*, found"):
        make(name, gamma_min=ends[0], gamma_max=ends[1])


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("ends", [(-np.inf, 1.0), (-800.0, 1.0), (0.0, 81.0)])
def test_ends_beyond_float32_are_refused(name, ends):
    with pytest.raises(ValueError, match=r"expected ends in \[-80, 80\], .* found"):
        make(name, gamma_min=ends[0], gamma_max=ends[1])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("from_betas", {"betas": [0.1]}, r"at least 2, found shape \(1,\)"),
        ("from_betas", {"betas": [[0.1, 0.2]]}, r"vector of at least 2, found shape \(1, 2\)"),
        ("from_betas", {"betas": [1.0, 0.1]}, r"betas\[0\]: .* or 1 for the last, found 1.0"),
        (
            "from_betas",
            {"betas": [0.1, 1.1]},
            r"betas\[1\]: expected a number in \(0, 1\), .* found 1.1",
        ),
        ("from_betas", {"betas": [*[0.5] * 90, 1.0]}, "the signal is lost before the last step"),
        ("from_betas", {"betas": [0.1, 0.2, np.nan]}, r"betas\[2\]: .* found nan"),
        ("from_betas", {"betas": np.full(400, 0.5)}, r"expected ends in .* 277\."),
        ("from_betas", {"betas": [0.5, 1e-20, 1e-20]}, "the SNR does not fall"),
        ("sigmoid", {"start": -1000.0}, r"start: expected a number in \[-80, 80\], found"),
        ("sigmoid", {"start": 1.0, "end": 1.0}, "start: expected less than end = 1.0, found 1.0"),
        (
            "learned_monotone",
            {"hidden": 0},
            "hidden: expected a whole number of at least 1, found 0",
        ),
    ],
)
def test_arguments_that_make_no_schedule_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](**kwargs)


@pytest.mark.parametrize(
    "ends", [{"gamma_min": 40.0, "gamma_max": 70.0}, {"start": 40.0, "end": 50.0}], ids=str
)
def test_sigmoid_is_exact_where_logistic_values_round_to_one(ends):
    schedule = SCHEDULES["sigmoid"](**ends)
    t = jnp.linspace(0, 1, 11)
    gamma = np.asarray(schedule.gamma(None, t), np.float64)
    delta = np.asarray(schedule.delta(None, jnp.zeros(()), t), np.float64)
    assert np.isfinite(gamma).all() and np.all(np.diff(gamma) > 0)
    np.testing.assert_allclose(delta, gamma - gamma[0], rtol=1e-5, atol=1e-4)
