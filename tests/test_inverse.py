"""Conditional samples against exact posteriors, and mistakes in the condition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_moments, jit

import vdm_jax as vdm
from vdm_jax.samplers import SAMPLERS, inpainting, reconstruction_guidance

SCHEDULE = vdm.schedules.linear(gamma_min=-10.0, gamma_max=8.0)
CORRELATED = np.asarray([[1.0, 0.8], [0.8, 1.0]])
KNOWN, MASK = np.float32([1.5, 0.0]), np.asarray([True, False])
ANCESTRAL = SAMPLERS["ancestral"]()


def denoiser(covariance):
    """Return E[x_0 | x_t] of Gaussian data."""

    def denoise(xt, gamma_t):
        signal, noise = vdm.diffusion.alpha(gamma_t), vdm.diffusion.sigma(gamma_t) ** 2
        total = signal**2 * covariance + noise * jnp.eye(len(covariance))
        return signal * covariance @ jnp.linalg.solve(total, xt)

    return denoise


def draw(sampler, covariance, steps=100, count=20_000):
    one = partial(
        vdm.generate,
        denoiser(jnp.asarray(covariance, jnp.float32)),
        shape=(len(covariance),),
        schedule=SCHEDULE,
        parameterization="x0",
        sampler=sampler,
        steps=steps,
    )
    return np.asarray(jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize("name", ["sde_dpm_solver_pp", "dpm_solver_pp"])
def test_guidance_has_the_exact_posterior_of_independent_data(name):
    """For x_0 ~ N(0, s) and y = a·x_0 + n with |a| = 1."""
    variance, noise, y, row = 0.5, 0.1, 1.2, np.float32([0.6, -0.8])
    sampler = reconstruction_guidance(
        SAMPLERS[name](),
        lambda x0: jnp.dot(row, x0)[None],
        np.float32([y]),
        noise_variance=noise,
        data_variance=variance,
    )
    x = draw(sampler, variance * np.eye(2))
    gain = variance * row / (variance + noise)
    assert_moments(x, gain * y, variance * (np.eye(2) - np.outer(gain, row)), slack=0.01)


def test_conditional_samples_of_correlated_data():
    """The exact posterior of the second element has mean 1.2 and deviation 0.6."""
    guided = reconstruction_guidance(ANCESTRAL, lambda x0: x0[:1], KNOWN[:1])
    found = {}
    for name, sampler in (
        ("inpainting", inpainting(ANCESTRAL, KNOWN, MASK)),
        ("guided", guided),
    ):
        x = draw(sampler, CORRELATED)
        np.testing.assert_allclose(x[:, 0], 1.5, atol=0.06)
        found[name] = x[:, 1].mean(), x[:, 1].std()
    # both are biased toward the marginal law, of mean 0 and deviation 1
    assert 0.5 < found["inpainting"][0] < found["guided"][0] < 1.2
    assert 0.55 < found["guided"][1] < found["inpainting"][1] < 1


def test_an_unknown_element_is_sampled_as_without_a_condition():
    nothing = inpainting(ANCESTRAL, KNOWN, np.zeros(2, bool))
    plain = draw(ANCESTRAL, CORRELATED, steps=4, count=3)
    np.testing.assert_array_equal(draw(nothing, CORRELATED, steps=4, count=3), plain)


def test_a_model_samples_with_a_condition():
    """In a batch, whose examples have a key each, and with a variance that is fitted later."""
    statistics = vdm.Statistics((2,), None, 1.0)
    network = {"name": "mlp", "width": 4, "depth": 1}
    model = vdm.models.vdm(statistics, network=network, likelihood="gaussian", base="gaussian")
    params = model.init(jax.random.key(0))

    def first(x0):
        return x0[:1]

    for sampler in (
        inpainting(ANCESTRAL, KNOWN, MASK),
        reconstruction_guidance(SAMPLERS["heun"](), first, KNOWN[:1]),
    ):
        x = model.sample(params, jax.random.key(1), 3, sampler=sampler, steps=50)
        alone = model.sample(params, jax.random.key(1), 1, sampler=sampler, steps=50, first=2)
        np.testing.assert_allclose(x[2:], alone, rtol=1e-4)
        np.testing.assert_allclose(x[:, 0], KNOWN[0], atol=0.05)
    fitted = SAMPLERS["ancestral"](variance="fitted")
    for sampler in (
        inpainting(fitted, KNOWN, MASK),
        reconstruction_guidance(fitted, first, KNOWN[:1]),
    ):
        assert sampler.fitted is not None
        x = model.sample(params, jax.random.key(1), 2, sampler=sampler, steps=4, fitted=jnp.ones(4))
        assert np.isfinite(x).all()


MISTAKES = {
    "mask of another shape": (
        lambda: inpainting(ANCESTRAL, KNOWN, np.ones(3, bool)),
        r"mask: expected shape \(2,\), found \(3,\)",
    ),
    "mask of numbers": (
        lambda: inpainting(ANCESTRAL, KNOWN, np.ones(2)),
        "mask: expected booleans, found float",
    ),
    "known levels": (lambda: inpainting(ANCESTRAL, np.ones(2, int), MASK), "known: expected "),
    "known of another shape": (
        lambda: draw(inpainting(ANCESTRAL, np.ones(3), np.ones(3, bool)), CORRELATED, 1, 1),
        r"known: expected shape \(2,\), found \(3,\)",
    ),
    "observed of another shape": (
        lambda: draw(
            reconstruction_guidance(ANCESTRAL, lambda x0: x0, np.ones(1)), CORRELATED, 1, 1
        ),
        r"observed: expected shape \(2,\), found \(1,\)",
    ),
    "noise_variance": (
        lambda: reconstruction_guidance(ANCESTRAL, abs, np.ones(1), noise_variance=-1.0),
        "noise_variance: expected a finite number of at least 0, found -1.0",
    ),
    "data_variance": (
        lambda: reconstruction_guidance(ANCESTRAL, abs, np.ones(1), data_variance=0),
        "data_variance: expected a finite number above 0, found 0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
