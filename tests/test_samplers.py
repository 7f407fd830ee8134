"""Samplers against known laws: recursions for Gaussian data, the probability flow, moments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import assert_moments, jit

from vdm_jax.diffusion import alpha, data_interval, sigma
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked, to_x0
from vdm_jax.samplers import SAMPLERS, generate, sample_chain
from vdm_jax.schedules import SCHEDULES, interval, linear

FIRST, LAST = -7.0, 7.0
MILD = {"name": "linear", "gamma_min": FIRST, "gamma_max": LAST}
SPECS = {name: {"name": name} for name in SCHEDULES} | {
    "from_betas": {"name": "from_betas", "betas": np.linspace(1e-3, 0.5, 20)},
    "piecewise_linear": {"name": "piecewise_linear", "gammas": [-8.0, -2.0, -1.0, 6.0]},
}


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def draw(law, n, **settings):
    """Draw n samples [n, *d] with the best denoiser."""
    row = PARAMETERIZATIONS["v"]()
    denoise = law.network(row, oracles.interval_of_step(None))
    shape = law.means.shape[1:]
    one = partial(generate, denoise, shape=shape, parameterization=row, **settings)
    return np.asarray(jit(jax.vmap(one))(keys(n)), np.float64)


@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("name", oracles.STEPS)
def test_gaussian_samples_have_the_law_of_the_chain(name, steps):
    law = oracles.gaussian((2, 2))
    # a short chain from near to near, so that the step to the data counts as well
    first, last = (FIRST, LAST) if steps == 300 else (-1.5, 3.0)
    schedule = linear(gamma_min=first, gamma_max=last)
    samples = draw(law, 20_000, schedule=schedule, sampler=name, steps=steps)
    gammas = np.linspace(first, last, steps + 1)
    latent_mean, latent_variance = oracles.chain_law(law, gammas, oracles.STEPS[name])
    offset, gain = oracles.affine(law, first)
    mean, variance = offset + gain * latent_mean, gain**2 * latent_variance
    assert_moments(samples, mean.ravel(), np.diag(variance.ravel()))
    if steps == 300:  # the chain itself is close to the data
        data_mean, data_covariance = law.moments()
        data_variance = np.diag(data_covariance)
        off = np.abs(mean.ravel() - data_mean) / np.sqrt(data_variance)
        np.testing.assert_array_less(off, 0.03)
        np.testing.assert_allclose(variance.ravel(), data_variance, rtol=0.05)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_law_holds_under_every_schedule(name):
    law, steps = oracles.gaussian((3,)), 7
    factory = SCHEDULES[name]
    schedule = factory(**{k: v for k, v in SPECS[name].items() if k != "name"})
    params = schedule.init(jax.random.key(0))
    samples = draw(law, 10_000, schedule=schedule, schedule_params=params, steps=steps)
    with jax.enable_x64(True):
        gammas = np.asarray(schedule.gamma(params, jnp.arange(steps + 1) / steps), np.float64)
    latent_mean, latent_variance = oracles.chain_law(law, gammas)
    offset, gain = oracles.affine(law, gammas[0])
    assert_moments(samples, offset + gain * latent_mean, np.diag(gain**2 * latent_variance))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_tuned_variance_draws_gaussian_data_exactly_in_a_few_steps(steps):
    """Between Gaussians, the reverse step with the excess of (24) is exact, and without it too narrow."""
    law, last = oracles.gaussian((1,)), 12.0
    schedule = linear(gamma_min=FIRST, gamma_max=last)
    delta = (last - FIRST) / steps
    gammas = FIRST + delta * (jnp.arange(steps) + 1)
    data_variance = law.variances[0, 0]

    def squares(gamma):
        """Return E(ε − ε̂)², which is SNR·Var(x_0 | x_t)."""
        return 1 / (jnp.exp(gamma) / data_variance + 1)

    given = {"name": "ancestral", "variance": lambda gamma: jnp.expm1(delta) * squares(gamma)}
    fitted = SAMPLERS["ancestral"](variance="fitted").fitted(gammas, squares(gammas))
    offset, gain = oracles.affine(law, FIRST)
    keep, noise = jax.nn.sigmoid(-FIRST), jax.nn.sigmoid(FIRST)
    variance = np.ravel(gain**2 * (keep * data_variance + noise))
    mean = np.ravel(offset + gain * np.sqrt(keep) * law.means[0])
    for sampler in (given, fitted):
        samples = draw(law, 20_000, schedule=schedule, sampler=sampler, steps=steps)
        assert_moments(samples, mean, np.diag(variance))
    narrow = draw(law, 20_000, schedule=schedule, sampler="ancestral", steps=steps)
    assert narrow.var() < 0.8 * variance[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_samples_have_the_moments_of_the_data(name):
    law = oracles.mixture((2,))
    samples = draw(law, 20_000, schedule=MILD, sampler=name, steps=200)
    assert_moments(samples, *law.moments(), slack=0.01)
    share = np.mean(samples.sum(-1) > np.sum(law.weights @ law.means))  # and its two halves
    exact = law.sample(0, 200_000)
    assert abs(share - np.mean(exact.sum(-1) > np.sum(law.weights @ law.means))) < 0.02


@pytest.mark.parametrize("law", oracles.LAWS)
def test_ddim_follows_the_probability_flow_to_first_order(law):
    law, x1 = oracles.LAWS[law](()), np.linspace(-2, 2, 9)

    def latents(steps):
        schedule, row = linear(gamma_min=FIRST, gamma_max=LAST), PARAMETERIZATIONS["v"]()
        denoise = law.network(row, oracles.interval_of_step(None))

        def predict(xt, t, step):
            return to_x0(denoise(xt, step.gamma_t), xt, row(step))

        chain = partial(
            sample_chain,
            predict,
            lambda latent: latent,
            key=jax.random.key(0),
            schedule=schedule,
            schedule_params=None,
            sampler=SAMPLERS["ddim"](),
            steps=steps,
        )
        return np.asarray(jit(jax.vmap(chain))(jnp.asarray(x1)))

    steps = np.array([50, 100, 200, 400])
    with jax.enable_x64(True):
        x0s = [latents(int(n)) for n in steps]
    kept = oracles.marginal_cdf(law, LAST, x1)
    errors = [np.max(np.abs(oracles.marginal_cdf(law, FIRST, x) - kept)) for x in x0s]
    order = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    np.testing.assert_allclose(order, -1, atol=0.05)
    assert errors[-1] < 0.01
    if len(law.weights) == 1:
        exact = oracles.flow(law, FIRST, LAST, x1)
        np.testing.assert_allclose(2 * x0s[-1] - x0s[-2], exact, atol=1e-4)


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_parameterization_gives_the_same_sample(name, double):
    law, steps = oracles.mixture((2, 3, 4)), 50
    rows = [row() for row in PARAMETERIZATIONS.values()]
    with jax.enable_x64(double):
        schedule = linear(gamma_min=FIRST, gamma_max=LAST)
        interval_of = oracles.interval_of_step(schedule, None, steps)

        @jit
        @partial(jax.vmap, in_axes=(0, None))
        def samples(i, keys):
            row = stacked(rows, i)
            denoise = law.network(row, interval_of)
            settings = {"schedule": schedule, "parameterization": row, "steps": steps}
            sample = partial(generate, denoise, shape=(2, 3, 4), sampler=name, **settings)
            return jax.vmap(sample)(keys)

        drawn = samples(jnp.arange(len(rows)), keys(4))
    assert drawn.dtype == (np.float64 if double else np.float32)
    np.testing.assert_allclose(
        drawn, np.broadcast_to(drawn[:1], drawn.shape), atol=1e-12 if double else 2e-5
    )


def one_step(sampler, key, xt, x0_hat, interval):
    xs, _ = sampler.step(key, xt, interval, lambda x, at: x0_hat, sampler.init(xt))
    return xs


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_to_the_data_returns_the_prediction(name):
    xt, x0_hat = jnp.asarray([3.0, -1.0]), jnp.asarray([0.25, 0.5])
    for gamma_0 in (-13.3, 0.0, 5.0):
        last = data_interval(jnp.asarray(gamma_0))
        xs = one_step(SAMPLERS[name](), jax.random.key(0), xt, x0_hat, last)
        np.testing.assert_array_equal(xs, x0_hat)


def test_one_step_is_the_printed_formula():
    rng = np.random.default_rng(0)
    xt, x0_hat = rng.standard_normal((2, 5))
    with jax.enable_x64(True):
        step = interval(linear(), None, 0.3, 0.4)
        alphas, sigmas = (
            [np.asarray(f(g)) for g in (step.gamma_s, step.gamma_t)] for f in (alpha, sigma)
        )
        eps_hat = (xt - alphas[1] * x0_hat) / sigmas[1]
        arrays = jnp.asarray(xt), jnp.asarray(x0_hat), step
        deterministic = one_step(SAMPLERS["ddim"](), jax.random.key(0), *arrays)
        ancestral = SAMPLERS["ancestral"]()
        drawn = np.asarray(jax.vmap(lambda key: one_step(ancestral, key, *arrays))(keys(20_000)))
    np.testing.assert_allclose(deterministic, alphas[0] * x0_hat + sigmas[0] * eps_hat, rtol=1e-12)
    fall = -np.expm1(-np.asarray(step.delta))
    mean = alphas[0] / alphas[1] * (xt - sigmas[1] * fall * eps_hat)
    assert_moments(drawn, mean, sigmas[0] ** 2 * fall * np.eye(5))


@pytest.mark.parametrize("shape", oracles.SHAPES, ids=str)
def test_samples_of_any_shape_depend_on_the_key_alone(shape):
    def sample(key):
        return generate(lambda xt, gamma_t: xt, key, shape, schedule=MILD, steps=3)

    sample = jit(sample)
    first, again, other = (sample(jax.random.key(seed)) for seed in (1, 1, 2))
    assert first.shape == shape
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_ddim_draws_nothing_after_the_start_and_ancestral_does():
    def chain(name, key):
        return sample_chain(
            lambda xt, t, step: 0.5 * xt,
            lambda latent: latent,
            jnp.ones((2,)),
            key,
            schedule=linear(),
            schedule_params=None,
            sampler=SAMPLERS[name](),
            steps=4,
        )

    for name, same in (("ddim", True), ("ancestral", False)):
        first, second = jit(jax.vmap(partial(chain, name)))(keys(2))
        assert np.all((first == second) == same)


def test_a_batch_follows_the_chains_of_its_examples():
    x1 = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)), jnp.float32)
    common = {"schedule": linear(), "schedule_params": None, "sampler": SAMPLERS["ddim"]()}

    def chain(x1):
        return sample_chain(
            lambda xt, t, step: 0.5 * xt, lambda x: x, x1, jax.random.key(0), steps=5, **common
        )

    np.testing.assert_allclose(jit(chain)(x1), jit(jax.vmap(chain))(x1), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: .*found 0"),
        ({"steps": -3}, "found -3"),
        ({"sampler": {"name": "ancestral", "variance": "fitted"}}, "measured on the training exam"),
        (
            {"sampler": {"name": "ancestral", "variance": "tuned"}},
            "variance: expected 'fitted', a n",
        ),
        (
            {"sampler": {"name": "ancestral", "variance": -1}},
            "variance: expected a finite number abo",
        ),
        ({"sampler": "dim"}, "sampler: unknown name 'dim'; did you mean 'ddim'\\? choices: anc"),
        ({"schedule": "cosin"}, "schedule: unknown name 'cosin'; did you mean 'cosine'"),
        ({"parameterization": "velocity"}, "parameterization: unknown name 'velocity'"),
        ({"schedule": "learned_linear"}, "the schedule is learned, expected schedule.init"),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, message):
    settings = {"schedule": "linear", "steps": 2} | settings
    with pytest.raises(ValueError, match=message):
        generate(lambda xt, gamma_t: xt, jax.random.key(0), (2,), **settings)


@pytest.mark.parametrize("wrong", [1, 2])
def test_an_output_of_another_shape_is_refused(wrong):
    """Both the first step of the chain and the step to the data check the shape."""
    calls = []

    def denoise(xt, gamma_t):
        calls.append(gamma_t)
        return xt[:1] if len(calls) >= wrong else xt

    with pytest.raises(ValueError, match=r"output: expected shape \(2,\), found \(1,\)"):
        generate(denoise, jax.random.key(0), (2,), schedule="linear", steps=2)
