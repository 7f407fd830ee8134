"""Every public function and table answers a user's mistake with one line, before anything is compiled."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public import tables

import vdm_jax as vdm
from vdm_jax.nets import from_callable, from_linen

pytestmark = pytest.mark.usefixtures("as_users")
KEY = jax.random.key(0)
X = jnp.zeros(3)
STEP = vdm.Interval(*jnp.asarray([-2.0, 0.0, 2.0]))
MIX = vdm.parameterizations.Preconditioning(jnp.ones(()), jnp.ones(()))
NORMAL = vdm.Gaussian(X, jnp.zeros(()))
STATISTICS = vdm.Statistics(shape=(2,), levels=4)
FLOATS = vdm.Statistics(shape=(2,), levels=None)
LINEAR, LEARNED = vdm.schedules.linear(), vdm.schedules.learned_monotone()
TWO = [0.5, 0.5], [[-1.0], [1.0]], [[0.1], [0.1]]
PARAMS = {"w": jnp.ones(2)}
SGD = optax.sgd(0.1)


def identity(xt, gamma_t):
    return xt * jnp.ones_like(gamma_t)


def loss(params, key, batch):
    del key, batch
    return params["w"].sum(), {}


def of_model(name, statistics=STATISTICS, **settings):
    """Build a small model and initialise its parameters."""
    model = vdm.models.MODELS[name](statistics, **settings)
    return model, jax.jit(model.init)(KEY)


bound = partial(vdm.negative_elbo, identity, X, KEY, schedule="linear")
generate = partial(vdm.generate, identity, KEY, (3,), schedule="linear", steps=2)
weights = vdm.effective_weights
losses = partial(vdm.parameterization_losses, {"eps": identity}, jnp.zeros((4, 3)), KEY)
compare = partial(
    vdm.compare,
    ["eps"],
    np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3),
    steps=1,
    batch_size=8,
    progress=False,
)
step = partial(vdm.make_step, loss, SGD)


def with_denoiser(function):
    return {
        "negative_elbo": lambda: vdm.negative_elbo(function, X, KEY, schedule="linear"),
        "generate": lambda: vdm.generate(function, KEY, (3,), schedule="linear", steps=2),
        "parameterization_losses": lambda: vdm.parameterization_losses(
            {"eps": function}, jnp.zeros((4, 3)), KEY
        ),
        "compare": lambda: compare(network=function),
        "vdm": lambda: vdm.models.vdm(FLOATS, network=function, likelihood="gaussian"),
    }


OUTPUTS = {
    "complex": (lambda xt, gamma_t: xt * 1j, "expected floats, found complex64"),
    "integer": (lambda xt, gamma_t: jnp.ones(xt.shape, int), "expected floats, found int32"),
    "none": (lambda xt, gamma_t: None, "expected floats, found None"),
    "boolean": (lambda xt, gamma_t: xt > 0, "expected floats, found bool"),
    "shape": (lambda xt, gamma_t: xt[..., :1], "expected .*shape .*found"),
    "one argument": (lambda xt: xt, r"expected a callable \(xt, gamma_t\)|cannot be applied to xt"),
    "class": (dict, r"expected .*found the class dict"),
    "string": ("mpl", r"expected|unknown name 'mpl'"),
}

TIMES = {"above": 1.5, "below": -0.1, "nan": float("nan"), "array": jnp.asarray([0.5, 2.0])}
IN_TIME = {
    "interval s": lambda t: vdm.interval(LINEAR, None, t, 1.0),
    "interval t": lambda t: vdm.interval(LINEAR, None, 0.0, t),
    "effective_weights": lambda t: weights(times=np.atleast_1d(t)),
    "rate": lambda t: LINEAR.gamma_and_dgamma(None, t),
    **{
        f"gamma of {name}": lambda t, name=name: schedule_of(name).gamma(params_of(name), t)
        for name in vdm.schedules.SCHEDULES
    },
    **{
        f"delta of {name}": lambda t, name=name: schedule_of(name).delta(params_of(name), 0.0, t)
        for name in vdm.schedules.SCHEDULES
    },
}


def schedule_of(name):
    needed = {"from_betas": {"betas": [0.1, 0.2]}, "piecewise_linear": {"gammas": [-9.0, 5.0]}}
    return vdm.schedules.SCHEDULES[name](**needed.get(name, {}))


def params_of(name):
    return schedule_of(name).init(KEY)


NO_STEPS = [1.5, True, -3, 0, 2**25, "10", float("nan")]
IN_STEPS = {
    "negative_elbo": lambda n: bound(timesteps=n),
    "generate": lambda n: generate(steps=n),
    "effective_weights": lambda n: weights(timesteps=n),
    "parameterization_losses": lambda n: losses(timesteps=n),
    "compare": lambda n: compare(timesteps=n),
    "vdm": lambda n: vdm.models.vdm(STATISTICS, timesteps=n),
    "model.sample": lambda n: sample_of("vdm")(KEY, 2, steps=n),
}


def sample_of(name, cache={}):  # noqa: B006
    if name not in cache:
        small = {"name": "mlp", "width": 4, "depth": 1}
        settings = {
            "vdm": {"network": small},
            "vae": {"latent": 2, "encoder": small, "decoder": small, "likelihood": "softmax"},
        }[name]
        model, params = of_model(name, **settings)
        cache[name] = model, params
    model, params = cache[name]
    return partial(model.sample, params)


NO_KEYS = {
    "none": (None, "found None"),
    "integer": (0, "found 0"),
    "raw": (jax.random.PRNGKey(0), r"wrap_key_data"),
    "batch": (jax.random.split(KEY, 2), r"keys of shape \(2,\)"),
    "float": (jnp.zeros(()), "found float32"),
}
WITH_KEY = {
    "negative_elbo": lambda key: vdm.negative_elbo(identity, X, key, schedule="linear"),
    "generate": lambda key: vdm.generate(identity, key, (3,), schedule="linear"),
    "parameterization_losses": lambda key: vdm.parameterization_losses(
        {"eps": identity}, jnp.zeros((4, 3)), key
    ),
    "init_state": lambda key: vdm.init_state(PARAMS, SGD, key),
    "Gaussian.sample": NORMAL.sample,
    "Mixture.sample": lambda key: vdm.Mixture.of(*TWO).sample(key, 2),
    "vdm.init": lambda key: vdm.models.vdm(STATISTICS).init(key),
    "vae.init": lambda key: vdm.models.vae(STATISTICS, likelihood="softmax").init(key),
    "vdm.sample": lambda key: sample_of("vdm")(key, 2),
    "vae.sample": lambda key: sample_of("vae")(key, 2),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("door", with_denoiser(identity))
def test_outputs_of_denoisers(door, output):
    function, message = OUTPUTS[output]
    refused(with_denoiser(function)[door], message)


@pytest.mark.parametrize("door", IN_TIME)
def test_times(door):
    for t in TIMES.values():
        refused(partial(IN_TIME[door], t), r"expected times (in \[0, 1\]|s < t), found")


@pytest.mark.parametrize("door", IN_STEPS)
def test_numbers_of_steps(door):
    for steps in NO_STEPS:
        refused(partial(IN_STEPS[door], steps), r"step.*found|2\*\*24")


@pytest.mark.parametrize("door", WITH_KEY)
def test_keys(door):
    for key, message in NO_KEYS.values():
        refused(
            partial(WITH_KEY[door], key),
            rf"key: expected a key such as jax.random.key\(0\).*{message}",
        )


ROWS = {
    # tables and specs
    "build of no table": (
        lambda: vdm.build(None, "linear"),
        "expected a table such as vdm.schedules.SCHEDULES",
    ),
    "build of nothing": (
        lambda: vdm.build(vdm.schedules.SCHEDULES, None),
        "expected a name or .*found None",
    ),
    "build of an object": (
        lambda: vdm.build(vdm.schedules.SCHEDULES, object()),
        "or a Schedule, found object",
    ),
    "build of an array": (
        lambda: vdm.build(vdm.schedules.SCHEDULES, X),
        "or a Schedule, found float32 of shape",
    ),
    "build of the class": (
        lambda: vdm.build(vdm.schedules.SCHEDULES, vdm.schedules.Schedule),
        "found the class Schedule",
    ),
    "build of another row": (
        lambda: vdm.build(vdm.likelihoods.LIKELIHOODS, LINEAR),
        "or a Likelihood, found Schedule",
    ),
    "build of no name": (lambda: vdm.build(vdm.schedules.SCHEDULES, {}), "expected a 'name'"),
    "build of a number": (
        lambda: vdm.build(vdm.schedules.SCHEDULES, {"name": 3}),
        "unknown name 3",
    ),
    "weighting of one": (
        lambda: weights(weighting=lambda a: a),
        r"weighting: expected a callable \(log_snr, exact\)",
    ),
    "weighting no function": (lambda: weights(weighting=object()), "weighting: expected a name"),
    "sampler of one": (
        lambda: generate(sampler=lambda key: key),
        "sampler: expected ",
    ),
    **{
        f"{name} misspelt": (
            partial(vdm.build, table, "nope"),
            "unknown name 'nope'",
        )
        for name, table in tables().items()
    },
    "form misspelt": (lambda: bound(form="consistency"), "form: unknown name 'consistency'"),
    # factories
    "ends no numbers": (
        lambda: vdm.schedules.linear(gamma_min="a"),
        "gamma_min: expected a number",
    ),
    "ends complex": (lambda: vdm.schedules.cosine(gamma_max=1j), "gamma_max: expected a number"),
    "hidden": (
        lambda: vdm.schedules.learned_monotone(hidden=2.5),
        "hidden: expected a whole number",
    ),
    "levels": (lambda: vdm.likelihoods.softmax(levels=10.9), "levels: expected a whole number"),
    "levels true": (
        lambda: vdm.likelihoods.softmax(levels=True),
        "levels: expected a whole number",
    ),
    "bins": (lambda: vdm.time_samplers.analytic(bins=8.5), "bins: expected a whole number"),
    "mix": (lambda: vdm.time_samplers.analytic(mix="a"), "mix: expected a number"),
    "rate": (lambda: vdm.time_samplers.learned(rate=None), "rate: expected a number"),
    "width": (
        lambda: vdm.nets.mlp(width=True),
        "width: expected a whole number of at least 1, found True",
    ),
    # mathematics
    "kl of numbers": (lambda: vdm.kl(1.0, NORMAL), "expected a Gaussian such as"),
    "kl of other shapes": (
        lambda: vdm.kl(NORMAL, vdm.Gaussian(jnp.zeros(2), jnp.zeros(()))),
        r"expected shape \(2,\), found \(3,\)|expected shape \(3,\), found \(2,\)",
    ),
    "log_prob of another shape": (lambda: NORMAL.log_prob(jnp.zeros(2)), "expected shape"),
    "marginal of nothing": (
        lambda: vdm.marginal(None, 0.0),
        "x0: expected real numbers, found None",
    ),
    "marginal complex": (
        lambda: vdm.marginal(X * 1j, 0.0),
        "expected real numbers, found complex64",
    ),
    "transition of a tuple": (
        lambda: vdm.transition(X, (0, 1, 1)),
        "interval: expected a Interval",
    ),
    "posterior of shapes": (lambda: vdm.posterior(X, X[:1], STEP), "posterior: x0: expected shape"),
    "to_x0 of shapes": (lambda: vdm.to_x0(X[:1], X, MIX), "to_x0: output: expected shape"),
    "to_x0 of a tuple": (
        lambda: vdm.to_x0(X, X, (1, 1)),
        "preconditioning: expected a Preconditioning",
    ),
    "stacked of none": (lambda: vdm.parameterizations.stacked([], 0), "rows: expected at least 1"),
    "stacked beyond": (
        lambda: vdm.parameterizations.stacked([vdm.parameterizations.v()], 1),
        "index: expected a whole",
    ),
    "stacked of names": (
        lambda: vdm.parameterizations.stacked(["v"], 0),
        "rows: expected a Parameterization",
    ),
    "interval of a name": (
        lambda: vdm.interval("linear", None, 0, 1),
        "schedule: expected a Schedule",
    ),
    "interval backwards": (lambda: vdm.interval(LINEAR, None, 0.5, 0.2), "expected times s < t"),
    # mixtures
    "mixture sum": (
        lambda: vdm.Mixture.of([0.5, 0.6], *TWO[1:]),
        "positive weights that add up to one",
    ),
    "mixture negative": (lambda: vdm.Mixture.of([1.5, -0.5], *TWO[1:]), "positive weights"),
    "mixture nan": (
        lambda: vdm.Mixture.of(*TWO[:2], [[0.1], [np.nan]]),
        "positive, finite variances",
    ),
    "mixture names": (lambda: vdm.Mixture.of(*TWO[:2], "a"), "variances: expected real numbers"),
    "mixture as it is": (
        lambda: vdm.Mixture(jnp.asarray([0.5, 0.6]), *map(jnp.asarray, TWO[1:])).sample(KEY, 2),
        "positive weights that add up to one",
    ),
    "mixture n": (lambda: vdm.Mixture.of(*TWO).sample(KEY, -1), "n: expected a whole number"),
    # bounds and samples
    "x nothing": (lambda: vdm.negative_elbo(identity, None, KEY, schedule="linear"), "None"),
    "x complex": (
        lambda: vdm.negative_elbo(identity, X * 1j, KEY, schedule="linear"),
        "x: expected real numbers, found complex64",
    ),
    "no params": (
        lambda: bound(schedule="learned_linear"),
        "schedule is learned, expected schedule.init",
    ),
    "other params": (
        lambda: bound(schedule=LEARNED, schedule_params={"a": X}),
        r"schedule_params: expected those of schedule.init\(key\)",
    ),
    "generate without": (lambda: generate(schedule="learned_linear"), "the schedule is learned"),
    "weights without": (lambda: weights(schedule="learned_linear"), "the schedule is learned"),
    "losses without": (lambda: losses(schedule="learned_linear"), "the schedule is learned"),
    **{
        f"shape {shape}": (
            lambda shape=shape: vdm.generate(identity, KEY, shape, schedule="linear"),
            r"shape(\[\d\])?: expected",
        )
        for shape in (None, 3, (-1,), (2, 0), (1.5,), "28", (True,))
    },
    "weights of steps": (lambda: weights(times=[0, 9], timesteps=5), r"expected steps in 0..4"),
    "weights of none": (lambda: weights(times=[]), "times: expected a list"),
    # training
    "loss": (lambda: vdm.make_step(None, SGD), r"loss: expected a callable \(params, key, batch\)"),
    "optimizer name": (
        lambda: vdm.make_step(loss, "adam"),
        "optimizer: expected an optax .*found 'adam'",
    ),
    "optimizer none": (
        lambda: vdm.make_step(loss, None),
        "optimizer: expected an optax .*found None",
    ),
    "ema_every": (lambda: step(ema_every=1.5), "ema_every: expected a whole number .*found 1.5"),
    "ema_decay": (lambda: step(ema_decay=2), r"ema_decay: expected a value in \[0, 1\), found 2"),
    "ema_decay name": (lambda: step(ema_decay="a"), r"ema_decay: expected a value .*found 'a'"),
    "ema_warmup": (lambda: step(ema_warmup="no"), "ema_warmup: expected True or False"),
    "axis_name": (lambda: step(axis_name=1), "axis_name: expected a name or None"),
    "state of nothing": (
        lambda: vdm.init_state(None, SGD, KEY),
        "params: expected a tree of float",
    ),
    "state of integers": (
        lambda: vdm.init_state({"w": jnp.ones(2, int)}, SGD, KEY),
        r"params\['w'\]: expected floats, found int32",
    ),
    "state of a name": (
        lambda: vdm.init_state(PARAMS, "adam", KEY),
        "optimizer: expected an optax",
    ),
    # models
    "statistics": (lambda: vdm.models.vdm((28, 28)), "statistics: expected a Statistics"),
    "statistics shape": (
        lambda: vdm.models.vae(vdm.Statistics(3, 4)),
        "statistics.shape: expected",
    ),
    "statistics levels": (
        lambda: vdm.models.vdm(vdm.Statistics((3,), 1.5)),
        "statistics.levels: expected a whole number",
    ),
    "n": (lambda: sample_of("vdm")(KEY, -1), "n: expected a whole number of at least 1, found -1"),
    "n of a vae": (lambda: sample_of("vae")(KEY, 1.5), "n: expected a whole number"),
    "draw": (lambda: sample_of("vae")(KEY, 1, draw="no"), "draw: expected True or False"),
    "params": (
        lambda: vdm.models.vdm(STATISTICS).loss(None, KEY, jnp.zeros((1, 2), int)),
        r"params: expected those of model.init\(key\), found None",
    ),
    "batch of none": (
        lambda: vdm.models.vdm(STATISTICS).loss(
            sample_of("vdm").args[-1], KEY, jnp.zeros((0, 2), int)
        ),
        "batch: expected at least 1 example",
    ),
    "batch of parts": (
        lambda: vdm.models.vdm(STATISTICS).loss(
            sample_of("vdm").args[-1],
            KEY,
            vdm.Batch(jnp.zeros((3, 2), int), jnp.arange(2), jnp.zeros(3)),
        ),
        r"batch: index: expected shape \(3,\), found \(2,\)",
    ),
    "batch a list": (
        lambda: vdm.models.vdm(STATISTICS).loss(sample_of("vdm").args[-1], KEY, [[0, 1]]),
        "batch: expected a `Batch` or an array",
    ),
    "prior_weight": (
        lambda: vdm.models.vae(STATISTICS, likelihood="softmax", prior_weight="a"),
        "prior_weight: expected a finite number",
    ),
    # networks
    "network functions": (
        lambda: vdm.models.vdm(STATISTICS, network=vdm.Network(None, identity)),
        "network: expected a function init, found None",
    ),
    "from_callable of none": (lambda: from_callable(None, batched=True), "expected a callable"),
    "from_callable of a guess": (
        lambda: from_callable(identity, batched=None),
        "batched: expected True or False",
    ),
    "from_linen of a function": (lambda: from_linen(identity), "expected a Linen module"),
    # comparisons
    "optimizer of compare": (lambda: compare(optimizer="adam"), "optimizer: expected fields"),
    "sampling_steps": (lambda: compare(sampling_steps=10), "sampling_steps: expected a list"),
    "sampler of compare": (
        lambda: compare(sampler="hean"),
        "sampler: unknown name 'hean'; did you",
    ),
    "fitted sampler": (
        lambda: compare(sampler={"name": "ancestral", "variance": "fitted"}),
        "sampler: a comparison fits no variance",
    ),
    "grid of compare": (
        lambda: compare(timesteps=None, grid={"name": "explicit", "gammas": [1.0, 0.0]}),
        "steps: the grid has 1, found 10",
    ),
    "grid of a chain": (
        lambda: compare(grid={"name": "explicit", "gammas": [1.0, 0.0]}),
        r"grid: the network of this chain is not trained at γ\(0\), expected a grid that ends",
    ),
    "grid of mean": (
        lambda: vdm.compare(["mean"], timesteps=10, sampling_steps=(10,), grid="karras"),
        "grid: the parameterization predicts on intervals of its chain, expected 'schedule'",
    ),
    "features": (lambda: compare(features=3), r"features: expected a callable \(data\)"),
    "network of no row": (
        lambda: compare(network={"eps": identity, "epz": identity}),
        "network: one for 'epz', which is not compared; did you mean 'eps'",
    ),
    "draws": (lambda: losses(draws=1.5), "draws: expected a whole number of at least 1, found 1.5"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name):
    refused(*ROWS[name])


def refused(call, message):
    """Check that a call raises a ValueError or TypeError of one line, not an error of JAX."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    line = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError), caught.type
    assert re.search(message, line) and "\n" not in line, line


def test_correct_calls_are_accepted():
    """Correct arguments pass the checks."""
    for call in (bound, generate, losses, step, weights):
        call()
    for schedule in map(schedule_of, vdm.schedules.SCHEDULES):
        params = schedule.init(KEY)
        assert np.isfinite(schedule.gamma(params, np.float32([0, 0.3, 1]))).all()
        vdm.interval(schedule, params, 0, 1)
        jax.jit(lambda t, s=schedule, p=params: s.gamma(p, t))(2.0)  # traced values are taken
    with jax.numpy_dtype_promotion("strict"):
        half = vdm.negative_elbo(
            lambda xt, gamma_t: xt.astype(jnp.bfloat16),
            X,
            KEY,
            schedule="linear",
            timesteps=np.int64(4),
        )
    assert half.matching.dtype == jnp.float32
