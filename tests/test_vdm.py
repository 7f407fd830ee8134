"""The model: its bound is the one of the plain functions, whatever the output scale, the base and the batch."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import jit

from vdm_jax.bases import BASES
from vdm_jax.elbo import negative_elbo
from vdm_jax.likelihoods import level_values
from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.samplers import SAMPLERS
from vdm_jax.schedules import learned_monotone, linear
from vdm_jax.specs import build
from vdm_jax.typing import Batch, as_batch
from vdm_jax.weightings import WEIGHTINGS

LEVELS, SHAPE = 4, (2, 3)
DIM = math.prod(SHAPE)
BITS = 1 / (DIM * math.log(2))
FIRST, LAST = -4.0, 5.0
ENDS = {"gamma_min": FIRST, "gamma_max": LAST}
MILD = {"name": "linear"} | ENDS
NETWORK = {"name": "mlp", "width": 16, "depth": 1}
ROWS = [row() for row in PARAMETERIZATIONS.values()]
CHOICES = np.array(list(itertools.product(range(len(ROWS)), range(len(OUTPUT_SCALES)))))
CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]

FREQUENCIES = np.random.default_rng(3).dirichlet(np.full(LEVELS, 0.7), SHAPE)
STATISTICS = Statistics(SHAPE, LEVELS, 0.4, np.log(FREQUENCIES).astype(np.float32))


def levels_data(n, seed=0):
    """uint8 [n, *SHAPE], each position drawn from its own frequencies."""
    uniform = np.random.default_rng(seed).uniform(size=(n, *SHAPE, 1))
    return np.sum(uniform > np.cumsum(FREQUENCIES, -1)[..., :-1], -1).astype(np.uint8)


def model_of(**settings):
    return vdm(STATISTICS, **{"network": NETWORK, "schedule": MILD} | settings)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def constant_network(denoise):
    """A network without parameters from a function of one example."""
    return Network(
        lambda key, xt, gamma_t, extra=None: {},
        lambda params, xt, gamma_t, extra=None, keys=None: jax.vmap(denoise)(xt, gamma_t),
    )


def zeros_of(xt, gamma_t):
    return jnp.zeros_like(xt)


NO_PARAMS = {"network": {}, "schedule": {}}


# --- the bound ---------------------------------------------------------------------------------------


def zero_network_matching(name, x0, T):
    """E of the matching term of F = 0, exact: the error is out · target."""
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


def test_bound_of_a_zero_network_is_that_of_the_plain_function_and_exact():
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
            one = partial(negative_elbo, zeros_of, likelihood=spec, **settings)
            return jax.vmap(one)(jnp.asarray(x), each)

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
        for found in (elbos.matching[i], plains.matching[i]):  # [n, 4]
            off = np.asarray(found, np.float64) - exact
            slack = 4.5 * oracles.standard_error(off) + 1e-5 * exact  # F = 0 is noise-free for x0
            assert np.all(np.abs(off.mean(0)) < slack), name
        # one draw for each interval: less noise than as many random ones
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

    found = bound(jnp.arange(len(rows)), jnp.asarray(x0, jnp.float32))
    if timesteps is None:
        matching = oracles.matching_continuous(law, FIRST, LAST, x0)
    else:
        matching = oracles.matching(law, np.linspace(FIRST, LAST, timesteps + 1), x0)
    for exact, part in zip((oracles.ends(FIRST, LAST, x0)[0], matching), found[:2], strict=True):
        off = np.asarray(part, np.float64) - exact
        error = oracles.standard_error(off.T)
        assert np.all(error < 0.02 * np.abs(exact.mean()))
        assert np.all(np.abs(off.mean(1)) < 4 * error)
    # the same draws for every row: the same numbers
    for part in found:
        np.testing.assert_allclose(
            part, np.broadcast_to(part[:1], part.shape), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("base", ["levels", "histogram"])
def test_a_base_that_knows_the_data_has_their_entropy_as_its_bound(base):
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
def test_every_base_row_and_output_scale_is_finite_and_common_bases_start_from_one_bound(base):
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
    if base == "zero":  # each row's own: x̂_0 = skip · x_t, and eps and score share their skip
        own = dict(zip(PARAMETERIZATIONS, each_row[:, 0].tolist(), strict=True))
        np.testing.assert_allclose(own.pop("score"), own["eps"], rtol=1e-5)
        assert np.all(np.diff(sorted(own.values())) > 0.1)
    else:
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


def correction_network(law, row, interval_of, base, output_scale):
    """The best network of `law` as the correction to a base: net = (x̂_0 − b) / (out · c)."""

    def one(xt, gamma_t):
        step = interval_of(gamma_t)
        preconditioning, target = row(step), row.target(step)
        error = law.posterior_means(xt, gamma_t)[0] - base.estimate(xt, gamma_t, preconditioning)
        return error / (preconditioning.out * output_scale(base, gamma_t, preconditioning, target))

    return constant_network(one)


@pytest.mark.slow
def test_one_denoiser_has_one_bound_and_one_sample_in_every_base_row_and_scale():
    T, x = 6, jnp.asarray(levels_data(16))
    law = oracles.gaussian(SHAPE)
    found = {}
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
                # half as many steps as the chain has: `mean` still means the chain's own step
                sample = model.sample(NO_PARAMS, key, 64, steps=T // 2)
                return model.elbo(NO_PARAMS, key, x), sample

            found[name] = bound_and_sample(CHOICES)
    elbo, sample = jax.tree.map(lambda leaf: leaf[:1], found["zero"])
    assert len(np.unique(sample)) == LEVELS
    for name, (other_elbo, other_sample) in found.items():
        for part, other in zip(elbo, other_elbo, strict=True):
            expected = np.broadcast_to(part, other.shape)
            np.testing.assert_allclose(other, expected, rtol=1e-8, err_msg=name)
        np.testing.assert_array_equal(other_sample, np.broadcast_to(sample, other_sample.shape))


def test_samples_of_the_best_network_have_the_law_of_the_chain():
    steps, n = 4, 20_000
    law, row = oracles.gaussian(SHAPE), PARAMETERIZATIONS["v"]()
    model = vdm(
        Statistics(SHAPE, None),
        network=constant_network(law.network(row, oracles.interval_of_step(None))),
        schedule=MILD,
        parameterization=row,
        likelihood="gaussian",
    )
    found = jit(partial(model.sample, n=n, steps=steps))(NO_PARAMS, jax.random.key(0))
    mean, variance = oracles.chain_law(law, np.linspace(FIRST, LAST, steps + 1))
    offset, gain = oracles.affine(law, FIRST)
    covariance = np.diag((gain**2 * variance).ravel())
    oracles.assert_moments(np.asarray(found), (offset + gain * mean).ravel(), covariance)


def init_params(model):
    """Parameters of the model's shapes, zero where the network starts at zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = np.zeros(leaf.shape) if "'out'" in str(path) else rng.standard_normal(leaf.shape)
        return jnp.asarray(0.1 * values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


# --- another path for the training times -------------------------------------------------------------


@pytest.mark.slow
def test_training_times_on_another_path_leave_the_bound_as_it_is():
    """In continuous time: the same expectation from other draws; and the evaluation does not notice."""
    x, n = jnp.asarray(levels_data(8)), 6000
    path = {"name": "sigmoid", **ENDS, "start": -2.0, "end": 3.0}
    plain, other = model_of(base="levels"), model_of(base="levels", train_schedule=path)
    params = init_params(plain)
    losses = [jit(jax.vmap(lambda key, m=m: m.loss(params, key, x)[0])) for m in (plain, other)]
    a, b = (np.asarray(loss(keys(n)), np.float64) for loss in losses)
    assert a.std() > 0 and abs(b.std() / a.std() - 1) > 0.05  # other draws
    error = math.hypot(oracles.standard_error(a), oracles.standard_error(b))
    assert abs(a.mean() - b.mean()) < 4.5 * error
    for found, expected in zip(
        other.elbo(params, jax.random.key(0), x),
        plain.elbo(params, jax.random.key(0), x),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    assert "train schedule sigmoid" in other.components


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 5}, "is for continuous time, found timesteps = 5"),
        (
            {"schedule": "linear"},
            r"expected the ends \[-13\.3.*, 5\.0\] of the schedule, found \[-4\.0",
        ),
        ({"train_schedule": {"name": "learned_linear"} | ENDS}, "neither .* may be learned"),
        ({"train_schedule": "sigmid"}, "unknown name 'sigmid'; did you mean 'sigmoid'"),
    ],
    ids=str,
)
def test_paths_that_cannot_be_are_named(settings, message):
    path = {"name": "sigmoid", **ENDS}
    with pytest.raises(ValueError, match=rf"train_schedule: {message}"):
        model_of(**{"train_schedule": path} | settings)


# --- spaces and weightings ---------------------------------------------------------------------------


def test_a_model_with_a_path_of_its_own_is_built_inside_traced_functions():
    def loss(key):
        model = model_of(train_schedule={"name": "sigmoid", **ENDS})
        return model.loss(model.init(key), key, levels_data(2))[0]

    assert np.isfinite(jax.jit(loss)(jax.random.key(0)))


def test_dropout_is_of_every_call_of_the_network_in_training_and_of_none_in_the_bound():
    seen = []

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        seen.append(keys is not None)
        return params["w"] * xt

    network = Network(lambda key, xt, gamma_t=None, extra=None: {"w": jnp.ones(())}, apply)
    model = model_of(network=network, likelihood="discretized_gaussian")
    params = model.init(jax.random.key(0))
    for function, expected in ((model.loss, [True, True]), (model.elbo, [False, False])):
        seen.clear()
        jax.eval_shape(function, params, jax.random.key(1), levels_data(2))
        assert seen[:2] == expected


def test_elbo_weighting_gives_the_same_loss_in_every_space_and_output():
    x = jnp.asarray(levels_data(8))

    @jit
    @partial(jax.vmap, in_axes=(None, 0))
    def loss(params, i):
        model = model_of(
            loss_space=stacked(ROWS, i), timesteps=5, parameterization="v", base="levels"
        )
        return model.loss(params, jax.random.key(0), x)

    params = init_params(model_of(base="levels"))
    values, metrics = loss(params, jnp.arange(len(ROWS)))
    np.testing.assert_allclose(values, metrics["bits_per_dim"], rtol=1e-5)
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


HAND_WEIGHTS = {  # the papers' own: of ‖x_0 − x̂_0‖², of linear γ; None: of the error in the model's space
    "elbo": lambda snr: 0.5 * (LAST - FIRST) * snr,
    "simple": None,
    "min_snr": lambda snr: min(snr, 5.0),
    "sigmoid": lambda snr: 0.5 * (LAST - FIRST) * snr / (1 + snr * math.exp(-2.0)),
    "p2": lambda snr: snr / (1 + snr),
}
HAND_OUT = {  # out² of each space over that of x0, from the definition of its target
    "x0": lambda snr: 1.0,
    "eps": lambda snr: 1 / snr,
    "v": lambda snr: 1 / (1 + snr),
    "score": lambda snr: 1 / (1 + snr) / snr,
}


def test_every_weighting_is_its_papers_loss_in_every_space():
    assert set(HAND_WEIGHTS) == set(WEIGHTINGS)
    assert set(HAND_OUT) == set(CONTINUOUS)
    x = jnp.asarray(levels_data(1))
    spaces = [PARAMETERIZATIONS[name]() for name in CONTINUOUS]

    @jit
    def losses(params):
        def metrics(**settings):
            model = model_of(parameterization="v", **settings)
            return model.loss(params, jax.random.key(5), x)[1]

        def in_space(i, weighting):
            return metrics(weighting=weighting, loss_space=stacked(spaces, i))

        each = jnp.arange(len(spaces))
        # a weighting that gives away the one λ that all of them drew
        spy = metrics(weighting=lambda log_snr, exact: exact * log_snr)
        return spy, {name: jax.vmap(partial(in_space, weighting=name))(each) for name in WEIGHTINGS}

    spy, found = jax.tree.map(np.asarray, losses(init_params(model_of())))
    ends = spy["reconstruction"] + spy["prior"]
    snr = math.exp((spy["loss"] - ends) / spy["matching"])
    assert math.exp(-LAST) < snr < math.exp(-FIRST)
    error_x0 = spy["matching"] / (0.5 * (LAST - FIRST) * snr)  # ‖x_0 − x̂_0‖² in bits/dim
    for weighting, metrics in found.items():
        np.testing.assert_allclose(metrics["matching"], spy["matching"].repeat(4), rtol=1e-5)
        for loss_space, loss in zip(CONTINUOUS, metrics["loss"] - ends, strict=True):
            weight = HAND_WEIGHTS[weighting]
            expected = error_x0 * (1 / HAND_OUT[loss_space](snr) if weight is None else weight(snr))
            case = f"{weighting} in {loss_space}"
            np.testing.assert_allclose(loss, expected, rtol=1e-3, err_msg=case)


@pytest.mark.parametrize("timesteps", [7, None])
def test_simple_loss_is_the_mean_squared_error_of_the_noise(timesteps):
    model = model_of(weighting="simple", timesteps=timesteps, network=constant_network(zeros_of))
    _, metrics = jit(model.loss)(NO_PARAMS, jax.random.key(0), jnp.asarray(levels_data(16)))
    # ε̂ = 0 and γ linear: the bound's term is ½ · rate · ‖ε‖² with one rate for all times
    rate = LAST - FIRST if timesteps is None else 7 * math.expm1((LAST - FIRST) / 7)
    ends = metrics["reconstruction"] + metrics["prior"]
    np.testing.assert_allclose(metrics["loss"] - ends, 2 / rate * metrics["matching"], rtol=1e-4)


# --- batches and keys --------------------------------------------------------------------------------


def watched(seen):
    """A network that keeps what it was given."""

    def apply(params, xt, gamma_t, extra=None, keys=None):
        seen.append((xt, gamma_t, jax.vmap(jax.random.key_data)(keys)))
        return jnp.tanh(xt) * params

    return Network(lambda key, xt, gamma_t, extra=None: jnp.ones(()), apply)


@pytest.mark.parametrize("timesteps", [5, None])
def test_loss_and_draws_do_not_depend_on_how_the_batch_is_split(timesteps):
    seen = []
    model = model_of(network=watched(seen), timesteps=timesteps)
    params = {"network": jnp.ones(()), "schedule": {}}
    whole = as_batch(jnp.asarray(levels_data(12)))
    np.testing.assert_array_equal(whole.index, np.arange(12))
    np.testing.assert_allclose(whole.phase, np.arange(12) / 12, rtol=1e-6)

    @jit
    def run(batch):
        seen.clear()
        value, _ = model.loss(params, jax.random.key(0), batch)
        return value, seen[0]

    value, draws = run(whole)
    orders = [np.arange(0, 6), np.arange(6, 12), np.arange(11, -1, -1)]
    parts = [run(jax.tree.map(lambda leaf, at=at: leaf[at], whole)) for at in orders]
    for at, (_, part) in zip(orders, parts, strict=True):
        for whole_draw, part_draw in zip(draws, part, strict=True):
            np.testing.assert_array_equal(part_draw, whole_draw[at])
    np.testing.assert_allclose((parts[0][0] + parts[1][0]) / 2, value, rtol=1e-5)
    np.testing.assert_allclose(parts[2][0], value, rtol=1e-5)
    assert len(np.unique(draws[2], axis=0)) == 12  # every example drops for itself
    if timesteps is None:  # one time in each twelfth
        place = np.sort((np.asarray(draws[1]) - FIRST) / (LAST - FIRST))
        np.testing.assert_allclose(np.diff(place), 1 / 12, atol=1e-5)


def test_more_draws_of_the_bound_keep_its_mean_and_lower_its_variance():
    model = model_of(network=constant_network(zeros_of))
    x = jnp.asarray(np.broadcast_to(levels_data(1), (4000, *SHAPE)))
    elbo = jit(model.elbo, static_argnames="draws")
    one, many = (elbo(NO_PARAMS, jax.random.key(0), x, draws=n).total for n in (1, 16))
    error = np.hypot(*(oracles.standard_error(v) for v in (one, many)))
    assert abs(np.mean(one) - np.mean(many)) < 4 * error
    np.testing.assert_allclose(np.var(many) / np.var(one), 1 / 16, rtol=0.15)


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


@pytest.mark.parametrize("timesteps", [5, None])
def test_a_training_step_compiles_once(timesteps):
    model, traces = model_of(timesteps=timesteps, base="histogram"), []

    @jit
    def step(params, key, batch):
        traces.append(1)
        (value, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, key, batch)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    params = init_params(model)
    values = []
    for i in range(3):
        batch = as_batch(jnp.asarray(levels_data(8, seed=i)))
        batch = Batch(batch.x, batch.index + 8 * i, batch.phase)
        value, params = step(params, jax.random.key(i), batch)
        values.append(float(value))
    assert len(traces) == 1
    assert np.all(np.isfinite(values))
    assert len(set(values)) == 3


def test_a_learned_schedule_is_in_the_parameters_and_is_trained():
    schedule = learned_monotone(hidden=3, **ENDS)
    model = model_of(schedule=schedule)
    params = init_params(model) | {"schedule": schedule.init(jax.random.key(0))}

    @jit
    @jax.grad
    def gradient(params):
        return model.loss(params, jax.random.key(0), jnp.asarray(levels_data(8)))[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)["schedule"]):
        assert np.all(np.isfinite(leaf)), path
        assert np.all(np.abs(leaf) > 0), path


# --- samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_base_that_knows_the_data_have_their_frequencies(name):
    n = 4000
    wide = {"name": "linear", "gamma_min": -9.0, "gamma_max": 9.0}
    model = model_of(base="histogram", schedule=wide, network=constant_network(zeros_of))
    sample = jit(partial(model.sample, n=n, sampler=name, steps=200))
    found = sample(NO_PARAMS, jax.random.key(0))
    assert (found.shape, found.dtype) == ((n, *SHAPE), jnp.uint8)
    shares = np.mean(np.asarray(found)[..., None] == np.arange(LEVELS), axis=0)
    error = np.sqrt(FREQUENCIES * (1 - FREQUENCIES) / n)
    np.testing.assert_array_less(np.abs(shares - FREQUENCIES), 4.5 * error + 0.01)


@pytest.mark.parametrize(
    ("levels", "likelihood", "dtype"),
    [
        (2, "discretized_gaussian", jnp.uint8),
        (256, "softmax", jnp.uint8),
        (300, "softmax", jnp.int32),
        (None, "gaussian", jnp.float32),
    ],
)
def test_samples_are_data_as_stored(levels, likelihood, dtype):
    model = vdm(
        Statistics((3,), levels),
        network=constant_network(lambda xt, gamma_t: 3 * xt),  # leaves [-1, 1]
        likelihood=likelihood,
        parameterization="x0",
    )
    sample = jit(partial(model.sample, n=5, steps=2))
    first, again, other = (sample(NO_PARAMS, jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((5, 3), dtype)
    if levels is not None:
        assert (int(first.min()), int(first.max())) == (0, levels - 1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("likelihood", ["softmax", "histogram"])
@pytest.mark.slow
def test_a_chain_is_sampled_without_calls_of_the_network_that_no_loss_makes(likelihood):
    def nan_at_the_least_noise(xt, gamma_t):
        return jnp.where(gamma_t < FIRST + 0.1, jnp.nan, zeros_of(xt, gamma_t))

    def samples(denoise, timesteps):
        model = model_of(
            network=constant_network(denoise),
            base="histogram",
            likelihood=likelihood,
            timesteps=timesteps,
        )
        x0 = model.sample(NO_PARAMS, jax.random.key(0), 200, steps=4)
        return np.asarray(x0), model.elbo(NO_PARAMS, jax.random.key(0), levels_data(8))

    found, bound = samples(nan_at_the_least_noise, 4)
    assert np.all(np.isfinite(bound)) and np.all(np.ptp(found, 0) >= LEVELS - 2)
    np.testing.assert_array_equal(found, samples(zeros_of, 4)[0])
    assert np.any(found != samples(nan_at_the_least_noise, None)[0])  # there it is called


def test_mean_is_sampled_in_steps_of_its_chain():
    model = model_of(parameterization="mean", timesteps=6)
    params = init_params(model)
    for steps in (4, 12):
        with pytest.raises(ValueError, match=f"divisor of timesteps = 6, found {steps}"):
            model.sample(params, jax.random.key(0), 2, steps=steps)
    sample = jit(partial(model.sample, n=2, steps=3))
    assert sample(params, jax.random.key(0)).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match=r"steps: .*found 0"):
        model.sample(params, jax.random.key(0), 2, steps=0)
    with pytest.raises(ValueError, match=r"sampler: unknown name 'dpm'.*choices: ancestral"):
        model.sample(params, jax.random.key(0), 2, steps=2, sampler="dpm")


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "mpl"}, "network: unknown name 'mpl'; did you mean 'mlp'"),
        ({"network": {"name": "mlp", "widht": 3}}, "'mlp' has no argument 'widht'.*'width'"),
        ({"network": {"name": "mlp", "dropout": 1.5}}, "network.dropout: expected a number in"),
        ({"base": "level"}, "base: .*did you mean 'levels'"),
        ({"output_scale": "unit_varianc"}, "output_scale: .*choices: none, unit_variance"),
        ({"loss_space": "epsilon"}, "loss_space: .*choices: eps, mean, score, v, x0"),
        ({"weighting": "snr"}, "weighting: .*choices: elbo, min_snr"),
        ({"likelihood": "gaussian"}, "likelihood: the data have 4 levels"),
        ({"likelihood": {"name": "softmax", "levels": 8}}, "the likelihood is of 8 levels"),
        ({"parameterization": "mean"}, "parameterization: 'mean' .*timesteps=T, found None"),
        ({"loss_space": "mean"}, "loss_space: 'mean' .*timesteps=T, found None"),
        ({"timesteps": 0}, "timesteps: expected a whole number in .*, found 0"),
        (
            {"schedule": "learned_linear", "weighting": "simple"},
            "weighting: a learned schedule is trained on the bound",
        ),
        (
            {"schedule": "learned_monotone", "weighting": {"name": "p2"}},
            "weighting: .*expected 'elbo'",
        ),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        vdm(STATISTICS, **settings)


@pytest.mark.usefixtures("as_users")
def test_settings_that_are_left_out_or_wrong():
    x, key = jnp.zeros((2, *SHAPE), jnp.uint8), jax.random.key(0)
    mean = model_of(parameterization="mean", timesteps=7)  # of which 1000 is no divisor
    params = init_params(mean)
    assert jax.eval_shape(lambda key: mean.sample(params, key, 2), key).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 1, found 0"):
        mean.elbo(params, key, x, draws=0)
    with pytest.raises(
        TypeError, match=r"batch: expected a `Batch` or an array .* dict of 'image'"
    ):
        mean.loss(params, key, {"image": x})
    with pytest.raises(TypeError, match=r"batch: expected .*, found an array of shape \(\)"):
        mean.loss(params, key, jnp.zeros((), jnp.uint8))


class Module(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t, extra):
        inputs = xt, extra, jnp.broadcast_to(gamma_t[:, None, None], xt.shape)
        return nn.Dense(xt.shape[-1])(jnp.concatenate(inputs, -1))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (Module(), 2),
        (lambda xt, gamma_t: gamma_t * xt, 0),
        ((lambda key, xt: jnp.ones(()), lambda params, xt, gamma_t: params * xt), 1),
    ],
)
@pytest.mark.slow
def test_networks_of_other_libraries_are_taken_as_they_are(network, parameters):
    model, key = model_of(network=network, base="levels"), jax.random.key(0)
    params = model.init(key)
    assert len(jax.tree.leaves(params["network"])) == parameters
    loss, _ = model.loss(params, key, jnp.zeros((2, *SHAPE), jnp.uint8))
    assert np.isfinite(loss)
    with pytest.raises(ValueError, match=r"network: cannot be applied to xt"):
        model_of(network=lambda xt: xt)


def test_floats_for_data_on_levels_are_refused():
    model = model_of()
    params = init_params(model)
    for function in (model.loss, model.elbo):
        with pytest.raises(TypeError, match=r"'softmax': expected integers 0\.\.3, found float32"):
            function(params, jax.random.key(0), jnp.zeros((2, *SHAPE)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "mlp", "outputs": (1, 1)}, r"network: gives \(1, 1\) for data \(2, 3\)"),
        ({"name": "conv_encoder", "outputs": SHAPE}, "conv_encoder: is no denoiser"),
    ],
)
def test_networks_that_are_no_denoisers_are_refused(network, message):
    model = model_of(network=network)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key: model.loss(model.init(key), key, jnp.zeros((2, *SHAPE), jnp.uint8)),
            jax.random.key(0),
        )


def test_data_of_another_shape_than_the_statistics_are_refused():
    """A convolutional network would give a number."""
    model = vdm(Statistics((8, 8, 1), 4), network={"name": "unet", "channels": (8,), "blocks": 1})
    key, x = jax.random.key(0), jnp.zeros((2, 4, 4, 1), jnp.uint8)
    params = jax.eval_shape(model.init, key)
    edges = np.linspace(-5.0, 5.0, 3)
    calls = {
        "loss": model.loss,
        "elbo": model.elbo,
        "by noise": lambda params, key, x: model.per_noise_level.elbo(params, key, x, edges),
        "draw": model.per_noise_level.draw,
        "batch": lambda params, key, x: model.loss(params, key, as_batch(x)),
    }
    for call in calls.values():
        with pytest.raises(
            ValueError, match=r"batch: .* expected shape \(8, 8, 1\), found \(4, 4, 1\)"
        ):
            jax.eval_shape(call, params, key, x)


def short_init(key, xt):
    del key, xt
    return {"scale": jnp.ones(())}


def short_apply(params, xt, gamma_t):
    del gamma_t
    return params["scale"] * xt


def test_a_network_of_functions_that_take_less_is_their_pair():
    key, x = jax.random.key(0), jnp.zeros((2, *SHAPE), jnp.uint8)

    @jit
    def losses():
        pair = short_init, short_apply
        models = [model_of(network=network, base="levels") for network in (Network(*pair), pair)]
        return [model.loss(model.init(key), key, x)[0] for model in models]

    found, expected = losses()
    assert found == expected and np.isfinite(found)
    with pytest.raises(ValueError, match=r"network: apply takes 'params'"):
        model_of(network=Network(short_init, lambda params: params))
