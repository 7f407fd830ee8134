"""The consistency forms of the bound, and the shape of the output that every form expects."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_elbo import FIRST, LAST, MILD, keys

from vdm_jax.elbo import FORMS, consistency_printed, negative_elbo
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import linear

ALL_FORMS = FORMS | {"consistency_printed": consistency_printed}


def all_forms(**settings):
    """Return (law, x0, keys) -> `negative_elbo` in every form; the forms share keys and hence draws."""
    row = PARAMETERIZATIONS["v"]()

    @jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def estimate(law, x, key):
        denoise = law.network(row, oracles.interval_of_step(None))
        common = {"parameterization": row} | settings
        return {
            form: negative_elbo(denoise, x, key, form=f, **common) for form, f in ALL_FORMS.items()
        }

    return estimate


@pytest.mark.parametrize("timesteps", [1, 5])
def test_consistency_forms_agree_except_the_printed_form(timesteps):
    shape, n = (2,), 40_000
    best, wrong = oracles.gaussian(shape), oracles.gaussian(shape, shift=0.4, scale=3.0)
    x0 = best.sample(3, 1)
    gammas = np.linspace(-2.0, 2.0, timesteps + 1)
    estimate = all_forms(schedule=linear(gamma_min=-2.0, gamma_max=2.0), timesteps=timesteps)
    same = jnp.broadcast_to(jnp.asarray(x0, jnp.float32), (n, *shape))
    for law in (best, wrong):
        exact = sum(oracles.ends(gammas[0], gammas[-1], x0)) + oracles.matching(law, gammas, x0)
        for form, parts in estimate(law, same, keys(n)).items():
            difference = np.asarray(parts.total, np.float64) - exact
            error = oracles.standard_error(difference)
            excess = oracles.printed_excess(law, gammas) if form == "consistency_printed" else 0
            assert abs(np.mean(difference) - excess) < 4 * error, form
            if excess:
                assert np.mean(difference) > 10 * error


def test_a_hundred_thousand_steps_are_finite_and_unbiased():
    law, n = oracles.gaussian(()), 20_000
    x0 = law.sample(0, n)
    elbos = all_forms(schedule=MILD, timesteps=100_000)(law, jnp.asarray(x0, jnp.float32), keys(n))
    assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(elbos))
    difference = elbos["denoising"].matching - oracles.matching_continuous(law, FIRST, LAST, x0)
    error = oracles.standard_error(difference)
    assert error < 0.02 * np.mean(elbos["denoising"].matching)
    assert abs(np.mean(difference)) < 4 * error  # the chain is within 10⁻⁴ of its limit
    # in one random term of a fine chain each log-ratio is of order one and each KL of order 1/T, eq. (18)
    spread = {form: np.std(parts.matching) for form, parts in elbos.items()}
    assert spread["consistency_log_ratio"] > 100 * spread["consistency_bridge"]
    assert spread["consistency_bridge"] > 100 * spread["denoising"]


# --- outputs of another shape ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("form", ALL_FORMS.values(), ids=ALL_FORMS)
def test_an_output_of_another_shape_than_the_data_is_refused(form, shape):
    def bound(x):
        return negative_elbo(
            lambda xt, gamma_t: jnp.zeros(shape),
            x,
            jax.random.key(0),
            schedule=MILD,
            timesteps=4,
            form=form,
        )

    for function, x in ((bound, jnp.ones((3,))), (jax.vmap(bound), jnp.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"output: expected shape \(3,\), found") as caught:
            function(x)
        assert str(caught.value).endswith(str(shape))


@pytest.mark.parametrize("form", ALL_FORMS.values(), ids=ALL_FORMS)
def test_an_output_of_another_shape_at_the_last_step_is_refused(form):
    calls = []

    def denoise(xt, gamma_t):
        calls.append(gamma_t)
        return xt if len(calls) == 1 else xt[:1]

    with pytest.raises(ValueError, match=r"output: expected shape \(3,\), found \(1,\)"):
        negative_elbo(
            denoise,
            jnp.ones((3,), jnp.uint8),
            jax.random.key(0),
            schedule=MILD,
            likelihood={"name": "discretized_gaussian", "levels": 4},
            timesteps=4,
            form=form,
        )
    assert len(calls) == 2
