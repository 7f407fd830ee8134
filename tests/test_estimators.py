"""The likelihood estimators against closed forms: Gaussian, mixture and quantized data, exact denoisers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from scipy.stats import norm

import vdm_jax as vdm
from vdm_jax.estimators import DEQUANTIZATIONS, ESTIMATORS, EXACT_LIMIT
from vdm_jax.estimators.variance import nodes
from vdm_jax.parameterizations import PARAMETERIZATIONS

ROWS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]


def schedule_of(first, last):
    return vdm.schedules.linear(gamma_min=first, gamma_max=last)


def estimates(law, x, estimator, *, ends, keys=1, parameterization="eps", timesteps=None, seed=0):
    """Return log-likelihood estimates [len(x), keys] of examples with the exact denoiser of a law."""
    schedule = schedule_of(*ends)
    row = PARAMETERIZATIONS[parameterization]()
    interval_of = oracles.interval_of_step(
        schedule, timesteps=None if row.continuous else timesteps
    )
    denoise = law.network(row, interval_of)

    def estimate(x, key):
        return vdm.log_likelihood(
            denoise,
            x,
            key,
            schedule=schedule,
            parameterization=parameterization,
            estimator=estimator,
        )

    all_keys = jax.random.split(jax.random.key(seed), (len(x), keys))
    return np.asarray(jit(jax.vmap(jax.vmap(estimate, (None, 0))))(jnp.asarray(x), all_keys))


# --- the ODE ----------------------------------------------------------------------------------------


def flow_log_prob(law, x, first, last):
    """Return the log-density of the exact flow at α_0 x plus d log α_0, for a Gaussian law."""
    (mean,), (variance,) = law.means, law.variances
    alpha, noise = np.sqrt(oracles.expit(-first)), oracles.expit(first)
    end_alpha, end_noise = np.sqrt(oracles.expit(-last)), oracles.expit(last)
    scale = np.sqrt((end_alpha**2 * variance + end_noise) / (alpha**2 * variance + noise))
    x1 = end_alpha * mean + scale * alpha * (x - mean)
    axes = tuple(range(1, x.ndim))
    return np.sum(-0.5 * (x1**2 + oracles.LOG_2PI) + np.log(scale * alpha), axis=axes)


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_ode_has_the_order_of_its_solver(solver, order):
    law, ends = oracles.gaussian((3,)), (-13.3, 5.0)
    x = law.sample(0, 2)
    expected, errors = flow_log_prob(law, x, *ends), []
    with jax.enable_x64(True):
        for steps in (32, 64):
            spec = {"name": "ode", "divergence": "exact", "solver": solver, "steps": steps}
            log_prob = estimates(law, x, spec, ends=ends)[:, 0]
            errors.append(np.max(np.abs(log_prob - expected)) / 3)
    assert errors[-1] < 1e-4
    slope = np.log2(errors[0] / errors[1])
    assert order - 0.5 < slope < order + 1.2


def test_ode_is_that_of_a_mixture_in_every_parameterization():
    # the flow transports the marginal at γ_0 to that at γ_1, which is nearly N(0, I) here
    law, ends = oracles.mixture((2,)), (-8.0, 14.0)
    x = law.sample(1, 3)
    alpha2, noise = oracles.expit(-ends[0]), oracles.expit(ends[0])
    widened = oracles.Law(law.weights, law.means, law.variances + noise / alpha2)
    for name in ROWS:
        spec = {"name": "ode", "divergence": "exact", "steps": 64}
        log_prob = estimates(law, x, spec, ends=ends, parameterization=name)[:, 0]
        # score and eps divide by α, whose rounding at γ = 14 limits float32
        np.testing.assert_allclose(log_prob / 2, widened.log_prob(x) / 2, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_probe_is_unbiased_and_the_same_at_every_step():
    law, ends = oracles.mixture((3,)), (-6.0, 8.0)
    x = law.sample(2, 1)
    exact = estimates(law, x, {"name": "ode", "divergence": "exact"}, ends=ends)[0, 0]
    with_probes = estimates(law, x, {"name": "ode"}, ends=ends, keys=400)[0]
    # eight probes of ±1 in three dimensions, of which opposite ones agree
    assert len(np.unique(with_probes.round(3))) == 4
    assert abs(with_probes.mean() - exact) < 4 * oracles.standard_error(with_probes)


# --- trajectories and variances -----------------------------------------------------------------------


def excess_of_posterior(law, gammas):
    """Return the r [T, *d] of the exact reverse process of a Gaussian law."""
    variance = law.variances[0]
    rows = []
    for s, t in itertools.pairwise(gammas):
        signal = variance * np.exp(-t)  # v SNR
        rows.append(np.expm1(t - s) * signal / (1 + signal))
    return np.stack(rows)


@pytest.mark.parametrize("timesteps", [1, 2, 10, 1000])
def test_the_exact_reverse_process_has_constant_weights(timesteps):
    """A standard normal law has an exact reverse chain: log w = log p(x) for every trajectory."""
    law = oracles.Law(np.ones(1), np.zeros((1, 3)), np.ones((1, 3)))
    ends = (
        -30.0,
        5.0,
    )  # the likelihood decodes as if x had a flat prior, which is an error of order σ_0
    gammas = np.linspace(*ends, timesteps + 1)
    x = law.sample(3, 2)
    spec = {"name": "importance", "samples": 1, "timesteps": timesteps}
    with jax.enable_x64(True):
        spec["variance"] = excess_of_posterior(law, gammas)
        log_prob = estimates(law, x, spec, ends=ends, keys=3, timesteps=timesteps)
    np.testing.assert_allclose(log_prob, law.log_prob(x)[:, None].repeat(3, 1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [1, 2, 10])
def test_tuned_terms_add_up_to_the_mutual_information(timesteps):
    """½ Σ log(1 + r) telescopes to I(x; z_0) − I(x; z_T) for every T if the KL of each step is 0."""
    law, ends = oracles.gaussian((3,)), (-6.0, 5.0)
    gammas = np.linspace(*ends, timesteps + 1)
    r = excess_of_posterior(law, gammas)
    information = [0.5 * np.sum(np.log1p(law.variances[0] * np.exp(-g))) for g in ends]
    np.testing.assert_allclose(0.5 * np.sum(np.log1p(r)), information[0] - information[1])
    # at one standard deviation, ρ has its mean over the data
    x = law.means + np.sqrt(law.variances)
    reconstruction, prior = oracles.ends(*ends, x)
    expected = -(information[0] - information[1] + reconstruction + prior)
    spec = {"name": "tuned", "timesteps": timesteps, "variance": r, "draws": timesteps}
    found = estimates(law, x, spec, ends=ends, keys=400)[0]
    assert abs(found.mean() - expected[0]) < 4 * oracles.standard_error(found)
    plain = estimates(law, x, spec | {"variance": 0.0}, ends=ends, keys=400)[0]
    assert found.mean() > plain.mean() + 0.5


@pytest.mark.slow
def test_without_excess_the_estimators_are_those_of_the_elbo():
    law, ends, timesteps = oracles.mixture((3,)), (-6.0, 5.0), 4
    x = law.sample(4, 2)
    shared = {"timesteps": timesteps, "draws": 4}
    elbo = estimates(law, x, {"name": "elbo"} | shared, ends=ends, keys=3)
    for variance in (0.0, np.zeros((4, 3)), lambda gamma_t: 0.0):
        tuned = {"name": "tuned", "variance": variance} | shared
        np.testing.assert_allclose(estimates(law, x, tuned, ends=ends, keys=3), elbo, rtol=2e-5)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_trajectories_estimate_the_elbo_and_the_likelihood(name):
    law, ends, timesteps = oracles.gaussian((2,)), (-4.0, 4.0), 5
    gammas = np.linspace(*ends, timesteps + 1)
    x = law.sample(5, 1)
    spec = {"name": "importance", "samples": 1, "timesteps": timesteps}
    log_w = estimates(
        law, x, spec, ends=ends, keys=4000, parameterization=name, timesteps=timesteps
    )[0]
    elbo = -(oracles.matching(law, gammas, x) + sum(oracles.ends(*ends, x)))[0]
    assert abs(log_w.mean() - elbo) < 4 * oracles.standard_error(log_w)
    # the weights are unbiased: E w = p(x) of the chain
    ratio = np.exp(log_w - oracles.chain_log_prob(law, gammas, x)[0])
    assert abs(ratio.mean() - 1) < 4 * oracles.standard_error(ratio)


@pytest.mark.slow
def test_importance_rises_with_the_samples_to_the_likelihood():
    law, ends, timesteps = oracles.gaussian((2,)), (-4.0, 4.0), 5
    gammas = np.linspace(*ends, timesteps + 1)
    x = law.sample(6, 8)
    exact = oracles.chain_log_prob(law, gammas, x).mean()
    means = []
    for samples in (1, 10, 100):
        spec = {"name": "importance", "samples": samples, "timesteps": timesteps}
        found = estimates(law, x, spec, ends=ends, keys=40).mean(0)
        means.append(found.mean())
        assert found.mean() < exact + 4 * oracles.standard_error(found)
    assert means[0] < means[1] < means[2]
    assert exact - means[-1] < 0.1 * (exact - means[0])


@pytest.mark.slow
def test_sums_of_many_steps_keep_their_digits_in_float32():
    ends, timesteps = (-13.3, 5.0), 1000
    law = oracles.Law(np.ones(1), np.zeros((1, 3)), np.ones((1, 3)))
    x = law.sample(7, 2).astype(np.float32)
    r = excess_of_posterior(law, np.linspace(*ends, timesteps + 1))
    spec = {"name": "importance", "samples": 1, "timesteps": timesteps, "variance": r}
    log_prob = estimates(law, x, spec, ends=ends, keys=4)
    # constant weights, but for the flat prior of the likelihood: an error of order σ_0 ‖x‖ = 4e-3
    np.testing.assert_allclose(log_prob, law.log_prob(x)[:, None].repeat(4, 1), atol=2e-2)
    other = oracles.gaussian((3,))
    y = other.sample(7, 2).astype(np.float32)
    spec = {"name": "ode", "divergence": "exact", "steps": 256}
    log_prob = estimates(other, y, spec, ends=ends)[:, 0]
    np.testing.assert_allclose(log_prob, flow_log_prob(other, y, *ends), atol=1e-3)


# --- dequantization -----------------------------------------------------------------------------------


LEVELS = 4
SHARES = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])  # of two independent positions
IMAGES = np.array([*itertools.product(range(LEVELS), repeat=2)])
LOG_SHARES = np.log(SHARES[0][IMAGES[:, 0]] * SHARES[1][IMAGES[:, 1]])
ENTROPY = -np.sum(np.exp(LOG_SHARES) * LOG_SHARES)


def quantized_denoiser(xt, gamma_t):
    """Return E[x_0 | x_t] of the quantized source."""
    values = jnp.asarray(vdm.likelihoods.level_values(LEVELS), xt.dtype)
    alpha, log_var = vdm.diffusion.alpha(gamma_t), 2 * vdm.diffusion.log_sigma(gamma_t)
    scores = -0.5 * jnp.square(xt[:, None] - alpha * values[None]) * jnp.exp(-log_var)
    return jax.nn.softmax(scores + jnp.asarray(np.log(SHARES), xt.dtype), -1) @ values


def quantized(estimator, *, ends, keys):
    """Return estimates [16, keys] for all pairs of levels."""

    def estimate(x, key):
        return vdm.log_likelihood(
            quantized_denoiser,
            x,
            key,
            schedule=schedule_of(*ends),
            parameterization="x0",
            likelihood={"name": "histogram", "levels": LEVELS, "log_counts": np.log(SHARES)},
            estimator=estimator,
        )

    all_keys = jax.random.split(jax.random.key(3), (len(IMAGES), keys))
    estimate_all = jit(jax.vmap(jax.vmap(estimate, (None, 0))))
    return np.asarray(estimate_all(jnp.asarray(IMAGES), all_keys), np.float64)


def code_length_of_bins(gamma):
    """Return −E log P(x), where P is the mass of the least noisy latent in the bin of a level."""
    values = vdm.likelihoods.level_values(LEVELS)
    width = np.exp(gamma / 2)  # of the noise, in units of the data
    upper = norm.cdf((values[:, None] + 1 / LEVELS - values) / width)
    lower = norm.cdf((values[:, None] - 1 / LEVELS - values) / width)
    mass = SHARES @ (upper - lower).T
    return -np.sum(SHARES * np.log(mass))


@pytest.mark.parametrize("name", DEQUANTIZATIONS)
def test_dequantized_likelihoods_are_bounds_that_close(name):
    first = -4.5
    limit = ENTROPY if name == "decoder" else code_length_of_bins(first)
    spec = {"name": "ode", "divergence": "exact", "steps": 32, "dequantization": name}
    gaps = []
    for samples in (1, 24):
        found = quantized(spec | {"samples": samples}, ends=(first, 12.0), keys=16)
        nats = -np.exp(LOG_SHARES) @ found  # one cross entropy for each key
        gaps.append(nats.mean() - limit)
        error = 4 * oracles.standard_error(nats) + 2e-3
        assert gaps[-1] > -error
        # the weights are of one distribution over the levels
        mass = np.exp(found).sum(0)
        assert mass.mean() < 1 + 4 * oracles.standard_error(mass) + 1e-3
    assert gaps[1] < gaps[0] / 2 + error
    assert gaps[1] < 0.05


@pytest.mark.slow
def test_chain_estimators_are_at_least_the_entropy():
    for spec in (
        {"name": "elbo", "draws": 16},
        {"name": "tuned", "timesteps": 8, "variance": 0.1, "draws": 16},
        {"name": "importance", "timesteps": 8, "samples": 16},
    ):
        nats = -np.exp(LOG_SHARES) @ quantized(spec, ends=(-6.0, 8.0), keys=24)
        assert nats.mean() > ENTROPY - 4 * oracles.standard_error(nats)


# --- mistakes -----------------------------------------------------------------------------------------


def likelihood_with(estimator, **options):
    options = {"schedule": "linear", "parameterization": "eps"} | options
    x = options.pop("x", jnp.zeros(2))
    return vdm.log_likelihood(
        lambda xt, gamma_t: xt, x, jax.random.key(0), estimator=estimator, **options
    )


LEVELS_OF_DATA = {"likelihood": {"name": "softmax", "levels": 4}, "x": jnp.zeros(2, int)}
MISTAKES = [
    ("exact", {}, "estimator: unknown name 'exact'.* choices: elbo, importance, ode, tuned"),
    ("importance", {}, "estimator: 'importance' needs timesteps"),
    ({"name": "importance", "timesteps": None}, {}, r"estimator\.timesteps: needed, because"),
    ("tuned", {}, "estimator: 'tuned' needs timesteps"),
    (
        {"name": "tuned", "timesteps": 4},
        {},
        r"estimator\.variance: 'fitted' is measured on the training examples",
    ),
    (
        {"name": "tuned", "timesteps": 4, "variance": np.zeros(3)},
        {},
        r"estimator\.variance: expected one of the shapes .*found \(3,\)",
    ),
    (
        {"name": "tuned", "timesteps": 4, "variance": -1.0},
        {},
        r"estimator\.variance: expected finite numbers above −1",
    ),
    (
        {"name": "tuned", "timesteps": 4, "variance": "learned"},
        {},
        r"estimator\.variance: expected 'fitted', numbers or a function, found 'learned'",
    ),
    (
        {"name": "importance", "timesteps": 4, "samples": 0},
        {},
        r"estimator\.samples: expected a whole number of at least 1, found 0",
    ),
    ({"name": "importance", "timesteps": 0}, {}, r"estimator\.timesteps: .*found 0"),
    ({"name": "elbo", "draws": 0}, {}, r"estimator\.draws: .*found 0"),
    ("elbo", {"parameterization": "mean"}, "'mean' has no finite form in continuous time"),
    (
        {"name": "tuned", "timesteps": 4, "variance": lambda gamma_t: np.zeros((3, 1))},
        {},
        r"estimator\.variance: expected a function to shape \(\) or \(2,\), found \(3, 1\)",
    ),
    ({"timesteps": 3}, {}, "estimator: expected a 'name', found only"),
    (
        {"name": "ode", "check_steps": "no"},
        {},
        r"estimator\.check_steps: expected True or False, found 'no'",
    ),
    ({"name": "ode", "steps": 0}, {}, r"estimator\.steps: .*found 0"),
    (
        {"name": "ode", "steps": 5, "check_steps": True},
        {},
        r"estimator\.steps: expected an even number",
    ),
    ({"name": "ode", "solver": "euler"}, {}, r"estimator\.solver: unknown name 'euler'"),
    ({"name": "ode", "divergence": "ones"}, {}, r"estimator\.divergence: unknown name 'ones'"),
    (
        {"name": "ode", "dequantization": "normal"},
        LEVELS_OF_DATA,
        r"estimator\.dequantization: unknown name 'normal'",
    ),
    (
        {"name": "ode", "dequantization": "truncated_normal"},
        {},
        r"estimator\.dequantization: continuous data need none",
    ),
    ({"name": "ode", "samples": 2}, {}, r"estimator\.samples: .*expected 1, found 2"),
    ("ode", {"parameterization": "mean"}, "'mean' is defined on the steps of a chain"),
    (
        {"name": "ode", "divergence": "exact"},
        {"x": jnp.zeros(EXACT_LIMIT + 1)},
        rf"estimator\.divergence: 'exact' costs d = {EXACT_LIMIT + 1} backward passes",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[str(i) for i in range(len(MISTAKES))])
def test_mistakes_are_reported_in_one_line(mistake, as_users):
    estimator, options, message = mistake
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        likelihood_with(estimator, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_estimator_counts_its_calls_and_names_its_settings():
    schedule = schedule_of(-4.0, 4.0)
    specs = {
        "elbo": {"draws": 3},
        "tuned": {"timesteps": 4, "variance": 0.1, "draws": 2},
        "importance": {"timesteps": 4, "samples": 3},
        "ode": {"steps": 4, "samples": 2, "check_steps": True, "solver": "heun"},
    }
    assert specs.keys() == ESTIMATORS.keys()
    for likelihood_name in ("softmax", "discretized_gaussian"):
        likelihood = vdm.likelihoods.LIKELIHOODS[likelihood_name](levels=4)
        for name, spec in specs.items():
            counts = []

            def denoise(xt, gamma_t, counts=counts):
                jax.debug.callback(lambda: counts.append(1))
                return xt

            def estimate(key, denoise=denoise, likelihood=likelihood, spec=spec, name=name):
                return vdm.log_likelihood(
                    denoise,
                    jnp.zeros(2, int),
                    key,
                    schedule=schedule,
                    likelihood=likelihood,
                    estimator={"name": name} | spec,
                )

            jit(estimate)(jax.random.key(0)).block_until_ready()
            jax.effects_barrier()
            estimator = ESTIMATORS[name](**spec)
            assert len(counts) == estimator.calls(likelihood), (name, likelihood_name)
            assert {k: v for k, v in estimator.settings.items() if k in spec} == {
                k: "given" if k == "variance" else v
                for k, v in spec.items()
                if k in estimator.settings
            }


def test_nodes_of_the_variance_are_steps_of_the_chain():
    for timesteps in (1, 2, 63, 64, 65, 1000, 2**20):
        steps = nodes(timesteps)
        assert steps[0] == 0 and steps[-1] == timesteps - 1
        assert len(steps) == min(timesteps, 64) and np.all(np.diff(steps) > 0)
