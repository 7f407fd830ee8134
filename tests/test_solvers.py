"""Solvers against closed forms: orders of convergence, laws of draws, textbook steps, and the grids."""

import itertools
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import assert_moments, jit

from vdm_jax.diffusion import Interval, alpha, sigma
from vdm_jax.parameterizations import PARAMETERIZATIONS, to_x0
from vdm_jax.samplers import GRIDS, SAMPLERS, generate, noise_like, sample_chain
from vdm_jax.schedules import GAMMA_MAX, GAMMA_MIN, SCHEDULES, interval, linear

FIRST, LAST = -6.0, 5.0
MILD = linear(gamma_min=FIRST, gamma_max=LAST)
SPECS = {
    "ddim": {"name": "ddim"},
    "ddim, eta 0.5": {"name": "ddim", "eta": 0.5},
    "euler": {"name": "euler"},
    "heun": {"name": "heun"},
    **{
        f"{name}, order {order}": {"name": name, "order": order}
        for name in ("dpm_solver_pp", "sde_dpm_solver_pp")
        for order in (1, 2, 3)
    },
}
ORDERS = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "dpm_solver_pp, order 1": 1,
    "dpm_solver_pp, order 2": 2,
    "dpm_solver_pp, order 3": 3,
}
WEAK_ORDERS = {
    "ddim, eta 0.5": 1,
    "sde_dpm_solver_pp, order 1": 1,
    "sde_dpm_solver_pp, order 2": 2,
    "sde_dpm_solver_pp, order 3": 2,
}
DRAWS = ["ddim, eta 0.5", "sde_dpm_solver_pp, order 2", "sde_dpm_solver_pp, order 3"]


def solver(name):
    arguments = dict(SPECS[name])
    return SAMPLERS[arguments.pop("name")](**arguments)


def latents(sampler, path, x1, steps, law, key=None, params=None):
    """Solve from latents [n] down to x_{t=0} with the best denoiser."""
    row = PARAMETERIZATIONS["v"]()
    denoise = law.network(row, oracles.interval_of_step(None))
    chain = partial(
        sample_chain,
        lambda xt, t, step: to_x0(denoise(xt, step.gamma_t), xt, row(step)),
        lambda latent: latent,
        schedule=path,
        schedule_params=params,
        sampler=sampler,
        steps=steps,
    )
    keys = jax.random.split(jax.random.key(0), len(x1)) if key is None else key
    return np.asarray(jit(jax.vmap(chain))(jnp.asarray(x1), keys))


@pytest.mark.parametrize("name", ORDERS)
def test_errors_fall_with_the_order_of_the_solver(name):
    law, x1 = oracles.gaussian(()), np.linspace(-2, 2, 5)
    # on a path of unequal steps, whose errors do not cancel by symmetry
    path = GRIDS["karras"]().path
    steps = np.array([80, 160, 320])
    with jax.enable_x64(True):
        exact = oracles.flow(law, FIRST, LAST, x1)
        paths = [path(MILD, None, int(n)) for n in steps]
        found = [
            latents(solver(name), p, x1, int(n), law) for p, n in zip(paths, steps, strict=True)
        ]
        errors = [np.max(np.abs(x - exact)) for x in found]
    order = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    np.testing.assert_allclose(order, -ORDERS[name], atol=0.1)


@pytest.mark.parametrize("name", DRAWS)
def test_solvers_that_draw_reach_the_law_of_the_data(name):
    law = oracles.gaussian(())
    x1 = np.random.default_rng(0).standard_normal(20_000)
    with jax.enable_x64(True):
        x0 = latents(solver(name), MILD, x1, 100, law)
        signal = float(alpha(FIRST))
    mean = signal * law.means[0]
    variance = signal**2 * law.variances[0] + float(sigma(FIRST)) ** 2
    # DDIM's error of order 1 is about 1 % after 100 steps
    assert_moments(x0[:, None], mean[None], np.diag(variance[None]), slack=0.01)


def marginal_variance(variance, gamma):
    """Return the variance of x_t for data of the given variance."""
    return variance * alpha(gamma) ** 2 + sigma(gamma) ** 2


def variance_of_draws(sampler, path, steps, variance):
    """Return the variance of x_{t=0} for data of the given variance and mean 0, without sampling.

    x_t is a sum of the start and of the noise of each step, and the chain runs on its coefficients.
    """
    keys = jax.random.key(0), jax.random.key(1)

    def predict(x, level):
        return variance * alpha(level.gamma_t) / marginal_variance(variance, level.gamma_t) * x

    def step(carry, i):
        (x, state), level = carry, interval(path, None, i / steps, (i + 1) / steps)
        (first, after), (second, _) = (sampler.step(key, x, level, predict, state) for key in keys)
        noise = [noise_like(key, x) for key in keys]
        scale = (first - second)[0] / (noise[0] - noise[1])[0]
        drawn = jnp.where(jnp.arange(steps + 1) == steps - i, scale, 0)
        return (first - scale * noise[0] + drawn, after), None

    x = jnp.eye(steps + 1)[0] * jnp.sqrt(marginal_variance(variance, LAST))
    backwards = jnp.arange(steps - 1, -1, -1)
    (x, _), _ = jit(lambda x: jax.lax.scan(step, (x, sampler.init(x)), backwards))(x)
    return float(jnp.sum(jnp.square(x)))


@pytest.mark.parametrize("name", WEAK_ORDERS)
def test_the_variance_of_draws_converges_with_the_order_of_the_solver(name):
    variance, steps = 0.3, np.array([60, 120])
    with jax.enable_x64(True):
        paths = [GRIDS["karras"]().path(MILD, None, int(n)) for n in steps]
        found = [
            variance_of_draws(solver(name), path, int(n), variance)
            for path, n in zip(paths, steps, strict=True)
        ]
        errors = np.abs(np.subtract(found, marginal_variance(variance, FIRST)))
    order = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    np.testing.assert_allclose(order, -WEAK_ORDERS[name], atol=0.15)


def test_the_draws_of_ddim_have_the_printed_law():
    """At every η, x_s = α_s x̂_0 + √(σ_s² − η² σ_q²) ε̂ + η σ_q z with σ_q² of the posterior (9)."""
    eta, law = 0.7, oracles.gaussian((2,))

    def printed(s, t):
        signal, noise = np.sqrt(oracles.expit(-s)), oracles.expit(s)
        drawn = -(eta**2) * noise * np.expm1(s - t)
        keep = np.sqrt((noise - drawn) / oracles.expit(t))
        return keep, signal - keep * np.sqrt(oracles.expit(-t)), drawn

    row = PARAMETERIZATIONS["v"]()
    denoise = law.network(row, oracles.interval_of_step(None))
    one = partial(
        generate,
        denoise,
        shape=(2,),
        schedule=MILD,
        parameterization=row,
        sampler={"name": "ddim", "eta": eta},
        steps=4,
    )
    samples = np.asarray(jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20_000)))
    mean, variance = oracles.chain_law(law, np.linspace(FIRST, LAST, 5), printed)
    offset, gain = oracles.affine(law, FIRST)
    assert_moments(samples, offset + gain * mean, np.diag(gain**2 * variance))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ({"name": "dpm_solver_pp", "order": 1}, "ddim"),
        ({"name": "sde_dpm_solver_pp", "order": 1}, "ancestral"),
        ({"name": "ddim", "eta": 1.0}, "ancestral"),
    ],
    ids=str,
)
def test_special_cases_are_the_same_solver(name, same):
    denoise = oracles.mixture((3,)).network(
        PARAMETERIZATIONS["eps"](), oracles.interval_of_step(None)
    )

    def sample(sampler):
        draw = partial(generate, denoise, shape=(3,), schedule="cosine", sampler=sampler, steps=6)
        return jit(draw)(jax.random.key(0))

    with jax.enable_x64(True):
        np.testing.assert_allclose(sample(name), sample(same), rtol=1e-10)


def test_euler_takes_the_printed_steps():
    """Euler's method for dy/dη = (y − x̂_0)/η with η = σ/α, and for dz/dτ = ε̂ − x̂_0 on the straight path."""
    with jax.enable_x64(True):
        step = interval(linear(), None, 0.3, 0.4)
        xt, x0_hat = jnp.asarray([0.5, -2.0, 1.0]), jnp.asarray([0.1, 0.7, -0.3])
        sampler = SAMPLERS["euler"]()
        xs, _ = sampler.step(None, xt, step, lambda xt, level: x0_hat, sampler.init(xt))
        (alpha_s, alpha_t), (sigma_s, sigma_t) = ([f(g) for g in step[:2]] for f in (alpha, sigma))
        eta_s, eta_t, y = sigma_s / alpha_s, sigma_t / alpha_t, xt / alpha_t
        y = y + (eta_s - eta_t) * (y - x0_hat) / eta_t
        np.testing.assert_allclose(xs, y * alpha_s, rtol=1e-12)
        tau_s, tau_t = sigma_s / (alpha_s + sigma_s), sigma_t / (alpha_t + sigma_t)
        eps_hat = (xt - alpha_t * x0_hat) / sigma_t
        z = xt / (alpha_t + sigma_t) + (tau_s - tau_t) * (eps_hat - x0_hat)
        np.testing.assert_allclose(xs, z * (alpha_s + sigma_s), rtol=1e-12)


def test_heun_takes_the_printed_step():
    """The trapezoidal rule for dy/dη = (y − x̂_0)/η, as Karras et al. 2022 print it."""

    def predict(xt, level):
        return jnp.tanh(xt * alpha(level.gamma_t))

    with jax.enable_x64(True):
        step = interval(linear(), None, 0.3, 0.4)
        xt = jnp.asarray([0.5, -2.0, 1.0])
        sampler = SAMPLERS["heun"]()
        xs, _ = sampler.step(None, xt, step, predict, sampler.init(xt))
        eta_s, eta_t = (jnp.exp(0.5 * gamma) for gamma in step[:2])
        y_t = xt / alpha(step.gamma_t)
        slope = (y_t - predict(xt, step)) / eta_t
        y_s = y_t + (eta_s - eta_t) * slope
        end = Interval(step.gamma_s, step.gamma_s, jnp.zeros(()))
        slope_s = (y_s - predict(y_s * alpha(step.gamma_s), end)) / eta_s
        y_s = y_t + (eta_s - eta_t) * 0.5 * (slope + slope_s)
        np.testing.assert_allclose(xs, y_s * alpha(step.gamma_s), rtol=1e-12)


def test_the_second_order_takes_the_printed_step():
    """Eq. (28), with steps of unequal lengths."""
    sampler, gammas = SAMPLERS["dpm_solver_pp"](order=2), [4.0, 3.0, 1.5]
    with jax.enable_x64(True):
        x = jnp.asarray([0.5, -2.0])
        state, predictions = sampler.init(x), []
        for i in range(2):
            gamma_t, gamma_s = jnp.asarray(gammas[i]), jnp.asarray(gammas[i + 1])
            before = x
            x0_hat = jnp.cos(x + gamma_t)
            predictions.append(x0_hat)
            step = Interval(gamma_s, gamma_t, gamma_t - gamma_s)
            x, state = sampler.step(
                None, x, step, lambda xt, level: jnp.cos(xt + level.gamma_t), state
            )
        h_before, h = 0.5, 0.75
        ahead = predictions[1] + h / (2 * h_before) * (predictions[1] - predictions[0])
        expected = sigma(1.5) / sigma(3.0) * before - alpha(1.5) * np.expm1(-h) * ahead
        np.testing.assert_allclose(x, expected, rtol=1e-12)


def test_a_long_step_after_a_short_one_does_not_extrapolate():
    sampler, ddim = SAMPLERS["dpm_solver_pp"](), SAMPLERS["ddim"]()
    x = jnp.asarray([0.5])

    def predict(xt, level):
        return jnp.cos(xt + level.gamma_t)

    first = Interval(jnp.asarray(3.0), jnp.asarray(3.1), jnp.asarray(0.1))
    second = Interval(jnp.asarray(0.0), jnp.asarray(3.0), jnp.asarray(3.0))
    x, state = sampler.step(None, x, first, predict, sampler.init(x))
    expected, _ = ddim.step(None, x, second, predict, ())
    np.testing.assert_array_equal(sampler.step(None, x, second, predict, state)[0], expected)


PEERS = json.loads((Path(__file__).parent / "peers" / "diffusers_samplers.json").read_text())
SAME_AS = {  # of diffusers -> name and arguments of the same solver here
    "DDIMScheduler": lambda record: ("ddim", {"eta": record["step_settings"]["eta"]}),
    "HeunDiscreteScheduler": lambda record: ("heun", {}),
    "DPMSolverMultistepScheduler": lambda record: (
        {"dpmsolver++": "dpm_solver_pp", "sde-dpmsolver++": "sde_dpm_solver_pp"}[
            record["settings"]["algorithm_type"]
        ],
        {"order": record["settings"]["solver_order"], "max_step_ratio": np.inf},
    ),
}


# the third order of diffusers is another solver: it has half of the curvature, see `dpm_solver_pp`
RECORDS = [record for record in PEERS["records"] if record["settings"].get("solver_order") != 3]


def test_the_limit_on_long_steps_reduces_the_error():
    """On a cosine schedule, whose last steps are the longest, in the distribution function."""
    law, x1, path = oracles.gaussian(()), np.linspace(-2, 2, 9), SCHEDULES["cosine"]()

    def error(**arguments):
        x0 = latents(SAMPLERS["dpm_solver_pp"](**arguments), path, x1, 20, law)
        first, last = (oracles.marginal_cdf(law, *at) for at in ((GAMMA_MIN, x0), (GAMMA_MAX, x1)))
        return np.max(np.abs(first - last))

    with jax.enable_x64(True):
        assert error() < 0.1 * error(max_step_ratio=np.inf)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["scheduler"])
def test_every_step_is_that_of_diffusers(record, monkeypatch):
    name, arguments = SAME_AS[record["scheduler"]](record)
    noise = iter(PEERS["noise"])
    for module in ("ancestral", "ddim"):
        drawn = sys.modules[f"vdm_jax.samplers.{module}"]
        monkeypatch.setattr(drawn, "noise_like", lambda key, x: jnp.asarray(next(noise)))
    with jax.enable_x64(True):
        gammas = np.asarray(PEERS["gammas"])
        sampler = SAMPLERS[name](**arguments)
        x = jnp.asarray(PEERS["x1"])
        state = sampler.init(x)
        for gamma_t, gamma_s, expected in zip(
            gammas[:-1], gammas[1:], record["latents"][1:], strict=True
        ):
            step = Interval(*map(jnp.asarray, (gamma_s, gamma_t, gamma_t - gamma_s)))
            x, state = sampler.step(jax.random.key(0), x, step, pseudo_network, state)
            np.testing.assert_allclose(x, expected, atol=1e-9)


def pseudo_network(xt, level):
    """Return the predictions for which the numbers of diffusers were made."""
    gamma = level.gamma_t
    return jnp.tanh(0.8 * xt * alpha(gamma) + 0.3 * jnp.sin(gamma))


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "explicit"])
@pytest.mark.parametrize("schedule", ["cosine", "learned_monotone"])
def test_a_grid_keeps_the_ends_and_its_differences_are_exact(name, schedule):
    schedule, steps = SCHEDULES[schedule](), 50
    params = schedule.init(jax.random.key(0))
    path = GRIDS[name]().path(schedule, params, steps)
    times = np.arange(steps + 1) / steps
    gammas = np.asarray(path.gamma(None, jnp.asarray(times, jnp.float32)))
    ends = [float(schedule.gamma(params, t)) for t in (0.0, 1.0)]
    np.testing.assert_allclose(gammas[[0, -1]], ends, rtol=1e-5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        exact = GRIDS[name]().path(schedule, wide, steps).gamma(None, jnp.asarray(times))
    deltas = path.delta(
        None, jnp.asarray(times[:-1], jnp.float32), jnp.asarray(times[1:], jnp.float32)
    )
    # learned params are float32 numbers, whose rounding moves γ; its differences keep five digits
    np.testing.assert_allclose(deltas, np.diff(exact), rtol=2e-4)


def test_the_grids_have_their_spacing():
    def levels(name, **arguments):
        path = GRIDS[name](**arguments).path(SCHEDULES["cosine"](), {}, 4)
        return np.asarray(path.gamma(None, jnp.arange(5) / 4))

    with jax.enable_x64(True):
        np.testing.assert_allclose(np.diff(levels("uniform"), 2), 0, atol=1e-10)
        root = np.exp(levels("karras", rho=3.0) / 6)
        np.testing.assert_allclose(np.diff(root, 2), 0, atol=1e-10)
        given = [4.0, 3.5, 0.0, -2.0, -9.0]
        np.testing.assert_array_equal(levels("explicit", gammas=given), given[::-1])


def test_a_grid_of_given_levels_ends_at_its_last():
    """The data are predicted at the last level, from the start at the first."""
    seen = []

    def denoise(xt, gamma_t):
        jax.debug.callback(lambda gamma: seen.append(float(gamma)), gamma_t)
        return xt

    grid = {"name": "explicit", "gammas": [3.0, 1.0, -4.0]}
    generate(denoise, jax.random.key(0), (2,), schedule="linear", grid=grid, steps=2)
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [3.0, 1.0, -4.0]


@pytest.mark.parametrize("name", SPECS)
def test_samples_stay_in_range_at_extreme_noise_levels(name):
    """Networks of two precisions whose x̂_0 is in [−1, 1], with γ in [−60, 60] and with SNR = 0."""
    wide = {"name": "linear", "gamma_min": -60.0, "gamma_max": 60.0}
    to_zero = {"name": "from_betas", "betas": [*np.linspace(1e-4, 0.02, 99), 1.0]}
    cases = [
        *itertools.product((jnp.float32, jnp.bfloat16), (1, 40), ("schedule", "karras"), [wide]),
        *itertools.product((jnp.float32,), (1, 7, 40), ("schedule",), [to_zero]),
    ]

    @jit
    def samples(key):
        return [
            generate(
                lambda xt, gamma_t, dtype=dtype: jnp.tanh(xt.astype(dtype)),
                key,
                (3,),
                schedule=schedule,
                parameterization="x0",
                sampler=SPECS[name],
                steps=steps,
                grid=grid,
            )
            for dtype, steps, grid, schedule in cases
        ]

    for case, sample in zip(cases, samples(jax.random.key(0)), strict=True):
        assert np.all(np.abs(sample) <= 1), case


def test_heun_is_stable_from_no_signal():
    """The first interval of a chain to SNR = 0 is long; its samples have the deviation of the data."""
    law = oracles.gaussian(())
    row = PARAMETERIZATIONS["x0"]()
    denoise = law.network(row, oracles.interval_of_step(None))
    betas = [*np.linspace(1e-4, 0.02, 999), 1.0]

    def sample(name, key):
        settings = {"schedule": {"name": "from_betas", "betas": betas}, "sampler": name}
        return generate(denoise, key, (), parameterization="x0", steps=50, **settings)

    keys = jax.random.split(jax.random.key(0), 2000)
    heun, ddim = (jit(jax.vmap(partial(sample, name)))(keys) for name in ("heun", "ddim"))
    np.testing.assert_allclose(np.std(heun), np.sqrt(law.variances[0]), rtol=0.06)
    assert np.max(np.abs(heun - ddim)) < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampler": {"name": "dpm_solver_pp", "order": 4}},
            "sampler.order: .*in \\[1, 3\\], found 4",
        ),
        ({"sampler": {"name": "sde_dpm_solver_pp", "order": 0}}, "sampler.order: .*found 0"),
        ({"sampler": {"name": "ddim", "eta": 1.5}}, "sampler.eta: expected a number in \\[0, 1\\]"),
        ({"grid": "karas"}, "grid: unknown name 'karas'; did you mean 'karras'"),
        ({"grid": {"name": "karras", "rho": 0.5}}, "grid.rho: expected a number in \\[1, 100\\]"),
        (
            {"grid": {"name": "explicit", "gammas": [1.0, 2.0, -3.0]}},
            "grid.gammas: expected decreasing numbers, found 2.0 after 1.0",
        ),
        (
            {"grid": {"name": "explicit", "gammas": [1.0]}},
            "grid.gammas: expected a vector of at least 2",
        ),
        (
            {"grid": {"name": "explicit", "gammas": [1.0, 0.0]}, "steps": 3},
            "steps: the grid has 1, found 3",
        ),
        (
            {"grid": "karras", "parameterization": "mean"},
            "grid: .*expected 'schedule', found another",
        ),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, message):
    settings = {"schedule": "linear", "steps": 2} | settings
    with pytest.raises(ValueError, match=message):
        generate(lambda xt, gamma_t: xt, jax.random.key(0), (2,), **settings)
