"""Arrays whose conversion would lose something, and values out of range, are refused at every door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_dtypes import bfloat16

import vdm_jax as vdm
from vdm_jax.data import Split, array_dataset, as_dataset, eval_batches, level_counts, train_batches
from vdm_jax.models.statistics import fit_statistics

pytestmark = pytest.mark.usefixtures("as_users")
KEY = jax.random.key(0)
LEVELS = np.random.default_rng(0).integers(0, 4, (20, 3)).astype(np.uint8)
FLOATS = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
DISCRETE, CONTINUOUS = vdm.Statistics((3,), 4), vdm.Statistics((3,), None)


def identity(xt, gamma_t):
    return xt * jnp.ones_like(gamma_t)


def dataset(x, levels=None):
    parts = {"train": Split(x, "train"), "test": Split(x, "test")}
    return array_dataset("own", version="1", levels=levels, **parts)


def model(statistics):
    likelihood = "gaussian" if statistics.levels is None else "softmax"
    network = {"name": "mlp", "width": 2, "depth": 1}
    return vdm.models.vdm(statistics, network=network, likelihood=likelihood)


def loss(statistics):
    def run(x):
        built = model(statistics)
        return built.loss(built.init(KEY), KEY, x)

    return run


def elbo(statistics):
    def run(x):
        built = model(statistics)
        return built.elbo(built.init(KEY), KEY, vdm.Batch(x, np.arange(len(x)), np.zeros(len(x))))

    return run


def bound(**settings):
    return lambda x: vdm.negative_elbo(identity, x, KEY, schedule="linear", **settings)


FOR_LEVELS = {
    "as_dataset": lambda x: as_dataset(x, levels=4),
    "as_dataset of a pair": lambda x: as_dataset((x, x), levels=4),
    "as_dataset of items": lambda x: as_dataset(list(x), levels=4),
    "as_dataset of labelled items": lambda x: as_dataset([(item, 0) for item in x], levels=4),
    "array_dataset": lambda x: dataset(x, 4),
    "level_counts": lambda x: level_counts(x, 4),
    "negative_elbo": bound(likelihood={"name": "softmax", "levels": 4}),
    "model.loss": loss(DISCRETE),
    "model.elbo": elbo(DISCRETE),
    "parameterization_losses": lambda x: vdm.parameterization_losses(
        {"eps": identity}, x, KEY, likelihood={"name": "softmax", "levels": 4}, draws=1
    ),
    **{
        name: lambda x, name=name: vdm.likelihoods.LIKELIHOODS[name](
            **({} if name == "bernoulli" else {"levels": 4} | LOG_COUNTS.get(name, {}))
        ).encode(x)
        for name in ("softmax", "histogram", "discretized_gaussian")
    },
}
LOG_COUNTS = {"histogram": {"log_counts": np.zeros(4)}}
FOR_FLOATS = {
    "as_dataset": as_dataset,
    "array_dataset": dataset,
    "negative_elbo": bound(),
    "model.loss": loss(CONTINUOUS),
    "gaussian": vdm.likelihoods.gaussian().encode,
    "parameterization_losses": lambda x: vdm.parameterization_losses({"eps": identity}, x, KEY),
}
CONVERTERS = {
    "train_batches": lambda x: train_batches(
        Split(x, "train"), batch_size=4, seed=0, start_step=0, stop_step=1
    ),
    "eval_batches": lambda x: eval_batches(Split(x, "test"), batch_size=4),
    "fit_statistics": lambda x: fit_statistics(x),
    "Mixture": lambda x: vdm.Mixture.of(np.ones(1), x[:1], np.ones((1, 3))),
    "effective_weights": lambda x: vdm.effective_weights(times=x[0]),
    "log_counts": lambda x: vdm.likelihoods.histogram(levels=3, log_counts=x),
}


def masked(x):
    return np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) % 7 == 0)


DOORS = {
    **{f"{name}, levels": (door, LEVELS) for name, door in FOR_LEVELS.items()},
    **{f"{name}, floats": (door, FLOATS) for name, door in FOR_FLOATS.items()},
    **{name: (door, FLOATS) for name, door in CONVERTERS.items()},
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_masked_arrays_are_refused(door):
    enter, x = door
    with pytest.raises(TypeError, match="masked array") as caught:
        enter(masked(x))
    assert "\n" not in str(caught.value)


OF_OTHER_KINDS = {
    "complex": FLOATS.astype(np.complex64),
    "objects": LEVELS.astype(object),
    "strings": LEVELS.astype(str),
    "dates": LEVELS.astype("datetime64[s]"),
    "records": np.zeros((20, 3), [("a", np.uint8)]),
}


@pytest.mark.parametrize("x", OF_OTHER_KINDS.values(), ids=OF_OTHER_KINDS)
@pytest.mark.parametrize("door", FOR_FLOATS.values(), ids=FOR_FLOATS)
def test_arrays_of_other_kinds_are_refused(door, x):
    with pytest.raises((TypeError, ValueError)) as caught:
        door(x)
    assert "\n" not in str(caught.value)


OUT_OF_RANGE = {
    "above": LEVELS + np.uint8(1),
    "below": LEVELS.astype(np.int16) - 1,
    "wraps in uint8": LEVELS.astype(np.int64) + 256,
    "wraps in int32": LEVELS.astype(np.int64) + 2**32,
}


@pytest.mark.parametrize("x", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
@pytest.mark.parametrize("door", FOR_LEVELS.values(), ids=FOR_LEVELS)
def test_integers_out_of_range_are_refused(door, x):
    with pytest.raises(ValueError, match=r"values in \[.*expected|expected .*values in \["):
        door(x)


@pytest.mark.parametrize("door", FOR_LEVELS.values(), ids=FOR_LEVELS)
def test_floats_for_levels_are_refused(door):
    with pytest.raises((TypeError, ValueError), match=r"expected|image"):
        door(FLOATS)


@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("door", FOR_FLOATS.values(), ids=FOR_FLOATS)
@pytest.mark.slow
def test_floats_of_every_precision_are_floats(door, dtype):
    door(FLOATS.astype(dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("door", ["as_dataset", "array_dataset"])
def test_data_that_are_not_finite_are_refused(door, value):
    x = FLOATS.copy()
    x[3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        FOR_FLOATS[door](x)


NO_LEVELS = [10.9, "4", True, np.float32(4), 1, 257, -4]


@pytest.mark.parametrize("levels", NO_LEVELS)
@pytest.mark.parametrize(
    "door",
    [
        lambda k: as_dataset(LEVELS, levels=k),
        lambda k: dataset(LEVELS, k),
        lambda k: vdm.compare(["eps"], LEVELS, levels=k),
    ],
    ids=["as_dataset", "array_dataset", "compare"],
)
def test_levels_are_a_whole_number(door, levels):
    with pytest.raises(ValueError, match=r"levels.*expected a whole number"):
        door(levels)


PAIRS = {
    "labels": (LEVELS, np.zeros(20, np.uint8)),
    "one-hot labels": (LEVELS, np.zeros((20, 10), np.uint8)),
    "column of labels": (LEVELS, np.zeros((20, 1), np.uint8)),
    "booleans and floats": (LEVELS > 1, FLOATS),
    "integers and booleans": (LEVELS, LEVELS > 1),
    "floats and integers": (FLOATS, LEVELS),
    "integers and floats": (LEVELS, FLOATS),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_pairs_that_are_no_splits_are_refused(pair):
    with pytest.raises((TypeError, ValueError), match="expected"):
        as_dataset(pair)


def test_booleans_are_two_levels():
    x = LEVELS > 1
    assert as_dataset(x).levels == 2
    likelihood = vdm.likelihoods.bernoulli()
    np.testing.assert_array_equal(likelihood.encode(x), likelihood.encode(x.astype(np.uint8)))


def test_traced_integers_out_of_range_give_nan():
    encode = vdm.likelihoods.softmax(levels=4).encode
    assert np.isnan(jax.jit(encode)(jnp.asarray([4, -1]))).all()
