"""Likelihoods, eq. (12): K levels sum to one, densities are SciPy's, and data round-trip unchanged."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr, logsumexp

from vdm_jax.checks import describe
from vdm_jax.diffusion import alpha, sigma
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood, level_values, observation
from vdm_jax.specs import build

DISCRETE = [name for name in LIKELIHOODS if name != "gaussian"]
KS = [2, 17, 256]
MANY = [name for name in DISCRETE if name != "bernoulli"]  # any number of levels
OF_K = [(name, levels) for name in DISCRETE for levels in KS if name in MANY or levels == 2]
GAMMAS = [-13.3, -5.0, 0.0]
EXTREMES = [-60.0, -20.0, -13.3, 0.0, 5.0, 20.0, 60.0]
seeds = st.integers(0, 2**32 - 1)


def made(name: str, levels: int = 256) -> Likelihood:
    """Build a likelihood of `levels` levels; the histogram is the same at all positions, and far from flat."""
    counts = np.log(np.random.default_rng(levels).dirichlet(np.full(levels, 0.3)) + 1e-6)
    return build(LIKELIHOODS, name, levels=levels, log_counts=counts)


def of_latent(likelihood: Likelihood):
    """Return log p as a diffusion model evaluates it: (x, latent, x0_hat, gamma_0) -> nats."""
    return lambda x, latent, x0_hat, gamma_0: likelihood.log_prob(
        x, *observation(likelihood, latent, x0_hat, gamma_0)
    )


def over_levels(likelihood: Likelihood):
    """Return a function for log p of every level, [n, K], at latents and predictions [n]."""

    @jax.jit
    def table(latent, x0_hat, gamma_0):
        x = jnp.arange(likelihood.levels)
        over_x = jax.vmap(of_latent(likelihood), (0, None, None, None))
        return jax.vmap(over_x, (None, 0, 0, None))(x, latent, x0_hat, gamma_0)

    return table


@pytest.mark.parametrize(("name", "levels"), OF_K)
def test_levels_sum_to_one(name, levels):
    """The sum is one inside the range and beyond it, in both precisions."""
    table = over_levels(made(name, levels))
    points = np.linspace(-1.3, 1.3, 53)
    for x64, atol in ((True, 1e-10), (False, 1e-5)):
        with jax.enable_x64(x64):
            for gamma_0 in GAMMAS:
                x = jnp.asarray(points, float)
                log_mass = np.asarray(table(x, x[::-1], jnp.asarray(gamma_0)), np.float64)
                assert log_mass.shape == (53, levels)
                np.testing.assert_allclose(logsumexp(log_mass, axis=1), 0, atol=atol)
                assert np.all(log_mass <= atol)


@pytest.mark.parametrize("gamma_0", GAMMAS)
def test_softmax_is_bayes_rule(gamma_0):
    """The softmax equals the posterior of equally likely levels given x_{t=0} ~ N(α_0 ℓ, σ_0²)."""
    with jax.enable_x64(True):
        latent = np.linspace(-1.1, 1.1, 7)
        softmax_table = over_levels(LIKELIHOODS["softmax"](levels=17))
        joint = scipy.stats.norm.logpdf(
            latent[:, None], alpha(gamma_0) * level_values(17), sigma(gamma_0)
        )
        expected = joint - logsumexp(joint, axis=1, keepdims=True)
        table = softmax_table(jnp.asarray(latent), jnp.asarray(latent), jnp.asarray(gamma_0))
        np.testing.assert_allclose(table, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("name", ["softmax", "histogram"])
def test_near_levels_suffice_at_small_variances(name, x64):
    """Values and slopes are exact on both sides of the variance at which all levels are summed."""
    levels, tight = 17, {"rtol": 1e-9, "atol": 1e-9} if x64 else {"rtol": 2e-5, "atol": 2e-5}
    values, counts = level_values(levels), np.zeros(levels)
    likelihood = made(name, levels)
    if name == "histogram":
        counts = np.log(np.random.default_rng(levels).dirichlet(np.full(levels, 0.3)) + 1e-6)
        counts = counts.astype(np.float32).astype(float)

    def oracle(x, mean, log_var):
        logits = counts - 0.5 * np.square(mean[:, None] - values) * np.exp(-log_var)
        log_mass = logits - logsumexp(logits, axis=1, keepdims=True)
        return log_mass[:, x], (values[x] - np.exp(log_mass) @ values) * np.exp(-log_var)

    with jax.enable_x64(x64):
        slope = jax.value_and_grad(likelihood.log_prob, 1)
        run = jax.jit(jax.vmap(slope, (None, 0, None)))
        means = jnp.concatenate([values, jnp.linspace(-1.2, 1.2, 40)]).astype(float)
        for log_var in jnp.linspace(-9.0, -4.0, 41):
            for x in (0, 3, 16):
                values_and_slopes = run(x, means, log_var)
                expected = oracle(x, np.asarray(means, np.float64), float(log_var))
                for actual, exact in zip(values_and_slopes, expected, strict=True):
                    np.testing.assert_allclose(actual, exact, **tight)


def test_all_levels_are_summed_where_near_levels_are_rare():
    """Distant levels of a histogram may have more mass than five rare levels nearby."""
    counts = np.full((3, 17), -30.0)
    counts[:, ::6] = 0
    likelihood = LIKELIHOODS["histogram"](levels=17, log_counts=counts)
    mean = np.asarray([1 / 17, 0.3, -0.7])
    for log_var in (-9.0, -7.0, -6.2, -5.0):  # enough at −7 if all levels were alike
        logits = counts - 0.5 * np.square(mean[:, None] - level_values(17)) * np.exp(-log_var)
        for level in (0, 6, 9):
            nats = likelihood.log_prob(jnp.full(3, level), jnp.asarray(mean), jnp.asarray(log_var))
            expected = np.sum(logits[:, level] - logsumexp(logits, axis=1))
            np.testing.assert_allclose(nats, expected, rtol=2e-5, atol=2e-5)


def test_few_levels_are_summed_at_the_noise_of_a_fixed_schedule():
    """The compiler selects a branch; a learned schedule keeps both, without residuals of all levels."""
    levels, pixels = 256, 100
    log_prob = LIKELIHOODS["softmax"](levels=levels).log_prob
    x, mean = jnp.zeros(pixels, int), jnp.zeros(pixels)

    def compiled(run, *arguments):
        program = jax.jit(run).lower(*arguments).compile()
        return program.cost_analysis()["transcendentals"] / pixels, program.as_text()

    count, text = compiled(lambda x, mean: log_prob(x, mean, jnp.asarray(-13.3)), x, mean)
    assert count < 10 and " conditional(" not in text
    count, text = compiled(lambda x, mean: log_prob(x, mean, jnp.asarray(-5.0)), x, mean)
    assert count > 250 and " conditional(" not in text
    slope = jax.grad(log_prob, 2)
    _, text = compiled(slope, x, mean, jnp.asarray(-13.3))
    assert " conditional(" in text
    linear = jax.eval_shape(lambda g: jax.vjp(lambda g: log_prob(x, mean, g), g)[1], mean[0])
    assert sum(leaf.size for leaf in jax.tree.leaves(linear)) < 40 * pixels


def bin_masses(x0_hat, deviation, levels):
    """Return the log of the normal mass of every bin, in the tail where log Φ keeps its digits."""
    edges = (np.linspace(-1, 1, levels + 1)[None, :] - x0_hat[:, None]) / deviation
    edges[:, 0], edges[:, -1] = -np.inf, np.inf
    low, high = edges[:, :-1], edges[:, 1:]
    right = low + high > 0
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))


@pytest.mark.parametrize("levels", KS)
@pytest.mark.parametrize("gamma_0", GAMMAS)
def test_discretized_gaussian_is_the_mass_of_each_bin(levels, gamma_0):
    """The masses agree down to log-probabilities of −10⁶, in float64 and in float32."""
    table = over_levels(LIKELIHOODS["discretized_gaussian"](levels=levels))
    points = np.linspace(-1.3, 1.3, 11).astype(np.float32)
    expected = bin_masses(points.astype(float), float(sigma(gamma_0)), levels)
    log_mass = table(jnp.asarray(points), jnp.asarray(points), jnp.asarray(gamma_0))
    np.testing.assert_allclose(log_mass, expected, rtol=1e-4, atol=1e-4)
    with jax.enable_x64(True):
        expected = bin_masses(points.astype(float), float(sigma(gamma_0)), levels)
        points = jnp.asarray(points, float)
        log_mass = table(points, points, jnp.asarray(gamma_0))
        np.testing.assert_allclose(log_mass, expected, rtol=1e-7, atol=1e-9)


@given(seed=seeds, gamma_0=st.floats(-13.3, 5), shape=st.sampled_from([(), (2, 3)]))
def test_gaussian_matches_scipy(seed, gamma_0, shape):
    with jax.enable_x64(True):
        x, latent = np.random.default_rng(seed).normal(size=(2, *shape))
        mean, deviation = latent / alpha(gamma_0), sigma(gamma_0) / alpha(gamma_0)
        expected = scipy.stats.norm.logpdf(x, mean, deviation).sum()
        arguments = jnp.asarray(x), jnp.asarray(latent), None, jnp.asarray(gamma_0)
        log_prob = of_latent(LIKELIHOODS["gaussian"]())(*arguments)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-11)


@pytest.mark.parametrize("log_var", [-9.0, -1.0, 4.0])
def test_histogram_is_bayes_rule_position_by_position(log_var):
    """Each position has its own prior, which an observation without information leaves unchanged."""
    with jax.enable_x64(True):
        priors = np.random.default_rng(0).dirichlet(np.full(5, 0.5), (2, 3))
        likelihood = LIKELIHOODS["histogram"](levels=5, log_counts=np.log(priors))
        priors = np.exp(np.log(priors).astype(np.float32).astype(float))
        mean = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 3))
        variance = np.exp(np.full((2, 3), log_var) + 0.1 * np.arange(6).reshape(2, 3))
        joint = np.log(priors) + scipy.stats.norm.logpdf(
            level_values(5), mean[..., None], np.sqrt(variance)[..., None]
        )
        expected = joint - logsumexp(joint, axis=-1, keepdims=True)
        arguments = jnp.asarray(mean), jnp.asarray(np.log(variance))
        for level in range(5):
            x = np.full((2, 3), level)
            nats = likelihood.log_prob(x, *arguments)
            np.testing.assert_allclose(nats, expected[..., level].sum(), rtol=1e-9)
        vague = likelihood.log_prob(np.full((2, 3), 2), arguments[0], jnp.asarray(60.0))
        log_priors = np.log(priors / priors.sum(-1, keepdims=True))
        np.testing.assert_allclose(vague, log_priors[..., 2].sum(), rtol=1e-9)


def test_bernoulli_has_log_odds_of_mean_over_variance():
    mean, log_var = jnp.asarray([0.7, -2.0, 0.1]), jnp.asarray([0.3, 1.0, -2.0])
    odds = np.asarray(mean * jnp.exp(-log_var), np.float64)
    for x in ([0, 1, 1], [1, 0, 0]):
        expected = -np.logaddexp(0, np.where(x, -odds, odds)).sum()
        nats = LIKELIHOODS["bernoulli"]().log_prob(jnp.asarray(x), mean, log_var)
        np.testing.assert_allclose(nats, expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "levels"), [*((n, 17) for n in MANY), ("bernoulli", 2)])
def test_samples_have_the_probabilities(name, levels):
    """The frequencies pass a chi-square test, the mean is the expectation within its standard error."""
    n, mean, log_var = 20_000, jnp.asarray(0.23), jnp.asarray(-2.5)
    likelihood = made(name, levels)
    key = jax.random.key(3)
    drawn = np.asarray(
        jax.vmap(likelihood.sample, (0, None, None))(jax.random.split(key, n), mean, log_var)
    )
    assert drawn.dtype == np.uint8
    log_mass = jax.vmap(likelihood.log_prob, (0, None, None))(jnp.arange(levels), mean, log_var)
    mass = np.exp(np.asarray(log_mass, np.float64))
    counts, likely = np.bincount(drawn, minlength=levels), n * mass > 5
    rest = [[counts[~likely].sum()], [n * mass[~likely].sum()]] if np.any(~likely) else [[], []]
    observed = np.append(counts[likely], rest[0])
    wanted = np.append(n * mass[likely], rest[1])
    keep = wanted > 1
    wanted = wanted[keep] * observed[keep].sum() / wanted[keep].sum()
    assert scipy.stats.chisquare(observed[keep], wanted).pvalue > 1e-4
    values = level_values(levels)[drawn]
    error = values.std() / np.sqrt(n)
    slack = 1e-2 if name == "discretized_gaussian" else 0  # up to its rounding and outer bins
    assert abs(values.mean() - likelihood.expected(mean, log_var)) < 4.5 * error + slack


def test_continuous_samples_have_the_moments():
    likelihood = LIKELIHOODS["gaussian"]()
    mean, log_var = jnp.asarray([0.5, -3.0]), jnp.asarray([0.0, -2.0])
    drawn = jax.vmap(likelihood.sample, (0, None, None))(
        jax.random.split(jax.random.key(0), 20_000), mean, log_var
    )
    deviation = np.exp(0.5 * np.asarray(log_var))
    assert np.all(abs(np.mean(drawn, 0) - mean) < 4.5 * deviation / np.sqrt(20_000))
    np.testing.assert_allclose(np.std(drawn, 0), deviation, rtol=0.03)
    np.testing.assert_array_equal(likelihood.expected(mean, log_var), mean)


@pytest.mark.parametrize("levels", [2, 17, 256, 1000])
@pytest.mark.parametrize("name", MANY)
def test_levels_round_trip(name, levels):
    likelihood = made(name, levels)
    assert likelihood.levels == levels
    x = np.arange(levels).astype(np.uint8 if levels <= 256 else np.int32)
    x0 = likelihood.encode(x)
    assert x0.dtype == jnp.float32
    np.testing.assert_allclose(x0, level_values(levels), atol=2e-7)
    for shift in (-0.9 / levels, 0.0, 0.9 / levels):  # within the bin
        decoded = likelihood.decode(x0 + shift)
        np.testing.assert_array_equal(decoded, x)
        assert decoded.dtype == x.dtype
    # beyond the range: the outer levels
    ends = likelihood.decode(jnp.asarray([-7.0, -1.0, 1.0, 7.0]))
    np.testing.assert_array_equal(ends, [0, 0, levels - 1, levels - 1])


def test_continuous_data_are_unchanged():
    likelihood = LIKELIHOODS["gaussian"]()
    x = jnp.asarray([-3.0, 0.25, 17.0])
    assert likelihood.levels is None
    np.testing.assert_array_equal(likelihood.encode(x), x)
    np.testing.assert_array_equal(likelihood.decode(x), x)
    assert likelihood.encode(np.arange(3.0)).dtype == jnp.float32


@pytest.mark.parametrize("x", [np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), 0.5])
@pytest.mark.parametrize("name", MANY)
def test_floats_are_refused_where_levels_are_expected(name, x):
    likelihood = made(name, 17)
    message = rf"{name}.*integers 0\.\.16, found {describe(x)}".replace("(", r"\(").replace(
        ")", r"\)"
    )
    with pytest.raises(TypeError, match=message):
        likelihood.encode(x)
    latent = jnp.zeros(np.shape(x))
    with pytest.raises(TypeError, match=message):
        likelihood.log_prob(x, latent, jnp.zeros(()))


@pytest.mark.parametrize("x", [np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool), 5])
def test_integers_are_refused_where_floats_are_expected(x):
    likelihood = LIKELIHOODS["gaussian"]()
    message = rf"'gaussian': expected floats, found {jnp.asarray(x).dtype} of shape"
    with pytest.raises(TypeError, match=message):
        likelihood.encode(x)
    with pytest.raises(TypeError, match=message):
        likelihood.log_prob(x, jnp.zeros(np.shape(x)), jnp.zeros(()))


def test_missing_log_counts_are_refused():
    with pytest.raises(
        ValueError, match=r"log_counts: expected those of the training split.*found None"
    ):
        LIKELIHOODS["histogram"](levels=4, log_counts=None)


@pytest.mark.parametrize("levels", [1, 0, -4])
@pytest.mark.parametrize("name", MANY)
def test_fewer_than_two_levels_are_refused(name, levels):
    counts = {"log_counts": np.zeros(max(levels, 0))} if name == "histogram" else {}
    with pytest.raises(ValueError, match=r"levels|histogram"):
        LIKELIHOODS[name](levels=levels, **counts)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_a_histogram_in_which_a_level_is_impossible_is_refused(bad):
    counts = np.zeros((2, 4))
    counts[1, 2] = bad
    with pytest.raises(ValueError, match=r"log_counts\[1, 2\]: expected a finite number"):
        LIKELIHOODS["histogram"](levels=4, log_counts=counts)


@pytest.mark.parametrize("name", MANY)
def test_integers_beyond_the_levels(name):
    encode, x = made(name, 4).encode, jnp.asarray([-1, 0, 3, 4, 300])
    with pytest.raises(ValueError, match=r"expected integers 0\.\.3, found values in \[-1, 300\]"):
        encode(x)
    x0 = jax.jit(encode)(x)
    np.testing.assert_array_equal(np.isnan(x0), [True, False, False, True, True])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_continuous_data_of_half_precision_are_noised_in_float32(dtype):
    likelihood, x = LIKELIHOODS["gaussian"](), jnp.asarray([1.0, -0.5], dtype)
    assert likelihood.encode(x).dtype == jnp.float32
    assert likelihood.log_prob(x, jnp.zeros(2), jnp.asarray(0.0)).dtype == jnp.float32


@pytest.mark.parametrize("log_var", [-13.0, -1.0, -0.5, 0.0, 5.0, 25.0, 60.0])
def test_discretized_gaussian_with_narrow_bins(log_var):
    """Values and derivatives equal a quadrature over the bin."""
    likelihood, mean = LIKELIHOODS["discretized_gaussian"](levels=256), 0.3
    place = (level_values(256)[170] - mean) * math.exp(-log_var / 2)
    width = 2 / 256 * math.exp(-log_var / 2)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    z = place + width * nodes / 2
    exact = math.log(width) + logsumexp(scipy.stats.norm.logpdf(z), b=weights / 2)

    def log_prob(mean, log_var):
        return likelihood.log_prob(jnp.asarray([170]), mean[None], log_var)

    arguments = jnp.asarray(mean), jnp.asarray(log_var)
    value, gradient = jax.value_and_grad(log_prob, (0, 1))(*arguments)
    np.testing.assert_allclose(value, exact, rtol=2e-6, atol=2e-5)
    by_mean = np.sum(weights * np.exp(scipy.stats.norm.logpdf(z) - exact + np.log(width / 2)) * z)
    expected = [by_mean * math.exp(-log_var / 2)]
    expected.append(
        0.5
        * np.sum(weights * np.exp(scipy.stats.norm.logpdf(z) - exact + np.log(width / 2)) * z**2)
        - 0.5
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_histogram_of_other_levels_is_refused():
    with pytest.raises(
        ValueError, match=r"the 17 levels as the last axis, found shape \(8, 8, 1, 16\)"
    ):
        LIKELIHOODS["histogram"](levels=17, log_counts=np.zeros((8, 8, 1, 16)))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_uses_prediction_names_the_input(name):
    likelihood = made(name)
    x = jnp.asarray([1, 0, 1]) if likelihood.levels else jnp.asarray([0.1, 0.2, 0.3])
    point = likelihood.encode(x) + 0.01

    def total(latent, x0_hat):
        return of_latent(likelihood)(x, latent, x0_hat, jnp.asarray(-5.0))

    by_latent, by_x0_hat = jax.grad(total, (0, 1))(point, point)
    assert np.any(by_x0_hat != 0) == likelihood.uses_prediction
    assert np.any(by_latent != 0) != likelihood.uses_prediction
    if not likelihood.uses_prediction:
        assert of_latent(likelihood)(x, point, None, jnp.asarray(-5.0)) == total(point, point)


@pytest.mark.parametrize(
    ("name", "k"), [*((n, k) for n in MANY for k in (17, 256)), ("gaussian", 0)]
)
def test_values_and_gradients_are_finite_at_extremes(name, k):
    """Predictions are right, nearly right and as wrong as possible, at outer and inner levels."""
    likelihood = made(name, k)
    levels = jnp.asarray([0, 1, k // 2, k - 2, k - 1])
    x = levels if likelihood.levels else jnp.linspace(0, 1, 5)
    x0 = likelihood.encode(x)

    def total(gamma_0, latent, x0_hat):
        return of_latent(likelihood)(x, alpha(gamma_0) * latent, x0_hat, gamma_0)

    run = jax.value_and_grad(total, (0, 1, 2))
    run = jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, 0))
    points = jnp.stack([x0, x0 + 0.01, -x0, x0[::-1]])
    for leaf in jax.tree.leaves(jax.jit(run)(jnp.asarray(EXTREMES), points, points)):
        assert np.isfinite(leaf).all()
