"""Published recipes: the losses of flow matching and EDM, and the numbers of the shipped configs."""

import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from vdm_jax.bases import BASES
from vdm_jax.config import resolve
from vdm_jax.diffusion import Interval, marginal
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, to_x0
from vdm_jax.samplers import GRIDS
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build
from vdm_jax.weightings import WEIGHTINGS, training_weight

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
RNG = np.random.default_rng(0)
X0, EPS, OUTPUT = RNG.uniform(-1, 1, 6), RNG.standard_normal(6), RNG.standard_normal(6)


def loss_of(weighting, x0_hat, gamma, slope, row, loss_space):
    """Return the loss at a noise level whose γ'(t) is `slope`, for a prediction of x_0."""
    level = Interval(gamma, gamma, jnp.zeros(()))
    weight, scale = training_weight(level, slope, row, loss_space, weighting)
    return float(weight * np.sum(np.square(scale * (X0 - np.asarray(x0_hat)))))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("weighting", ["simple", "logit_normal"])
def test_the_loss_of_flow_matching(weighting, t):
    """‖(ε − x_0) − F‖² at the time τ of the path z = (1 − τ) x_0 + τ ε, with the density of τ."""
    with jax.enable_x64(True):
        schedule, row = SCHEDULES["rectified"](), PARAMETERIZATIONS["flow"]()
        gamma, slope = schedule.gamma_and_dgamma(None, t)
        first, last = (1 / (1 + math.exp(-end / 2)) for end in (-13.3, 5.0))
        tau = first + (last - first) * t
        q = marginal(jnp.asarray(X0), gamma)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * EPS
        level = Interval(gamma, gamma, jnp.zeros(()))
        skip = float(row(level).skip)  # 1/(α + σ)
        np.testing.assert_allclose(skip * xt, (1 - tau) * X0 + tau * EPS, rtol=1e-10)
        x0_hat = to_x0(jnp.asarray(OUTPUT), xt, row(level))
        found = loss_of(WEIGHTINGS[weighting](), x0_hat, gamma, slope, row, row)
    textbook = np.sum((EPS - X0 - OUTPUT) ** 2)
    if weighting == "logit_normal":  # t is uniform: the density of τ times dτ/dt
        density = norm.pdf(math.log(tau / (1 - tau))) / (tau * (1 - tau))
        textbook *= density * (last - first)
    np.testing.assert_allclose(found, textbook, rtol=1e-8)


@pytest.mark.parametrize("gamma", [-12.0, -2.4, 0.0, 8.0])
def test_the_loss_of_edm(gamma):
    """λ(η) ‖D − x_0‖² with D = c_skip y + c_out F and lognormal η = σ/α (Karras et al. 2022, table 1)."""
    sigma_data, mean, deviation = 0.5, -1.2, 1.2
    with jax.enable_x64(True):
        gamma = jnp.asarray(gamma)
        q = marginal(jnp.asarray(X0), gamma)
        signal = float(q.mean[0] / X0[0])
        xt = q.mean + jnp.exp(0.5 * q.log_var) * EPS
        row, base = PARAMETERIZATIONS["x0"](), BASES["gaussian"](second_moment=sigma_data**2)
        level = Interval(gamma, gamma, jnp.zeros(()))
        preconditioning, target = row(level), row.target(level)
        scale = OUTPUT_SCALES["unit_variance"]()(base, gamma, preconditioning, target)
        x0_hat = base.estimate(xt, gamma, preconditioning) + preconditioning.out * scale * OUTPUT
        slope = jnp.asarray(7.0)
        weighting = WEIGHTINGS["edm"](sigma_data=sigma_data)
        found = loss_of(weighting, x0_hat, gamma, slope, row, row)
        eta, y = math.exp(0.5 * float(gamma)), np.asarray(xt) / signal
    total = eta**2 + sigma_data**2
    denoised = sigma_data**2 / total * y + eta * sigma_data / math.sqrt(total) * OUTPUT
    np.testing.assert_allclose(x0_hat, denoised, rtol=1e-10)
    textbook = total / (eta * sigma_data) ** 2 * np.sum((denoised - X0) ** 2)
    # t is uniform: the density of log η = γ/2 times its derivative
    density = norm.pdf(math.log(eta), mean, deviation) * 0.5 * 7.0
    np.testing.assert_allclose(found, density * textbook, rtol=1e-8)


def test_the_error_of_the_gaussian_base_is_that_of_gaussian_data():
    """Its root mean square is the deviation (34), and the error needs no cancelling difference."""
    base, row = BASES["gaussian"](second_moment=0.3), PARAMETERIZATIONS["eps"]()
    x0, eps = (jnp.asarray(RNG.standard_normal(200_000) * s) for s in (math.sqrt(0.3), 1.0))
    for gamma in (-9.0, 0.0, 7.0):
        gamma = jnp.asarray(gamma)
        level = Interval(gamma, gamma, jnp.zeros(()))
        preconditioning, target = row(level), row.target(level)
        q = marginal(x0, gamma)
        xt = q.mean + jnp.exp(0.5 * q.log_var) * eps
        error = base.error(x0, eps, xt, gamma, preconditioning, target)
        difference = x0 - base.estimate(xt, gamma, preconditioning)
        np.testing.assert_allclose(error, difference, atol=2e-6)
        found = np.sqrt(np.mean(np.square(error)))
        np.testing.assert_allclose(found, base.deviation(gamma, preconditioning, target), rtol=0.01)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("edm", {"sigma_data": 0.0}, "sigma_data: expected a number above 0, found 0.0"),
        ("edm", {"deviation": -1.0}, "deviation: expected a number above 0, found -1.0"),
        ("logit_normal", {"mean": math.nan}, "mean: expected a finite number, found nan"),
    ],
)
def test_mistakes_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        WEIGHTINGS[name](**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gammas": [1.0, 1.0]}, "gammas: expected rising numbers, found 1.0 after 1.0"),
        ({"gammas": [1.0]}, "gammas: expected a vector of at least 2"),
        ({"gammas": [0.0, 90.0]}, "expected ends in"),
    ],
)
def test_mistakes_of_knots_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULES["piecewise_linear"](**arguments)


def test_linear_betas_are_those_of_ddpm():
    signal = np.cumprod(1 - (1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999))
    found = SCHEDULES["linear_betas"]().gamma(None, jnp.arange(1000) / 999)
    np.testing.assert_allclose(found, np.log(1 / signal - 1), atol=1e-4)
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 2, found 1"):
        SCHEDULES["linear_betas"](steps=1)


def recipe(name):
    return resolve(runpy.run_path(str(RECIPES / f"{name}.py"))["get_config"]())


def ends_of(settings):
    schedule = build(SCHEDULES, settings.model["schedule"])
    params = schedule.init(jax.random.key(0))
    return schedule, params, [float(schedule.gamma(params, t)) for t in (0.0, 1.0)]


def test_the_grid_of_edm_is_that_of_the_paper():
    settings = recipe("edm")
    schedule, params, _ = ends_of(settings)
    steps = settings.sample["steps"]
    path = build(GRIDS, settings.sample["grid"]).path(schedule, params, steps)
    sigmas = np.exp(0.5 * np.asarray(path.gamma(None, jnp.arange(steps, -1, -1) / steps)))
    i, rho = np.arange(18), 7
    printed = (80 ** (1 / rho) + i / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(sigmas, printed, rtol=2e-3)


def test_the_cosine_schedule_of_iddpm_has_the_ends_of_the_paper():
    def signal(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    bars = signal(np.asarray([1, 999])) / signal(0)
    settings = recipe("iddpm")
    np.testing.assert_allclose(ends_of(settings)[2], np.log(1 / bars - 1), atol=0.05)
    assert settings.model["timesteps"] == 998


def test_the_chain_of_ddpm_has_a_thousand_latents():
    settings = recipe("ddpm")
    assert settings.model["timesteps"] == settings.model["schedule"]["steps"] - 1 == 999
    np.testing.assert_allclose(ends_of(settings)[2], [-9.21, 10.118], atol=1e-3)
