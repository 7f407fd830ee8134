"""Schedules with flat stretches, such as clamped schedules, where a draw adds nothing to the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit
from thinned import weekly_except

from vdm_jax.bases import BASES
from vdm_jax.diffusion import Interval, bridge, posterior, transition
from vdm_jax.effective_weights import effective_weights
from vdm_jax.elbo import FORMS, negative_elbo
from vdm_jax.gaussian import kl
from vdm_jax.models import Statistics, mhvae, vdm
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.samplers import SAMPLERS, generate
from vdm_jax.schedules import Schedule
from vdm_jax.weightings import WEIGHTINGS, stacked_weightings

FIRST, LAST = -10.0, 5.0
SHAPE, LEVELS = (2,), 8
NETWORK = {"name": "mlp", "width": 4, "depth": 1}
X = np.random.default_rng(0).integers(0, LEVELS, (24, *SHAPE)).astype(np.uint8)
# multiples of the weight of the bound, which is 0 in a flat stretch
BOUNDS = {"elbo", "sigmoid", "edm", "logit_normal"}


def line(*, low=-np.inf, high=np.inf, slope=30.0):
    """Return the schedule γ = −slope·⅔ + slope·t, clamped to [low, high]."""

    def gamma(params, t):
        del params
        return jnp.clip(slope * (jnp.asarray(t, float) - 2 / 3), low, high)

    return Schedule(lambda key: {}, gamma, lambda params, s, t: gamma(params, t) - gamma(params, s))


def rows_of(timesteps):
    return [row for row in (f() for f in PARAMETERIZATIONS.values()) if timesteps or row.continuous]


def all_finite(tree):
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@pytest.mark.parametrize("timesteps", weekly_except([100], [None, 100]))
@pytest.mark.parametrize(
    "ends",
    [(FIRST, LAST, 30.0), pytest.param((-40.0, 60.0, 300.0), marks=pytest.mark.weekly)],
    ids=str,
)
@pytest.mark.slow
def test_every_row_space_and_weighting_is_finite(timesteps, ends):
    """Loss, gradient, metrics, draws and effective weights are finite."""
    low, high, slope = ends
    schedule, rows = line(low=low, high=high, slope=slope), rows_of(timesteps)
    weightings = [build() for build in WEIGHTINGS.values()]

    @jit
    @jax.vmap
    def finite(i, j, k):
        row, loss_space, weighting = (
            stacked(rows, i),
            stacked(rows, j),
            stacked_weightings(weightings, k),
        )
        loss = {"parameterization": row, "loss_space": loss_space, "weighting": weighting}
        loss |= {"schedule": schedule, "timesteps": timesteps}
        model = vdm(Statistics(SHAPE, LEVELS), network=NETWORK, time_sampler="learned", **loss)
        params = jax.tree.map(lambda leaf: leaf + 0.05, model.init(jax.random.key(0)))
        loss_and_gradient = jax.value_and_grad(model.loss, has_aux=True)(
            params, jax.random.key(1), X
        )
        draw = model.per_noise_level.draw(params, jax.random.key(1), X)
        times = jnp.linspace(0, 1, 33) if timesteps is None else jnp.arange(timesteps)
        weights = effective_weights(**loss, times=times)
        return jnp.stack([all_finite(part) for part in (*loss_and_gradient, draw, weights)])

    shape = len(rows), len(rows), len(weightings)
    every = finite(*(jnp.asarray(i.ravel()) for i in np.indices(shape)))
    assert np.all(every), np.argwhere(~np.asarray(every).reshape(*shape, -1))


@pytest.mark.parametrize("timesteps", weekly_except([100], [None, 100]))
@pytest.mark.slow
def test_draws_outside_flat_stretches_are_unchanged(timesteps):
    """Between the clamps the bound equals that of the whole line; uniform times also fall on flat parts."""
    rows = rows_of(timesteps)

    def draws(schedule):
        @jit
        @jax.vmap
        def draws_of(i):
            common = {"parameterization": stacked(rows, i), "schedule": schedule}
            models = {
                name: vdm(
                    Statistics(SHAPE, LEVELS),
                    network=NETWORK,
                    weighting=name,
                    timesteps=timesteps,
                    **common,
                )
                for name in WEIGHTINGS
            }
            params = models["elbo"].init(jax.random.key(0))
            return {
                name: model.per_noise_level.draw(params, jax.random.key(1), X, dropout=False)
                for name, model in models.items()
            }

        return draws_of(jnp.arange(len(rows)))

    clamped, free = draws(line(low=FIRST, high=LAST)), draws(line())
    for name, draw in clamped.items():
        gamma = np.asarray(free[name].interval.gamma_t)
        inside = (gamma - np.asarray(free[name].interval.delta) > FIRST) & (gamma < LAST)
        assert 0.3 < inside.mean() < 0.7
        for part in ("loss", "bound"):
            ours = np.asarray(getattr(draw, part).matching)
            line_s = np.asarray(getattr(free[name], part).matching)
            np.testing.assert_allclose(ours[inside], line_s[inside], rtol=1e-3, atol=1e-6)
            flat = gamma - np.asarray(free[name].interval.delta) >= LAST
            flat |= gamma <= FIRST
            if part == "bound" or name in BOUNDS:
                assert np.all(ours[flat] == 0)
            else:
                assert np.any(ours[flat] > 0)


@pytest.mark.parametrize("timesteps", [None, 100])
def test_effective_weights_in_flat_stretches(timesteps):
    times = jnp.linspace(0, 1, 21) if timesteps is None else None
    at = {"schedule": line(low=FIRST, high=LAST), "timesteps": timesteps, "times": times}
    bound, sigmoid = (effective_weights("v", name, **at) for name in ("elbo", "sigmoid"))
    delta = 0.3 if timesteps else 0.0
    np.testing.assert_allclose(bound.relative, 1, rtol=1e-5)
    assert np.all((bound.eps > 0.4999) & (bound.eps < 0.5001 * np.exp(delta)))
    theirs = 1 / (1 + np.exp(np.asarray(sigmoid.log_snr) - 2))
    np.testing.assert_allclose(sigmoid.relative, theirs, rtol=1e-5)
    flat = np.asarray(bound.log_snr)[:1] == np.asarray(bound.log_snr)
    assert flat.sum() > 3 and np.all(np.asarray(bound.per_time)[flat][:-1] == 0)
    plain = effective_weights("v", "simple", **at)
    np.testing.assert_allclose(plain.per_time, 1)
    assert np.all(np.asarray(plain.eps)[flat][:-1] == 0)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_are_those_of_the_chain_without_the_flat_steps(name, sampler):
    """A flat step returns x_t, so that under DDIM the chain without flat steps remains."""
    full = 30  # of the steps of size 1 from −20 to 10 those between −10 and 5 are left

    def denoise(xt, gamma_t):
        return jnp.tanh(xt) * jnp.exp(-0.01 * gamma_t)

    options = {"parameterization": name, "sampler": sampler}
    samples = jit(
        lambda: generate(
            denoise,
            jax.random.key(0),
            (3,),
            schedule=line(low=FIRST, high=LAST),
            steps=full,
            **options,
        )
    )()
    assert np.isfinite(samples).all()
    if sampler == "ddim":
        short = Schedule(
            lambda key: {},
            lambda params, t: FIRST + 15 * jnp.asarray(t, float),
            lambda params, s, t: 15 * (jnp.asarray(t, float) - jnp.asarray(s, float)),
        )
        expected = jit(
            lambda: generate(denoise, jax.random.key(0), (3,), schedule=short, steps=15, **options)
        )()
        np.testing.assert_allclose(samples, expected, rtol=1e-3, atol=1e-4)


def test_laws_of_a_flat_step():
    at = Interval(*jnp.asarray([-1.0, -1.0, 0.0]))
    x, x0 = jnp.asarray([0.4, -0.7]), jnp.asarray([0.1, 0.2])
    for law in (transition(x, at), posterior(x, x0, at), bridge(x, x, at, at)):
        np.testing.assert_allclose(law.mean, x, rtol=1e-6)
        np.testing.assert_array_equal(law.sample(jax.random.key(0)), law.mean)
    assert kl(posterior(x, x0, at), posterior(x, -x0, at)) == 0


@pytest.mark.parametrize("form", FORMS)
def test_pure_bounds_are_finite(form):
    @jit
    @jax.vmap
    def bound(key):
        return negative_elbo(
            lambda xt, gamma_t: 0.1 * xt, X[0], key, schedule=line(low=FIRST, high=LAST), form=form,
            likelihood={"name": "softmax", "levels": LEVELS}, timesteps=60,
        ).total  # fmt: skip

    assert np.isfinite(bound(jax.random.split(jax.random.key(0), 60))).all()


@pytest.mark.slow
def test_the_hierarchy_over_the_chain_is_finite():
    chain = {
        "name": "diffusion",
        "timesteps": 5,
        "network": NETWORK,
        "schedule": line(low=-1.0, high=LAST),
    }
    model = mhvae(Statistics(SHAPE, LEVELS), chain=chain, likelihood="softmax")
    params = model.init(jax.random.key(0))
    (loss, metrics), slopes = jit(jax.value_and_grad(model.loss, has_aux=True))(
        params, jax.random.key(1), X
    )
    assert all_finite((loss, metrics, slopes))
    assert model.importance is not None
    assert all_finite(jit(lambda: model.importance(params, jax.random.key(2), X, 2))())


@pytest.mark.parametrize("base", weekly_except(["histogram"], BASES))
@pytest.mark.slow
def test_every_base_with_unit_variance_outputs_is_finite(base):
    counts = np.zeros((*SHAPE, LEVELS), np.float32)
    model = vdm(
        Statistics(SHAPE, LEVELS, log_counts=counts), network=NETWORK, base=base, output_scale="unit_variance",
        parameterization="mean", time_sampler="analytic", schedule=line(low=FIRST, high=LAST), timesteps=50,
    )  # fmt: skip
    params = model.init(jax.random.key(0))
    assert all_finite(
        jit(jax.value_and_grad(model.loss, has_aux=True))(params, jax.random.key(1), X)
    )
    assert all_finite(jit(lambda: model.elbo(params, jax.random.key(1), X))())


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-np.inf, -25.0, r"expected γ\(0\) < γ\(1\), both finite, found -25 and -25"),
        (1e9, np.inf, r"expected γ\(0\) < γ\(1\)"),
    ],
)
def test_a_schedule_without_width_is_refused(low, high, message):
    with pytest.raises(ValueError, match=rf"^schedule: {message}"):
        vdm(Statistics(SHAPE, LEVELS), network=NETWORK, schedule=line(low=low, high=high))


def test_an_end_that_is_not_finite_is_refused():
    endless = Schedule(
        lambda key: {},
        lambda params, t: -10 - jnp.log(1 - jnp.asarray(t, float)),
        lambda params, s, t: (
            jnp.log(1 - jnp.asarray(s, float)) - jnp.log(1 - jnp.asarray(t, float))
        ),
    )
    doors = [
        lambda: vdm(Statistics(SHAPE, LEVELS), network=NETWORK, schedule=endless),
        lambda: generate(lambda xt, g: xt, jax.random.key(0), SHAPE, schedule=endless, steps=2),
        lambda: negative_elbo(lambda xt, g: xt, jnp.ones(2), jax.random.key(0), schedule=endless),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="both finite, found -10 and inf; for SNR"):
            door()
