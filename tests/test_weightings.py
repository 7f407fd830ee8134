"""Weightings against the formulas of their papers, written in SNR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from vdm_jax.diffusion import Interval
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.weightings import WEIGHTINGS, as_weighting, stacked_weightings

EXTREMES = [-60.0, -20.0, -5.0, 0.0, 5.0, 13.3, 20.0, 60.0]
LOG_SNR = np.linspace(-12, 14, 40)
SNR = np.exp(LOG_SNR)
PAPERS = [  # name, arguments, formula in SNR; `sigmoid` and densities in units of the weight of the bound
    ("simple", {}, np.ones_like(SNR)),
    ("min_snr", {}, np.minimum(SNR, 5)),
    ("min_snr", {"limit": 1.5}, np.minimum(SNR, 1.5)),
    ("sigmoid", {}, np.exp(2) / (np.exp(2) + SNR)),
    ("sigmoid", {"bias": -1.0}, np.exp(-1) / (np.exp(-1) + SNR)),
    ("p2", {}, 1 / (1 + SNR)),
    ("p2", {"k": 0.3, "power": 0.5}, 1 / (0.3 + SNR) ** 0.5),
    ("p2", {"power": 0.0}, np.ones_like(SNR)),
    ("edm", {}, norm.pdf(-LOG_SNR / 2, -1.2, 1.2) * (1 + 4 / SNR)),
    ("logit_normal", {"mean": 0.5}, norm.pdf(-LOG_SNR / 2, 0.5) * (1 + SNR**-0.5) ** 2),
]


def test_every_weighting_is_tested():
    assert {name for name, _, _ in PAPERS} | {"elbo"} == set(WEIGHTINGS)


@pytest.mark.parametrize(("name", "kwargs", "expected"), PAPERS)
def test_values_are_those_of_the_papers(name, kwargs, expected):
    weigh, exact = WEIGHTINGS[name](**kwargs), 7.0
    if name in ("sigmoid", "edm", "logit_normal"):
        expected = exact * expected
    with jax.enable_x64(True):
        values = [weigh(jnp.asarray(x), jnp.asarray(exact)) for x in LOG_SNR]
        np.testing.assert_allclose(values, expected, rtol=1e-12)
    values = [weigh(jnp.float32(x), jnp.float32(exact)) for x in LOG_SNR]
    np.testing.assert_allclose(values, expected, rtol=5e-6)


def test_elbo_is_the_exact_weight():
    weigh = WEIGHTINGS["elbo"]()
    for exact in (0.0, 1e-20, 3.5, 1e30):
        assert weigh(jnp.zeros(()), jnp.asarray(exact)) == np.float32(exact)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_values_and_gradients_are_finite_at_extremes(name):
    """Weights stay positive: a weight that underflows would switch the noise level off."""
    run = jax.vmap(jax.value_and_grad(WEIGHTINGS[name](), (0, 1)), (0, None))
    value, slopes = run(jnp.asarray(EXTREMES), jnp.asarray(2.0))
    assert np.isfinite(value).all() and np.all(value > 0)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize(("name", "kwargs"), [("min_snr", {"limit": 0.0}), ("p2", {"k": -1.0})])
def test_arguments_without_a_weight_are_refused(name, kwargs):
    ((argument, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{argument}: expected a number above 0, found {value}"):
        WEIGHTINGS[name](**kwargs)


@pytest.mark.usefixtures("as_users")
def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"weighting: expected .*found "):
        as_weighting(np.float64(1.0))


def test_stacked_weightings_select_by_index():
    rows = [build() for build in WEIGHTINGS.values()]
    error_space, step = PARAMETERIZATIONS["v"](), Interval(*jnp.asarray([-2.0, -1.0, 1.0]))

    @jax.vmap
    def values_of(index):
        row = stacked_weightings(rows, index)
        return row(jnp.asarray(1.0), jnp.asarray(2.0)), row.error_space(error_space)(step).out

    expected = [
        (row(jnp.asarray(1.0), jnp.asarray(2.0)), row.error_space(error_space)(step).out)
        for row in rows
    ]
    np.testing.assert_allclose(np.transpose(values_of(jnp.arange(len(rows)))), expected, rtol=1e-6)
