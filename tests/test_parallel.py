"""Layouts: the same numbers on one device and on eight, however batch and state are divided."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from vdm_jax.runs.load import load
from vdm_jax.training.dispatch import PARALLEL, check_batch, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.state import TrainState

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("eight_devices.py")
NAMES = ["pmap 2", "pmap 8", "mesh 1", "mesh 4", "mesh 8", "mesh 8, fsdp 2", "mesh 8, fsdp 8"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Run eight_devices.py in another process; return its measurements and folder."""
    folder = tmp_path_factory.mktemp("eight")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(WORKER), str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert results["devices"] == 8 and {*NAMES, "jit"} <= results.keys()
    return results, folder


def distance(a, b):
    """Return the relative distance of two states, by the norm of the second."""
    a, b = np.asarray(a), np.asarray(b)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_device(measured, name):
    """Losses agree over 50 steps, of which the last dispatch is shorter."""
    divided, single = measured[0][name], measured[0]["jit"]
    assert len(single["losses"]) == len(divided["losses"]) == 50
    assert len({*single["losses"]}) == 50
    off = np.abs(np.divide(divided["losses"], single["losses"]) - 1)
    # rounding may move a probability of the learned times by one grain, and with it the times of one step
    assert np.sum(off > 1e-5) <= 1 and np.max(off) < 1.5e-5
    assert divided["devices"] == int(name.split(",")[0].split()[1])
    assert distance(divided["state"], single["state"]) < 1e-5  # parameters, averages, moments


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_are_bit_equal(measured, name):
    noise, times, dropout = measured[0][name]["drawn"]
    assert [noise, times, dropout] == measured[0]["jit"]["drawn"]
    assert len({times[i : i + 8] for i in range(0, len(times), 8)}) == 16  # one for each example


@pytest.mark.parametrize("name", ["jit", *NAMES])
def test_a_run_is_traced_once(measured, name):
    assert measured[0][name]["traces"] == 1


@pytest.mark.parametrize("name", ["jit", "pmap 2", "mesh 4", "mesh 8, fsdp 8"])
def test_a_checkpoint_continues_on_another_layout(measured, name):
    """A checkpoint of eight devices that held half of the state each continues on any layout."""
    continued, unbroken = measured[0]["continued"][name], measured[0]["mesh 8, fsdp 2"]["losses"]
    np.testing.assert_allclose(continued, unbroken[20:], rtol=1e-5)


def test_fsdp_divides_the_state(measured):
    """The arguments of the compiled program take 1/n of the bytes on each of n devices."""
    whole, *parts = measured[0]["state bytes"]
    assert whole > 1e7
    for n, size in zip((2, 4, 8), parts, strict=True):
        np.testing.assert_allclose(size, whole / n, rtol=0.01)


@pytest.mark.parametrize("name", ["mesh 8", "pmap 8"])
def test_one_all_reduce_and_nothing_per_layer(measured, name):
    counts = measured[0]["collectives"]
    for depth in ("1", "4"):
        assert sum(counts["mesh 1"][depth].values()) == 0
        assert counts[name][depth]["all-reduce"] == sum(counts[name][depth].values()) == 1


def test_accumulated_gradients(measured):
    assert distance(*measured[0]["accumulated"]) < 1e-5


@pytest.mark.parametrize("name", ["pmap 8", "mesh 8, fsdp 8"])
def test_runs_side_by_side_on_eight_devices(measured, name):
    losses = measured[0]["side by side"]
    assert np.asarray(losses["jit"]).shape == (4, 8)
    np.testing.assert_allclose(losses[name], losses["jit"], rtol=1e-5)


def test_evaluation_does_not_depend_on_device_order(measured):
    """297 examples are no multiple of 8: the last batch is padded."""
    np.testing.assert_allclose(measured[0]["backwards"], measured[0]["test"], rtol=1e-6)


def test_likelihood_estimates_do_not_depend_on_the_number_of_devices(measured):
    one, eight = measured[0]["estimates"].values()
    assert all(np.isfinite(one))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_samples_are_drawn_in_parts(measured):
    single, each_of_eight = measured[0]["sampling"]
    np.testing.assert_allclose(each_of_eight, single / 8, rtol=0.05)


def test_a_run_of_eight_devices_is_loaded_by_one(measured):
    results, folder = measured
    trained = load(folder / "run", parallel="jit")
    assert len(trained.state.step.devices()) == 1
    np.testing.assert_allclose(trained.bits_per_dim(), results["test"], rtol=1e-6)
    samples = np.asarray(trained.sample(jax.random.key(0), 5, steps=3), np.int64)
    assert np.mean(samples == np.asarray(results["samples"])) > 0.99  # a level may round either way


# ---------------------------------------------------------------- one device


def test_layouts_of_one_device():
    for name in ("auto", *PARALLEL):
        layout = make_layout(name)
        assert layout.mesh.size == 1
        check_batch(layout, 49)
    assert make_layout().axis_name is None and make_layout("pmap").axis_name == "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mes",), r"parallel: unknown name 'mes'; did you mean 'mesh'\? choices: auto, jit, mesh"),
        (("pmap", 2), r"fsdp: needs parallel = 'mesh', found 2 under 'pmap'"),
        (("auto", 2), r"fsdp: needs parallel = 'mesh', found 2 under 'jit'"),
        (("mesh", 2), r"fsdp: expected a divisor of 1 devices, found 2"),
        (("mesh", 0), r"fsdp: expected a divisor of 1 devices, found 0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_layout(*arguments)


ELSEWHERE = AbstractMesh((1, 8), ("data", "fsdp"))


def test_indivisible_batch():
    layout = make_layout("mesh")._replace(mesh=ELSEWHERE)
    check_batch(layout, 48)
    message = r"49 examples cannot be divided over 8 devices \(1 process of 8\)"
    with pytest.raises(ValueError, match=message):
        check_batch(layout, 49)


def test_largest_divisible_axis_is_divided():
    """The axis of runs is never divided."""
    layout = make_layout("mesh")._replace(mesh=ELSEWHERE)
    shapes = {(16, 64): (None, "fsdp"), (64, 16): ("fsdp",), (3, 8, 9): (None, "fsdp"), (9,): ()}
    for runs in ((), (128,)):
        for shape, spec in (shapes | {(): ()}).items():
            step, leaf = (jax.ShapeDtypeStruct((*runs, *d), np.float32) for d in ((), shape))
            state = TrainState(step, leaf, leaf, leaf, None, step)
            expected = (*[None] * len(runs), *spec) if spec else ()
            assert tuple(shardings(layout, state).params.spec) == expected
