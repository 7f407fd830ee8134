"""Effective weights against the curvature of the model's loss, quadrature, and formulas of papers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import jit
from PIL import Image
from thinned import weekly_except

from vdm_jax.effective_weights import LEVELS, EffectiveWeights, effective_weights
from vdm_jax.elbo import draw_times
from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.runs.plots import weight_curves
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build, name_of
from vdm_jax.typing import Batch
from vdm_jax.weightings import WEIGHTINGS

FIRST, LAST = -6.0, 5.0
ENDS = {"gamma_min": FIRST, "gamma_max": LAST}
LINEAR, COSINE = {"name": "linear"} | ENDS, {"name": "cosine"} | ENDS
OWN_ENDS = {
    "from_betas": {"betas": np.linspace(1e-3, 0.05, 100)},
    "linear_betas": {},
    "piecewise_linear": {"gammas": [FIRST, -2.0, -1.0, LAST]},
}
EVERY_SCHEDULE = [{"name": name} | OWN_ENDS.get(name, ENDS) for name in SCHEDULES]
CONTINUOUS = [name for name, row in PARAMETERIZATIONS.items() if row().continuous]

ANGLES = math.atan(math.exp(FIRST / 2)), math.atan(math.exp(LAST / 2))
GAMMA = {  # γ of time, in NumPy
    "linear": lambda t: FIRST + (LAST - FIRST) * t,
    "cosine": lambda t: 2 * np.log(np.tan(ANGLES[0] + (ANGLES[1] - ANGLES[0]) * t)),
}
SLOPE = {  # its derivative, as a function of γ
    "linear": lambda gamma: LAST - FIRST + 0 * gamma,
    "cosine": lambda gamma: 4 * (ANGLES[1] - ANGLES[0]) * np.cosh(gamma / 2),
}


def squared_out(name, gamma_s, gamma_t):
    """Return the squared error of x_0 per squared error of the row's output, derived by hand."""
    snr, signal = np.exp(-gamma_t), 1 / (1 + np.exp(gamma_t))
    noise = 1 - signal
    with np.errstate(divide="ignore"):
        kept = 1 - np.exp(gamma_s - gamma_t)
        mean = (1 + np.exp(gamma_s)) / kept**2
    rows = {"mean": mean, "x0": 1 + 0 * snr, "eps": 1 / snr, "v": noise, "score": noise / snr}
    rows["flow"] = 1 / (1 + np.sqrt(snr)) ** 2
    return rows[name]


def times_by_hand(path, times, timesteps):
    """Return γ_s, γ_t, and the factor from a weight per unit of log-SNR to one per unit of time."""
    name = PATHS[path].get("train_schedule", PATHS[path]["schedule"])["name"]
    gamma = GAMMA[name]
    if timesteps is None:
        t = np.asarray(times, np.float64)
        return gamma(t), gamma(t), SLOPE[name](gamma(t))
    i = np.asarray(times)
    gamma_s, gamma_t = gamma(i / timesteps), gamma((i + 1) / timesteps)
    return gamma_s, gamma_t, timesteps * (gamma_t - gamma_s)


# --- the loss of a model -----------------------------------------------------------------------------

SHAPE = (2,)
OUTPUT = Network(  # its parameters are its output
    init=lambda key, xt, gamma_t, extra=None: jnp.zeros(xt.shape[1:]),
    apply=lambda params, xt, gamma_t, extra=None, keys=None: jnp.broadcast_to(params, xt.shape),
)
PATHS = {  # the curve by which training draws its times, and the settings of the model
    "linear": {"schedule": LINEAR},
    "cosine": {"schedule": COSINE},
    "another path": {"schedule": LINEAR, "train_schedule": COSINE},
}


CASES = [(path, T) for path in ("linear", "cosine") for T in (7, 1000, None)]
CASES += [("another path", None)]  # is for continuous time


def curvature(key, x, phase, **settings):
    """Return ∂²loss/∂F² for the output F of the network, per bit and dimension, and the time of the draw.

    The loss is a quadratic in F: the factor of ‖F − target‖² is half of it, wherever the target is.
    """
    with jax.ensure_compile_time_eval():  # the ends of the schedules are compared
        model = vdm(Statistics(SHAPE, None), network=OUTPUT, likelihood="gaussian", **settings)
    batch = Batch(x[None], jnp.zeros(1, jnp.int32), phase[None])

    def loss(F):
        one_bin = np.asarray([-100.0, 100.0])  # without reconstruction and prior
        return model.per_noise_level.loss({"network": F, "schedule": {}}, key, batch, one_bin)[0]

    time_key, _ = jax.random.split(key)  # as the loss does
    bits = 1 / (math.prod(SHAPE) * math.log(2))
    time = draw_times(time_key, phase, settings["timesteps"])
    return jax.hessian(loss)(jnp.zeros(SHAPE, x.dtype)) / bits, time


def curvatures_and_weights(path, timesteps, weightings, dtype, n=7):
    """Return curvatures, times and weights [rows, spaces, n, …] of all outputs and spaces, by weighting."""
    names = CONTINUOUS if timesteps is None else list(PARAMETERIZATIONS)
    rows, each = [PARAMETERIZATIONS[name]() for name in names], jnp.arange(len(names))
    x, phases = jnp.asarray([0.3, -0.8], dtype), jnp.arange(n, dtype=dtype) / n
    used = PATHS[path].get("train_schedule", PATHS[path]["schedule"])

    def at_time(weighting, i, j, phase):
        row, loss_space = stacked(rows, i), stacked(rows, j)
        loss = {"parameterization": row, "loss_space": loss_space, "weighting": weighting}
        loss |= {"timesteps": timesteps}
        second, time = curvature(jax.random.key(3), x, phase, **PATHS[path], **loss)
        weights = effective_weights(**loss, schedule=used, times=time[None])
        return second, time, jax.tree.map(jnp.squeeze, weights)

    @jit
    def evaluate():
        grid = {}
        for weighting in weightings:
            at_times = jax.vmap(partial(at_time, weighting), (None, None, 0))
            in_spaces = jax.vmap(at_times, (None, 0, None))
            grid[weighting] = jax.vmap(in_spaces, (0, None, None))(each, each, phases)
        return grid

    return names, jax.tree.map(np.asarray, evaluate())


@pytest.mark.parametrize(
    ("path", "timesteps"),
    weekly_except([("linear", 7), ("cosine", None), ("another path", None)], CASES),
)
@pytest.mark.slow
def test_the_effective_weights_are_the_curvature_of_the_loss(path, timesteps):
    with jax.enable_x64(True):
        names, results = curvatures_and_weights(path, timesteps, WEIGHTINGS, jnp.float64)
    assert_weights_are_curvatures(path, timesteps, names, results, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [1000, None])
@pytest.mark.slow
def test_effective_weights_in_single_precision(timesteps):
    names, results = curvatures_and_weights("cosine", timesteps, ["elbo", "min_snr"], jnp.float32)
    assert_weights_are_curvatures("cosine", timesteps, names, results, rtol=1e-4)


def assert_weights_are_curvatures(path, timesteps, names, results, rtol):
    for weighting, (second, times, weights) in results.items():
        times = times[0, 0]
        assert len(np.unique(times)) == 7
        gamma_s, gamma_t, per_time = times_by_hand(path, times, timesteps)
        np.testing.assert_allclose(-weights.log_snr[0, 0], gamma_t, rtol=rtol, atol=rtol)
        np.testing.assert_array_equal(second[..., [0, 1], [1, 0]], 0)
        np.testing.assert_array_equal(second[..., 0, 0], second[..., 1, 1])
        rate = per_time if timesteps is None else timesteps * np.expm1(gamma_t - gamma_s)
        out = {name: squared_out(name, gamma_s, gamma_t) for name in names}
        for i, row in enumerate(names):
            for j, loss_space in enumerate(names):
                each = EffectiveWeights(*(weight[i, j] for weight in weights))
                in_units = {  # each as the weight of the network's own error, t uniform
                    "per_time": each.per_time / out[loss_space],
                    "x0": each.x0 * per_time,
                    "eps": each.eps * per_time / out["eps"],
                    "v": each.v * per_time / out["v"],
                    "relative": each.relative * 0.5 * rate * np.exp(-gamma_t),
                }
                for name, value in in_units.items():
                    case = f"{weighting}: {name} of {row} in {loss_space}"
                    half = 0.5 * second[i, j, :, 0, 0]
                    np.testing.assert_allclose(value * out[row], half, rtol=rtol, err_msg=case)


# --- identities --------------------------------------------------------------------------------------


def in_double(*loss, **settings):
    """Return the weights in double precision, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, effective_weights(*loss, **settings))


def built(spec):
    """Return a schedule and its params."""
    schedule = build(SCHEDULES, spec)
    return {"schedule": schedule, "schedule_params": schedule.init(jax.random.key(0))}


@pytest.mark.parametrize("spec", EVERY_SCHEDULE, ids=name_of)
def test_weights_of_the_bound_are_constant(spec):
    at, rows = built(spec), [PARAMETERIZATIONS[name]() for name in CONTINUOUS]

    @jax.vmap
    def weights_of(i, j):
        times = jnp.linspace(0.0, 1.0, 9)
        return effective_weights(stacked(rows, i), loss_space=stacked(rows, j), times=times, **at)

    weights = jit(weights_of)(*(jnp.asarray(i.ravel()) for i in np.indices((len(rows), len(rows)))))
    np.testing.assert_allclose(weights.eps, 0.5, rtol=2e-5)
    np.testing.assert_allclose(weights.relative, 1, rtol=2e-5)
    # a chain's weight is a little larger, like its Riemann sum
    chain = effective_weights("mean", timesteps=50, **at)
    delta = -jnp.diff(chain.log_snr)
    np.testing.assert_allclose(chain.eps[1:], 0.5 * jnp.expm1(delta) / delta, rtol=2e-4)


@pytest.mark.parametrize("timesteps", [7, 1000, None])
def test_simple_in_eps_is_flat_under_a_linear_schedule(timesteps):
    weights = in_double("v", "simple", loss_space="eps", schedule=LINEAR, timesteps=timesteps)
    np.testing.assert_allclose(weights.eps, 1 / (LAST - FIRST), rtol=1e-10)
    np.testing.assert_allclose(weights.per_time, 1, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [7, None])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_three_spaces_are_one_loss(weighting, timesteps):
    weights = in_double("v", weighting, schedule=COSINE, timesteps=timesteps)
    snr = np.exp(weights.log_snr)
    np.testing.assert_allclose(weights.x0, snr * weights.eps, rtol=1e-12)
    np.testing.assert_allclose(weights.v, snr / (1 + snr) * weights.eps, rtol=1e-12)


def error_of_x0(log_snr):
    """Return E‖x_0 − x̂_0‖² of the best denoiser of a normal of variance 0.3."""
    return 0.3 / (1 + 0.3 * np.exp(log_snr))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=name_of)
def test_integral_over_log_snr_is_the_loss(schedule, weighting):
    nodes, masses = np.polynomial.legendre.leggauss(400)
    for given_space in CONTINUOUS:
        loss = {"loss_space": given_space, "schedule": schedule}
        weights = in_double("x0", weighting, times=(nodes + 1) / 2, **loss)
        gamma = -weights.log_snr
        given_error = error_of_x0(-gamma) / squared_out(given_space, gamma, gamma)
        expected = 0.5 * masses @ (weights.per_time * given_error)
        weights = in_double("x0", weighting, times=np.linspace(0, 1, 4001), **loss)
        gamma = -weights.log_snr
        for loss_space in ("x0", "eps", "v"):
            values = (
                getattr(weights, loss_space)
                * error_of_x0(-gamma)
                / squared_out(loss_space, gamma, gamma)
            )
            case = f"{loss_space} of {given_space}"
            integral = np.trapezoid(values, gamma)
            np.testing.assert_allclose(integral, expected, rtol=1e-4, err_msg=case)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sum_over_the_steps_of_a_chain_is_the_loss(weighting):
    gammas = GAMMA["cosine"](np.linspace(0, 1, 14))
    errors = error_of_x0(-gammas[1:])
    for loss_space in PARAMETERIZATIONS:
        weights = in_double("v", weighting, loss_space=loss_space, schedule=COSINE, timesteps=13)
        loss = np.mean(weights.per_time * errors / squared_out(loss_space, gammas[:-1], gammas[1:]))
        total = np.sum(np.diff(gammas) * weights.x0 * errors)
        np.testing.assert_allclose(total, loss, rtol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("loss_space", CONTINUOUS)
def test_chains_become_continuous_at_first_order(loss_space, weighting):
    errors, at = [], {"loss_space": loss_space, "schedule": COSINE}
    for T in (1000, 2000, 4000):
        steps = np.arange(T // 10 - 1, T, T // 10)  # they end at t = 0.1, 0.2, …
        chain = in_double("v", weighting, timesteps=T, times=steps, **at)
        limit = in_double("v", weighting, times=(steps + 1) / T, **at)
        errors.append(np.max(np.abs(chain.eps / limit.eps - 1)))
    assert errors[-1] < 0.01
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.02)


# --- formulas of papers ------------------------------------------------------------------------------


def as_printed(loss):
    """Return the weighting of a formula of the SNR, of the error in the loss space."""
    return lambda log_snr, exact: loss(jnp.exp(log_snr))


PRINTED = [  # a name and its arguments; the space in which a paper prints a formula, and the formula
    ({"name": "min_snr"}, "x0", lambda snr: jnp.minimum(snr, 5)),  # Hang et al. 2023, all three
    ({"name": "min_snr", "limit": 1.5}, "eps", lambda snr: jnp.minimum(snr, 1.5) / snr),
    ({"name": "min_snr", "limit": 1.5}, "v", lambda snr: jnp.minimum(snr, 1.5) / (snr + 1)),
    ({"name": "p2"}, "eps", lambda snr: 1 / (1 + snr)),  # Choi et al. 2022
    ({"name": "p2", "k": 0.3, "power": 0.5}, "eps", lambda snr: 1 / (0.3 + snr) ** 0.5),
]


@pytest.mark.parametrize("timesteps", weekly_except([7], [7, None]))
@pytest.mark.parametrize("spec", EVERY_SCHEDULE, ids=name_of)
@pytest.mark.slow
def test_published_losses_agree_in_every_space_and_schedule(spec, timesteps):
    with jax.enable_x64(True):
        at = built(spec) | {"timesteps": timesteps}
        times = jnp.arange(7) if timesteps else jnp.linspace(0.0, 1.0, 9)
        spaces = list(PARAMETERIZATIONS) if timesteps else CONTINUOUS

        @jit
        def evaluate():
            pairs = []
            for name, printed_in, loss in PRINTED:
                theirs = effective_weights(printed_in, as_printed(loss), times=times, **at)
                for i, loss_space in enumerate(spaces):
                    row = spaces[i - 1]  # what the network outputs does not matter
                    ours = effective_weights(row, name, loss_space=loss_space, times=times, **at)
                    pairs.append((ours._replace(per_time=theirs.per_time), theirs))
            return pairs

        for ours, theirs in evaluate():
            for our_weight, their_weight in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(our_weight, their_weight, rtol=1e-9)


@pytest.mark.parametrize("timesteps", [7, None])
@pytest.mark.parametrize("spec", EVERY_SCHEDULE, ids=name_of)
def test_sigmoid_weighs_the_log_snr_alike_under_every_schedule(spec, timesteps):
    """The loss is ½ ∫ sigmoid(b − λ) ‖ε − ε̂‖² dλ, Kingma & Gao 2023, Hoogeboom et al. 2024."""
    with jax.enable_x64(True):
        at = built(spec) | {"timesteps": timesteps}
        times = jnp.arange(7) if timesteps else jnp.linspace(0.0, 1.0, 9)
        spaces = list(PARAMETERIZATIONS) if timesteps else CONTINUOUS
        for loss_space in spaces:
            loss = {"loss_space": loss_space, "times": times} | at
            weights = effective_weights("v", {"name": "sigmoid", "bias": 1.5}, **loss)
            bound = effective_weights("v", "elbo", **loss)
            theirs = np.exp(1.5) / (np.exp(1.5) + np.exp(np.asarray(weights.log_snr)))
            np.testing.assert_allclose(weights.relative, theirs, rtol=1e-9)
            np.testing.assert_allclose(weights.eps, theirs * bound.eps, rtol=1e-9)
            np.testing.assert_allclose(weights.per_time, theirs * bound.per_time, rtol=1e-9)


@pytest.mark.parametrize("loss_space", CONTINUOUS)
def test_simple_is_the_plain_error_of_the_space(loss_space):
    """Only this weighting depends on the space; in eps it is that of Ho et al. 2020."""
    weights = in_double("v", "simple", loss_space=loss_space, schedule=COSINE)
    np.testing.assert_allclose(weights.per_time, 1, rtol=1e-12)
    gamma = -weights.log_snr
    in_x0 = 1 / squared_out(loss_space, gamma, gamma) / SLOPE["cosine"](gamma)
    np.testing.assert_allclose(weights.x0, in_x0, rtol=1e-10)


def test_the_error_of_v_is_that_of_x0_times_one_and_the_snr():
    """The ratio is the "SNR+1" weighting of Salimans & Ho 2022."""
    v, x0 = (in_double(row, "simple", schedule=COSINE) for row in ("v", "x0"))
    np.testing.assert_allclose(v.x0 / x0.x0, 1 + np.exp(v.log_snr), rtol=1e-10)


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ("eps", lambda log_snr: 1 / np.cosh(log_snr / 2)),
        ("v", lambda log_snr: np.exp(-log_snr / 2)),
    ],
    ids=["eps", "v"],
)
def test_cosine_weights_match_kingma_and_gao(row, printed):
    """The weights equal those of Kingma & Gao 2023 up to a constant; their cosine schedule has no ends."""
    wide = {"name": "cosine", "gamma_min": -30.0, "gamma_max": 30.0}
    weights = in_double(row, "simple", schedule=wide)
    ratio = weights.eps / printed(weights.log_snr)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


# --- the noise levels --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", EVERY_SCHEDULE, ids=name_of)
def test_default_times_are_even_in_log_snr(spec):
    at = built(spec)

    def log_snr(t):
        return -np.asarray(at["schedule"].gamma(at["schedule_params"], jnp.asarray(t)))

    continuous, fine, few = jit(
        lambda: [effective_weights(timesteps=T, **at) for T in (None, 50_000, 3)]
    )()
    even = np.linspace(*log_snr([0.0, 1.0]), LEVELS)
    np.testing.assert_allclose(continuous.log_snr, even, atol=2e-3)
    np.testing.assert_allclose(fine.log_snr, even, atol=0.02)  # the first step of betas
    np.testing.assert_allclose(few.log_snr, log_snr([1 / 3, 2 / 3, 1.0]), rtol=1e-5)


def test_a_time_selects_the_step_that_contains_it():
    at = {"weighting": "p2", "timesteps": 4}
    for a, b in zip(
        effective_weights(times=[0.1, 0.3, 0.9], **at),
        effective_weights(times=[0, 1, 3], **at),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


# --- plots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "timesteps"), [(["elbo"], None), (WEIGHTINGS, 7), ([*WEIGHTINGS] * 3, 1000)]
)
@pytest.mark.slow
def test_curves_show_every_loss_in_three_spaces(losses, timesteps, tmp_path):
    weights = {
        f"{name} {i}": effective_weights("x0", name, timesteps=timesteps)
        for i, name in enumerate(losses)
    }
    figure = weight_curves(tmp_path / "weights.png", weights, "losses")
    with Image.open(tmp_path / "weights.png") as picture:
        assert picture.size == tuple((100 * figure.get_size_inches()).astype(int))
    for axes, loss_space in zip(figure.axes, ("x0", "eps", "v"), strict=True):
        bound, *lines = axes.lines
        gamma = -np.asarray(bound.get_xdata(), np.float64)
        exact = 0.5 * np.exp(-gamma) * squared_out(loss_space, gamma, gamma)
        np.testing.assert_allclose(bound.get_ydata(), exact, rtol=1e-4)
        assert [line.get_label() for line in lines] == [*weights]
        styles = {(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in lines}
        assert len(styles) == len(lines)  # curves that coincide remain distinguishable
        for line, loss_weights in zip(lines, weights.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), getattr(loss_weights, loss_space))
            np.testing.assert_array_equal(line.get_xdata(), loss_weights.log_snr)
        every = np.concatenate([line.get_ydata() for line in axes.lines])
        assert axes.get_ylim()[0] < every.min() and every.max() < axes.get_ylim()[1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["the bound, T = ∞", *weights]


def test_curves_need_not_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight_curves(None, {"eps": effective_weights()})
    assert list(tmp_path.iterdir()) == []


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameterization": "esp"}, "parameterization: unknown name 'esp'; did you mean 'eps'"),
        ({"loss_space": "x00"}, "loss_space: unknown name 'x00'; did you mean 'x0'"),
        ({"weighting": "elba"}, "weighting: unknown name 'elba'; did you mean 'elbo'"),
        ({"schedule": "cosin"}, "schedule: unknown name 'cosin'; did you mean 'cosine'"),
        ({"parameterization": "mean"}, "'mean' has no finite form in continuous time"),
        ({"loss_space": "mean"}, "'mean' has no finite form in continuous time"),
        ({"timesteps": 0}, "timesteps: expected a whole number in .*, found 0"),
        ({"schedule": "learned_linear"}, "the schedule is learned, expected schedule.init"),
    ],
    ids=str,
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        effective_weights(**settings)
    assert "\n" not in str(caught.value)


def test_a_scalar_time_is_refused():
    with pytest.raises(ValueError, match=r"times: expected a list of them, found shape \(\)"):
        effective_weights(times=0.5)
