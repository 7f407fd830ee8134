"""Base denoisers against naive float64 posterior means, and output scales, eq. (22), (23)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.bases import BASES, Base, measure_residual
from vdm_jax.diffusion import Interval, alpha, sigma
from vdm_jax.likelihoods import level_values
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, Preconditioning, TargetCoefficients

LEVELS = 5
SHAPE = (2, 3)
EXTREMES = [-60.0, -20.0, -13.3, 0.0, 5.0, 20.0, 60.0]
ROWS = {name: factory() for name, factory in PARAMETERIZATIONS.items()}
LOG_COUNTS = np.log(np.random.default_rng(0).dirichlet(np.ones(LEVELS), SHAPE)).astype(np.float32)
ARGUMENTS = {
    "levels": {"levels": LEVELS},
    "histogram": {"levels": LEVELS, "log_counts": LOG_COUNTS},
}
UNUSED = (
    Preconditioning(jnp.zeros(()), jnp.zeros(())),
    TargetCoefficients(jnp.zeros(()), jnp.zeros(())),
)
seeds = st.integers(0, 2**32 - 1)


def make(name: str, **kwargs) -> Base:
    return BASES[name](**ARGUMENTS.get(name, {}), **kwargs)


def step(gamma_t, delta=0.5) -> Interval:
    return Interval(*(jnp.asarray(x, float) for x in (gamma_t - delta, gamma_t, delta)))


def draw(seed):
    """Draw data on the levels, and noise."""
    rng = np.random.default_rng(seed)
    x0 = level_values(LEVELS)[rng.integers(0, LEVELS, SHAPE)]
    return jnp.asarray(x0), jnp.asarray(rng.normal(size=SHAPE))


def latent(x0, eps, gamma_t):
    return alpha(gamma_t) * x0 + sigma(gamma_t) * eps


def posterior_mean(xt, gamma_t, log_counts):
    """Return Σ_k ℓ_k p(ℓ_k | x_t), one position at a time, in float64."""
    a, variance = 1 / np.sqrt(1 + np.exp(gamma_t)), 1 / (1 + np.exp(-gamma_t))
    values, result = level_values(log_counts.shape[-1]), np.zeros(xt.shape)
    for place in np.ndindex(xt.shape):
        logits = log_counts[place] - (xt[place] - a * values) ** 2 / (2 * variance)
        mass = np.exp(logits - logits.max())
        result[place] = mass @ values / mass.sum()
    return result


def estimator(base: Base):
    return jax.jit(lambda xt, gamma_t: base.estimate(xt, gamma_t, UNUSED[0]))


estimate = {name: estimator(make(name)) for name in ("levels", "histogram")}


@pytest.mark.parametrize("name", ["levels", "histogram"])
@given(seed=seeds, gamma_t=st.floats(-13.3, 10))
def test_discrete_bases_are_posterior_means(name, seed, gamma_t):
    prior = LOG_COUNTS.astype(float) if name == "histogram" else np.zeros((*SHAPE, LEVELS))
    with jax.enable_x64(True):
        # halfway between levels too, where neighbours weigh the same
        xt = latent(*draw(seed), gamma_t) + 0.1 * draw(seed + 1)[1]
        estimates = estimate[name](xt, jnp.asarray(gamma_t))
        expected = posterior_mean(np.asarray(xt), gamma_t, prior)
        np.testing.assert_allclose(estimates, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", BASES)
def test_bases_treat_each_position_alone(name):
    base, at = make(name), step(0.0)
    preconditioning, target = ROWS["v"](at), ROWS["v"].target(at)
    x0, eps = draw(0)

    def values(x0, eps):
        xt = latent(x0, eps, at.gamma_t)
        error = base.error(x0, eps, xt, at.gamma_t, preconditioning, target)
        return base.estimate(xt, at.gamma_t, preconditioning), error

    before, after = values(x0, eps), values(x0.at[1, 2].add(0.4), eps.at[1, 2].add(2.0))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.argwhere(a != b), [[1, 2]])


@jax.jit
def errors_and_estimates(x0, eps, at):
    xt = latent(x0, eps, at.gamma_t)
    results = {}
    for (base_name, base), (name, row) in itertools.product(
        ((name, make(name)) for name in BASES), ROWS.items()
    ):
        preconditioning, target = row(at), row.target(at)
        b = base.estimate(xt, at.gamma_t, preconditioning)
        error = base.error(x0, eps, xt, at.gamma_t, preconditioning, target)
        results[base_name, name] = error, x0 - b, 1 + jnp.max(jnp.abs(b))
    return [results[key] for key in itertools.product(BASES, ROWS)]


@given(seed=seeds, gamma_t=st.floats(-13.3, 10))
def test_error_is_data_minus_estimate(seed, gamma_t):
    with jax.enable_x64(True):
        results = errors_and_estimates(*draw(seed), step(gamma_t))
        for key, (error, difference, size) in zip(
            itertools.product(BASES, ROWS), results, strict=True
        ):
            np.testing.assert_allclose(
                error, difference, rtol=1e-9, atol=1e-14 * size, err_msg=str(key)
            )


@pytest.mark.parametrize("name", BASES)
def test_all_rows_share_every_base_but_zero(name):
    """The estimate does not depend on the network's output; `zero` means F = net in each row."""
    base, at = make(name), step(-2.0)
    xt = latent(*draw(0), at.gamma_t).astype(jnp.float32)
    estimates = {row: base.estimate(xt, at.gamma_t, ROWS[row](at)) for row in ROWS}
    if name == "zero":
        for row, b in estimates.items():
            np.testing.assert_array_equal(b, ROWS[row](at).skip * xt)
    else:
        for b in estimates.values():
            np.testing.assert_array_equal(b, estimates["eps"])
    if name == "input":  # ε̂ = x_t
        a, noise = alpha(at.gamma_t), sigma(at.gamma_t)
        np.testing.assert_allclose((xt - a * estimates["eps"]) / noise, xt, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_informative_bases_are_no_multiple_of_the_latent(name):
    base, at = make(name), step(-1.0)
    xt = latent(*draw(1), at.gamma_t).astype(jnp.float32)
    ratio = np.asarray(base.estimate(xt, at.gamma_t, ROWS["eps"](at)) / xt)
    assert base.informative is not bool(np.allclose(ratio, ratio.flat[0], rtol=1e-4))


@pytest.mark.parametrize("name", ["zero", "input"])
@pytest.mark.parametrize("second_moment", [1 / 3, 0.04, 2.0])
@pytest.mark.parametrize("gamma_t", [-13.3, -2.0, 0.0, 5.0])
def test_deviation_of_linear_bases_is_measured(name, second_moment, gamma_t):
    """The deviation is the root mean square over all signs of x_0 and ε, whose moments are exact."""
    base, at = make(name, second_moment=second_moment), step(gamma_t)
    signs = np.array(list(itertools.product([1, -1], repeat=2)), np.float32)
    x0, eps = jnp.asarray(np.sqrt(second_moment) * signs[:, 0]), jnp.asarray(signs[:, 1])
    for row in ROWS.values():
        preconditioning, target = row(at), row.target(at)
        error = base.error(
            x0, eps, latent(x0, eps, at.gamma_t), at.gamma_t, preconditioning, target
        )
        measured = np.sqrt(np.mean(np.square(np.asarray(error, np.float64))))
        np.testing.assert_allclose(
            base.deviation(at.gamma_t, preconditioning, target), measured, rtol=3e-6
        )


@pytest.mark.parametrize("name", ["levels", "histogram"])
def test_unmeasured_deviation_is_that_of_a_gaussian(name):
    """Data of N(0, m) have the posterior variance σ² m / (α² m + σ²)."""
    for gamma_t in (-13.3, 0.0, 5.0):
        a, variance = 1 / (1 + np.exp(gamma_t)), 1 / (1 + np.exp(-gamma_t))
        expected = np.sqrt(variance * 0.3 / (a * 0.3 + variance))
        unmeasured = make(name, second_moment=0.3).deviation(jnp.asarray(gamma_t), *UNUSED)
        np.testing.assert_allclose(unmeasured, expected, rtol=1e-6)


def test_measured_residual_is_the_error_of_two_levels():
    """For x_0 = ±½ the error E(x_0 − b)² is a one-dimensional integral over the noise."""
    base = BASES["levels"](levels=2)
    signs = np.where(np.random.default_rng(0).random((4000, 2, 3)) < 0.5, -0.5, 0.5)
    gammas, measured = measure_residual(
        base, jnp.asarray(signs, jnp.float32), jax.random.key(0), [-20.0, -2.0, 0.0, 2.0, 12.0]
    )
    assert gammas.dtype == measured.dtype == np.float32
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for gamma, value in zip(gammas[1:], measured[1:], strict=True):
        noise, signal = 1 / np.sqrt(1 + np.exp(-gamma)), 1 / np.sqrt(1 + np.exp(gamma))
        b = 0.5 * np.tanh(0.5 * signal * (0.5 * signal + noise * nodes) / noise**2)
        expected = np.sqrt((0.5 - b) ** 2 @ weights / weights.sum())
        np.testing.assert_allclose(np.exp(value), expected, rtol=0.03)
    # where the error is zero the floor 10⁻³ σ keeps the logarithm finite
    np.testing.assert_allclose(measured[0], np.log(1e-3) - 10, rtol=1e-4)

    for name in ("levels", "histogram"):
        fitted = make(name, residual=(gammas, measured))
        for at, log_deviation in (
            *zip(gammas, measured, strict=True),
            (1.0, (measured[2] + measured[3]) / 2),
            (50.0, measured[-1]),
        ):
            value = fitted.deviation(jnp.asarray(at, jnp.float32), *UNUSED)
            np.testing.assert_allclose(value, np.exp(log_deviation), rtol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_output_scales_of_every_base(name):
    """`none` is 1; `unit_variance` times |out| is the deviation of the error that the network corrects."""
    assert set(OUTPUT_SCALES) == {"none", "unit_variance"}
    base, at = make(name), step(-3.0)
    for row in ROWS.values():
        numbers = at.gamma_t, row(at), row.target(at)
        assert OUTPUT_SCALES["none"]()(base, *numbers) == 1
        scale = OUTPUT_SCALES["unit_variance"]()(base, *numbers)
        np.testing.assert_allclose(scale * abs(numbers[1].out), base.deviation(*numbers), rtol=1e-6)
        assert scale > 0


def test_estimates_at_both_ends_of_the_noise():
    """Without noise the estimate is the nearest level, without signal the mean of the prior."""
    x0, eps = draw(2)
    nothing = np.exp(LOG_COUNTS) @ level_values(LEVELS)
    for name, far in (("levels", np.zeros(SHAPE)), ("histogram", nothing)):
        for gamma_t, expected in ((-60.0, x0), (60.0, far)):
            xt = latent(x0, eps, gamma_t).astype(jnp.float32)
            estimates = estimate[name](xt, jnp.asarray(gamma_t))
            np.testing.assert_allclose(estimates, expected, atol=1e-6)


@pytest.mark.parametrize("range_", [20.0, 40.0, 50.0, 70.0, np.inf])
def test_rare_levels_of_a_histogram(range_):
    """Values and slopes are right in float32 for log-counts of any range and normalization."""
    levels, places = 16, 32
    counts = np.where(np.arange(levels) % 3 == 0, 0.0, -range_) * np.ones((places, 1))
    counts = (counts - np.linspace(0, 300, places)[:, None]).astype(np.float32)
    base = BASES["histogram"](levels=levels, log_counts=counts)
    xt = np.linspace(-1.2, 1.2, places).astype(np.float32)

    def total(xt, gamma_t):
        b = base.estimate(xt, gamma_t, UNUSED[0])
        return jnp.sum(b), b

    for gamma_t in (-30.0, -6.0, 0.0):
        (_, estimates), slopes = jax.value_and_grad(total, (0, 1), has_aux=True)(
            jnp.asarray(xt), jnp.asarray(gamma_t)
        )
        expected = posterior_mean(xt.astype(float), gamma_t, counts.astype(float))
        np.testing.assert_allclose(estimates, expected, atol=2e-5)
        assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_between_two_levels_with_hardly_any_noise(levels):
    """Values stay close and slopes finite at the edges of bins, where rounding may select a neighbour."""
    edges = np.linspace(-1, 1, levels + 1).astype(np.float32)
    near = [np.nextafter(edges, np.float32(side)) for side in (-9, 9)]
    base = BASES["levels"](levels=levels)
    run = jax.jit(
        jax.value_and_grad(lambda xt, g: jnp.sum(base.estimate(xt, g, UNUSED[0])), (0, 1))
    )
    xt = jnp.concatenate([edges, *near])
    for gamma_t in (-13.3, -27.0, -60.0):
        value, slopes = run(xt, jnp.asarray(gamma_t))
        assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)
        b = base.estimate(xt, jnp.asarray(gamma_t), UNUSED[0])
        assert np.all(abs(b - np.clip(xt, -1, 1)) < 1.01 / levels)


def test_a_level_that_never_occurs_has_no_mass():
    """A log-count of −∞ gives neither NaN nor mass, also in gradients."""
    counts = np.where(np.arange(LEVELS) == 2, -np.inf, LOG_COUNTS)
    base = BASES["histogram"](levels=LEVELS, log_counts=counts)
    xt = jnp.zeros(SHAPE)  # where level 2 is
    total = jax.value_and_grad(lambda xt: jnp.sum(base.estimate(xt, jnp.asarray(-3.0), UNUSED[0])))
    value, slope = total(xt)
    expected = posterior_mean(np.zeros(SHAPE), -3.0, counts)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
    assert np.isfinite(slope).all()


@jax.jit
def values_and_slopes(gamma_t, x0, eps, net):
    """Return x̂_0, errors and scales of every base, parameterization and output scale, and their gradients."""

    def run(base, row, output_scale):
        def total(gamma_t, x0, eps, net):
            at = step(gamma_t)
            preconditioning, target = row(at), row.target(at)
            xt = latent(x0, eps, gamma_t)
            scale = output_scale(base, gamma_t, preconditioning, target)
            x0_hat = base.estimate(xt, gamma_t, preconditioning) + preconditioning.out * scale * net
            error = base.error(x0, eps, xt, gamma_t, preconditioning, target)
            deviation = base.deviation(gamma_t, preconditioning, target)
            return jnp.sum(x0_hat) + jnp.sum(error) + deviation, (x0_hat, error, scale)

        both = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)
        return jax.vmap(both, in_axes=(0, None, None, None))(gamma_t, x0, eps, net)

    residual = np.float32([-20, 0, 20]), np.float32([-12, -2, -1])
    bases = {name: make(name) for name in BASES} | {"measured": make("levels", residual=residual)}
    return {
        f"{name}, {row}, {output_scale}": run(base, ROWS[row], OUTPUT_SCALES[output_scale]())
        for name, base in bases.items()
        for row, output_scale in (
            ("eps", "unit_variance"),
            ("mean", "unit_variance"),
            ("x0", "none"),
        )
    }


def test_values_and_gradients_are_finite_at_extremes():
    x0, eps = (x.astype(jnp.float32) for x in draw(3))
    results = values_and_slopes(jnp.asarray(EXTREMES), x0, eps, 0.5 * eps)
    for name, values in results.items():
        for leaf in jax.tree.leaves(values):
            assert np.isfinite(leaf).all(), name


@pytest.mark.parametrize("shape", [(), (LEVELS, 2), (2, 3, LEVELS + 1)])
def test_a_histogram_over_other_levels_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected the 5 levels as the last axis, found shape \("):
        BASES["histogram"](levels=LEVELS, log_counts=np.zeros(shape))


@pytest.mark.parametrize("name", ["levels", "histogram"])
def test_a_single_level_is_refused(name):
    kwargs = {"levels": 1} | ({"log_counts": np.zeros(1)} if name == "histogram" else {})
    with pytest.raises(ValueError, match="levels: expected a whole number of at least 2, found 1"):
        BASES[name](**kwargs)
