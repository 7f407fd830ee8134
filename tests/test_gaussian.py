"""Diagonal Gaussians against SciPy, quadrature and rational arithmetic, eq. (4)."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.gaussian import Gaussian, cross_entropy, expm1_minus, kl, standard_normal

SHAPES = [(), (3,), (2, 3)]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()

densities = jax.jit(lambda q, x: q.log_prob(x))
divergences = jax.jit(lambda q, p: (kl(q, p), cross_entropy(q, p), cross_entropy(q, q)))


def draw(seed, shape, scalar_variance):
    """Return a Gaussian whose log-variances are one number or one per element."""
    rng = np.random.default_rng(seed)
    log_var = rng.uniform(-4, 4, () if scalar_variance else shape)
    return Gaussian(jnp.asarray(rng.normal(size=shape)), jnp.asarray(log_var))


@given(shape=shapes, seed=seeds, scalar=st.booleans())
def test_log_prob_matches_scipy(shape, seed, scalar):
    with jax.enable_x64(True):
        q = draw(seed, shape, scalar)
        x = np.random.default_rng(seed + 1).normal(size=shape)
        expected = scipy.stats.norm.logpdf(x, q.mean, np.exp(0.5 * np.asarray(q.log_var))).sum()
        np.testing.assert_allclose(densities(q, jnp.asarray(x)), expected, rtol=1e-12)


@given(shape=shapes, seed=seeds, scalar=st.booleans())
def test_kl_and_cross_entropy_are_integrals(shape, seed, scalar):
    """Gauss-Hermite quadrature is exact for the quadratic log p; KL is cross-entropy minus entropy."""
    with jax.enable_x64(True):
        q, p = draw(seed, shape, scalar), draw(seed + 1, shape, not scalar)
        divergence, cross, entropy = divergences(q, p)
        mean, deviation = np.asarray(q.mean), np.exp(0.5 * np.asarray(q.log_var))
        points = mean[..., None] + np.broadcast_to(deviation, shape)[..., None] * NODES
        scale = np.broadcast_to(np.exp(0.5 * np.asarray(p.log_var)), shape)[..., None]
        log_p = scipy.stats.norm.logpdf(points, np.asarray(p.mean)[..., None], scale)
        np.testing.assert_allclose(cross, -(log_p @ NODE_WEIGHTS).sum(), rtol=1e-11)
        np.testing.assert_allclose(divergence, cross - entropy, rtol=1e-9, atol=1e-11)
        assert divergence >= 0


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_of_equals_is_zero(shape):
    q = Gaussian(jnp.full(shape, 0.3), jnp.asarray(-5.0))
    assert kl(q, q) == 0
    normal = standard_normal(shape)
    assert normal.mean.shape == shape and kl(normal, normal) == 0
    expected = scipy.stats.norm.logpdf(np.full(shape, 0.3)).sum()
    np.testing.assert_allclose(normal.log_prob(jnp.full(shape, 0.3)), expected, rtol=1e-6)


@pytest.mark.parametrize("gap", [2.0**-k for k in range(1, 24, 3)])
def test_kl_keeps_relative_accuracy_as_two_gaussians_meet(gap):
    """The accuracy holds in float32 down to a KL of 1e-15, where the plain e^ρ − 1 − ρ has no digit left."""
    q, p = (Gaussian(jnp.ones((3,)), jnp.asarray(log_var)) for log_var in (gap, 0.0))
    expected = 3 * 0.5 * float(taylor(gap))
    np.testing.assert_allclose(kl(q, p), expected, rtol=1e-6)


def taylor(x: float) -> Fraction:
    """Return e^x − 1 − x in rational arithmetic."""
    term, total = Fraction(x), Fraction(0)
    for n in range(2, 60):
        term *= Fraction(x) / n
        total += term
    return total


@pytest.mark.parametrize(("x64", "rtol"), [(False, 5e-7), (True, 1e-14)])
def test_expm1_minus_is_exact_everywhere(x64, rtol):
    with jax.enable_x64(x64):
        sizes = np.concatenate([2.0 ** -np.arange(0, 27), [0.49, 0.499999, 0.500001, 0.51, 3.0]])
        x = np.concatenate([sizes, -sizes]).astype(np.float64 if x64 else np.float32)
        expected = np.array([float(taylor(float(value))) for value in x])
        np.testing.assert_allclose(expm1_minus(jnp.asarray(x)), expected, rtol=rtol)
        assert expm1_minus(jnp.zeros(())) == 0


def test_expm1_minus_is_differentiable_everywhere():
    """The derivative is expm1, on both sides of the switch and where one side overflows."""
    x = jnp.asarray([-200.0, -60.0, -0.6, -0.5, -0.4, -1e-4, 0.0, 1e-4, 0.4, 0.5, 0.6, 60.0])
    slopes = jax.vmap(jax.grad(expm1_minus))(x)
    np.testing.assert_allclose(slopes, np.expm1(np.asarray(x, np.float64)), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_moves_with_mean_and_log_variance(shape):
    """Samples are reparameterized: ∂x/∂mean = 1 and ∂x/∂log v = ½ (x − mean)."""
    key, mean, log_var = jax.random.key(1), jnp.full(shape, 0.5), jnp.full(shape, -1.0)

    def total(mean, log_var):
        return jnp.sum(Gaussian(mean, log_var).sample(key))

    x = Gaussian(mean, log_var).sample(key)
    by_mean, by_log_var = jax.grad(total, (0, 1))(mean, log_var)
    assert x.shape == shape and jnp.all(x != mean)
    np.testing.assert_array_equal(by_mean, 1)
    np.testing.assert_allclose(by_log_var, 0.5 * (x - mean), rtol=1e-5)


def test_samples_have_the_moments_and_follow_the_key():
    q = Gaussian(jnp.full((50_000,), 2.0), jnp.asarray(-2.0))
    x = np.asarray(q.sample(jax.random.key(0)), np.float64)
    error = np.exp(-1.0) / np.sqrt(x.size)
    assert abs(x.mean() - 2.0) < 4 * error
    assert abs(x.var() / np.exp(-2.0) - 1) < 4 * np.sqrt(2 / x.size)
    np.testing.assert_array_equal(x, q.sample(jax.random.key(0)))
    assert not np.array_equal(x, q.sample(jax.random.key(1)))


def test_values_and_gradients_are_finite_at_extreme_variances():
    log_vars = jnp.asarray([-60.0, -20.0, -13.3, 0.0, 5.0, 20.0])

    def total(log_q, log_p, noise):
        q = Gaussian(jnp.exp(0.5 * log_p) * noise, log_q)
        p = Gaussian(jnp.zeros_like(noise), log_p)
        return kl(q, p) + cross_entropy(q, p) + p.log_prob(q.mean)

    def over_all(f):
        rows = jax.vmap(f, (0, None, None))
        table = jax.jit(jax.vmap(rows, (None, 0, None)))
        return table(log_vars, log_vars, jnp.asarray([0.5, -1.0]))

    for leaf in jax.tree.leaves(over_all(jax.value_and_grad(total, (0, 1, 2)))):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: kl(q, standard_normal((1,))), r"mean of p: expected shape \(3,\), found \(1,\)"),
        (lambda q: cross_entropy(q, standard_normal((2, 3))), r"shape \(3,\), found \(2, 3\)"),
        (lambda q: q.log_prob(jnp.zeros((3, 1))), r"x: expected shape \(3,\), found \(3, 1\)"),
        (
            lambda q: kl(q._replace(log_var=jnp.zeros((1,))), q),
            r"log_var of a Gaussian: expected shape \(3,\), found \(1,\)",
        ),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, message):
    """The message names the shapes of one example, also in traced and mapped calls."""
    single = standard_normal((3,))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), single)
    for function, q in ((call, single), (jax.jit(jax.vmap(call)), many)):
        with pytest.raises(ValueError, match=message):
            function(q)
