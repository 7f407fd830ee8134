"""The bound of a VDM equals that of the plain functions, whatever the base, the output scale and the batch."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit
from small_vdm import (
    BITS,
    CONTINUOUS,
    DIM,
    ENDS,
    FIRST,
    FREQUENCIES,
    LAST,
    LEVELS,
    MILD,
    NETWORK,
    NO_PARAMS,
    ROWS,
    SHAPE,
    STATISTICS,
    constant_network,
    init_params,
    keys,
    levels_data,
    model_of,
    zeros_of,
)

from vdm_jax.bases import BASES
from vdm_jax.elbo import negative_elbo
from vdm_jax.likelihoods import level_values
from vdm_jax.models import Statistics, vdm
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.schedules import linear
from vdm_jax.specs import build
from vdm_jax.typing import as_batch

CHOICES = np.array(list(itertools.product(range(len(ROWS)), range(len(OUTPUT_SCALES)))))


def zero_network_matching(name, x0, T):
    """Return the exact expectation of the matching term of F = 0, whose error is out · target."""
    gammas = np.linspace(FIRST, LAST, T + 1)
    total = 0
    for s, t in itertools.pairwise(gammas):
        with jax.enable_x64(True):
            row = PARAMETERIZATIONS[name]()
            step = oracles.Interval(*(jnp.asarray(g) for g in (s, t, t - s)))
            out, (of_x0, of_eps) = float(row(step).out), map(float, row.target(step))
        square = out**2 * (of_x0**2 * x0**2 + of_eps**2)
        total += 0.5 * np.exp(-t) * np.expm1(t - s) * square.sum(axis=(1, 2))
    return total


def test_bound_of_a_zero_network_is_exact():
    T, n = 6, 2000
    x = levels_data(4)
    x0 = level_values(LEVELS)[x]
    spec = {"name": "softmax", "levels": LEVELS}

    @jit
    @partial(jax.vmap, in_axes=(0, None))
    def estimates(i, keys):
        settings = {"schedule": MILD, "parameterization": stacked(ROWS, i), "timesteps": T}
        model = vdm(STATISTICS, network=constant_network(zeros_of), **settings)

        def plain(key):
            each = jax.random.split(key, len(x))
            bound = partial(negative_elbo, zeros_of, likelihood=spec, **settings)
            return jax.vmap(bound)(jnp.asarray(x), each)

        def metrics(key):
            return model.loss(NO_PARAMS, key, jnp.asarray(x))[1]

        return (
            jax.vmap(metrics)(keys),
            jax.vmap(lambda key: model.elbo(NO_PARAMS, key, jnp.asarray(x), draws=T))(keys),
            jax.vmap(plain)(keys),
        )

    losses, elbos, plains = estimates(jnp.arange(len(ROWS)), keys(n))
    for i, name in enumerate(PARAMETERIZATIONS):
        exact = zero_network_matching(name, x0, T)
        for estimate in (elbos.matching[i], plains.matching[i]):  # [n, 4]
            excess = np.asarray(estimate, np.float64) - exact
            # F = 0 is noise-free for x0
            slack = 4.5 * oracles.standard_error(excess) + 1e-5 * exact
            assert np.all(np.abs(excess.mean(0)) < slack), name
        # one draw in each interval is less noisy than as many random draws
        spread = np.std(elbos.matching[i], 0), np.std(plains.matching[i], 0) / np.sqrt(T)
        assert np.all(spread[0] < 1.05 * spread[1]), name
        loss = np.asarray(losses["matching"][i], np.float64) - BITS * exact.mean()
        slack = 4.5 * oracles.standard_error(loss) + 1e-5 * BITS * exact.mean()
        assert abs(loss.mean()) < slack, name
        reconstruction = [np.asarray(e.reconstruction[i]).mean(-1) for e in (elbos, plains)]
        difference = np.subtract(*reconstruction)
        assert abs(difference.mean()) < 4.5 * oracles.standard_error(difference)
    prior = oracles.ends(FIRST, LAST, x0)[1]
    np.testing.assert_allclose(elbos.prior, np.broadcast_to(prior, elbos.prior.shape), rtol=1e-4)
    np.testing.assert_allclose(losses["prior"], BITS * prior.mean(), rtol=1e-4)
    parts = sum(losses[name] for name in ("reconstruction", "matching", "prior"))
    np.testing.assert_allclose(losses["bits_per_dim"], parts, rtol=1e-5)
    np.testing.assert_allclose(losses["loss"], parts, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [6, None])
def test_bound_of_the_best_network_is_the_closed_form(timesteps):
    names = CONTINUOUS if timesteps is None else list(PARAMETERIZATIONS)
    rows = [PARAMETERIZATIONS[name]() for name in names]
    law, n = oracles.gaussian(SHAPE), 3000
    x0 = law.sample(0, n)
    interval_of = oracles.interval_of_step(linear(**ENDS), None, timesteps)

    @jit
    @partial(jax.vmap, in_axes=(0, None))
    def bound(i, x):
        row = stacked(rows, i)
        model = vdm(
            Statistics(SHAPE, None),
            network=constant_network(law.network(row, interval_of)),
            schedule=MILD,
            parameterization=row,
            likelihood="gaussian",
            timesteps=timesteps,
        )
        return model.elbo(NO_PARAMS, jax.random.key(0), x, draws=6)

    elbo = bound(jnp.arange(len(rows)), jnp.asarray(x0, jnp.float32))
    if timesteps is None:
        matching = oracles.matching_continuous(law, FIRST, LAST, x0)
    else:
        matching = oracles.matching(law, np.linspace(FIRST, LAST, timesteps + 1), x0)
    for exact, part in zip((oracles.ends(FIRST, LAST, x0)[0], matching), elbo[:2], strict=True):
        difference = np.asarray(part, np.float64) - exact
        error = oracles.standard_error(difference.T)
        assert np.all(error < 0.02 * np.abs(exact.mean()))
        assert np.all(np.abs(difference.mean(1)) < 4 * error)
    # the draws are the same for every row, and so are the numbers
    for part in elbo:
        np.testing.assert_allclose(
            part, np.broadcast_to(part[:1], part.shape), rtol=2e-4, atol=2e-4
        )


def test_more_draws_lower_the_variance_of_the_bound():
    model = model_of(network=constant_network(zeros_of))
    x = jnp.asarray(np.broadcast_to(levels_data(1), (4000, *SHAPE)))
    elbo = jit(model.elbo, static_argnames="draws")
    single, many = (elbo(NO_PARAMS, jax.random.key(0), x, draws=n).total for n in (1, 16))
    error = np.hypot(*(oracles.standard_error(v) for v in (single, many)))
    assert abs(np.mean(single) - np.mean(many)) < 4 * error
    np.testing.assert_allclose(np.var(many) / np.var(single), 1 / 16, rtol=0.15)


def test_an_example_keeps_its_bound_in_another_batch():
    model = model_of(timesteps=5)
    params = init_params(model)
    whole = as_batch(jnp.asarray(levels_data(6)))
    elbo = jit(model.elbo)
    key = jax.random.key(0)
    half = jax.tree.map(lambda leaf: leaf[3:], whole)
    expected = jax.tree.map(lambda leaf: leaf[3:], elbo(params, key, whole))
    assert_close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(assert_close, elbo(params, key, half), expected)


# --- bases and output scales -------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["levels", "histogram"])
def test_an_exact_base_has_the_entropy_as_its_bound(base):
    n = 4000
    if base == "levels":
        x = np.random.default_rng(0).integers(0, LEVELS, (n, *SHAPE)).astype(np.uint8)
        negative_log_prob = np.full(n, DIM * math.log(LEVELS))
    else:
        x = levels_data(n)
        each = np.take_along_axis(np.log(FREQUENCIES)[None], x[..., None].astype(int), -1)
        negative_log_prob = -each.sum(axis=(1, 2, 3))
    wide = {"name": "linear", "gamma_min": -12.0, "gamma_max": 12.0}
    model = model_of(base=base, schedule=wide, network=constant_network(zeros_of))
    elbo = jit(partial(model.elbo, draws=32))
    off = np.asarray(elbo(NO_PARAMS, jax.random.key(0), jnp.asarray(x)).total, np.float64)
    off -= negative_log_prob
    error = oracles.standard_error(off)
    assert error < 0.01 * negative_log_prob.mean()
    assert abs(off.mean()) < 4 * error


def row_and_scale(choice):
    """Return the parameterization and the output scale of one of `CHOICES`, which may be traced."""
    output_scales = [output_scale() for output_scale in OUTPUT_SCALES.values()]
    return stacked(ROWS, choice[0]), lambda *at: jnp.stack(
        [output_scale(*at) for output_scale in output_scales]
    )[choice[1]]


@pytest.mark.parametrize("base", BASES)
def test_every_base_is_finite_and_starts_from_one_bound(base):
    x = jnp.asarray(levels_data(8))
    residual = np.float32([FIRST, LAST]), np.float32([-3, -0.5])
    statistics = STATISTICS._replace(residual=residual)

    def model(choice):
        row, output_scale = row_and_scale(choice)
        settings = {"network": NETWORK, "schedule": MILD, "timesteps": 5}
        return vdm(
            statistics, parameterization=row, base=base, output_scale=output_scale, **settings
        )

    @jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.value_and_grad, argnums=1)
    def loss(choice, params):
        return model(choice).loss(params, jax.random.key(1), x)[0]

    values, gradients = loss(CHOICES, init_params(model((0, 0))))
    assert np.all(np.isfinite(values))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    out = gradients["network"]["out"]["kernel"]
    assert np.all(np.abs(out).max(axis=(1, 2)) > 0)
    each_row = values.reshape(len(ROWS), len(OUTPUT_SCALES))
    np.testing.assert_allclose(each_row, each_row[:, :1].repeat(len(OUTPUT_SCALES), 1), rtol=1e-5)
    if base == "zero":  # x̂_0 = skip · x_t differs between rows; only eps and score share their skip
        by_name = dict(zip(PARAMETERIZATIONS, each_row[:, 0].tolist(), strict=True))
        np.testing.assert_allclose(by_name.pop("score"), by_name["eps"], rtol=1e-5)
        assert np.all(np.diff(sorted(by_name.values())) > 0.1)
    else:
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


def correction_network(law, row, interval_of, base, output_scale):
    """Return the best network of `law` as the correction to a base, net = (x̂_0 − b) / (out · c)."""

    def correction(xt, gamma_t):
        step = interval_of(gamma_t)
        preconditioning, target = row(step), row.target(step)
        error = law.posterior_means(xt, gamma_t)[0] - base.estimate(xt, gamma_t, preconditioning)
        return error / (preconditioning.out * output_scale(base, gamma_t, preconditioning, target))

    return constant_network(correction)


@pytest.mark.slow
def test_one_denoiser_has_one_bound_and_one_sample():
    T, x = 6, jnp.asarray(levels_data(16))
    law = oracles.gaussian(SHAPE)
    results = {}
    with jax.enable_x64(True):
        interval_of = oracles.interval_of_step(linear(**ENDS), None, T)
        for name in BASES:
            base = build(BASES, name, **STATISTICS._asdict())

            @jit
            @jax.vmap
            def bound_and_sample(choice, base=base):
                row, output_scale = row_and_scale(choice)
                network = correction_network(law, row, interval_of, base, output_scale)
                settings = {
                    "parameterization": row,
                    "base": base,
                    "output_scale": output_scale,
                    "timesteps": T,
                }
                model = model_of(network=network, likelihood="discretized_gaussian", **settings)
                key = jax.random.key(0)
                # with half as many steps as the chain, `mean` still refers to a step of the chain
                sample = model.sample(NO_PARAMS, key, 64, steps=T // 2)
                return model.elbo(NO_PARAMS, key, x), sample

            results[name] = bound_and_sample(CHOICES)
    elbo, sample = jax.tree.map(lambda leaf: leaf[:1], results["zero"])
    assert len(np.unique(sample)) == LEVELS
    for name, (other_elbo, other_sample) in results.items():
        for part, other in zip(elbo, other_elbo, strict=True):
            expected = np.broadcast_to(part, other.shape)
            np.testing.assert_allclose(other, expected, rtol=1e-8, err_msg=name)
        np.testing.assert_array_equal(other_sample, np.broadcast_to(sample, other_sample.shape))
