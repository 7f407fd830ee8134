"""The loop: lines and checkpoints of a run do not depend on its dispatches, and divergence stops it."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.loop import fit
from vdm_jax.training.parallel import dispatcher, make_layout
from vdm_jax.training.profile import Profiler, parse_steps
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import Batch

SGD = optax.sgd(0.1)


def loss(params, key, batch):
    noise = jax.random.normal(key, batch.x.shape[:1])
    value = jnp.mean(jnp.square(batch.x @ params["w"] - noise))
    return value, {"loss": value, "bits_per_dim": value / 2}


def start(optimizer=SGD):
    return jax.jit(lambda: init_state({"w": jnp.ones(2)}, optimizer, jax.random.key(0)))()


def stacks(first, last, size, poison=None):
    """Batches of steps first..last−1, in stacks; the one of step `poison` has a NaN."""
    for low in range(first, last, size):
        steps = np.arange(low, min(low + size, last))
        x = np.cos(steps[:, None, None] + np.arange(6.0).reshape(3, 2)).astype(np.float32)
        x[steps == poison] = np.nan
        yield Batch(x, np.zeros(x.shape[:2], np.int32), np.zeros(x.shape[:2], np.float32))


def run(
    folder,
    last,
    *,
    size,
    poison=None,
    optimizer=SGD,
    every=3,
    checkpoint_every=4,
    state=None,
    profiler=None,
):
    """Fit to step `last` from what the folder has; return the state."""
    with CheckpointStore(folder / "checkpoints") as store:
        if store.latest() is not None:
            state = store.restore(jax.eval_shape(lambda: start(optimizer)))
        state = start(optimizer) if state is None else state
        first = int(state.step)
        with MetricsLog(folder, first) as log:
            return fit(
                state,
                dispatcher(make_layout("jit"), make_step(loss, optimizer), state, size),
                stacks(first, last, size, poison),
                steps=last,
                store=store,
                log=log,
                about={"name": "toy"},
                log_every=every,
                checkpoint_every=checkpoint_every,
                profiler=profiler,
            )


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return run(folder, 12, size=1), read_metrics(folder / "metrics.jsonl"), folder


def test_lines_are_means_at_the_multiples(unbroken):
    _, rows, _ = unbroken
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    step, state, losses = make_step(loss, SGD), start(), []
    for stack in stacks(0, 12, 1):
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], stack))
        losses.append(float(metrics["loss"]))
    means = np.asarray(losses).reshape(4, 3).mean(1)
    np.testing.assert_allclose([row["loss"] for row in rows], means, rtol=1e-5)
    np.testing.assert_allclose([row["bits_per_dim"] for row in rows], means / 2, rtol=1e-5)
    assert all(row.keys() == {"step", "loss", "bits_per_dim", "grad_norm"} for row in rows)


def test_checkpoints_are_at_the_multiples_and_at_the_end(unbroken, tmp_path):
    assert checkpoints(unbroken[2]) == [8, 12]
    run(tmp_path, 11, size=3)  # dispatches end at 3, 6, 9, 11
    assert checkpoints(tmp_path) == [9, 11]


@pytest.mark.parametrize(("stops", "size"), [([12], 5), ([5, 12], 1), ([4, 7, 12], 3)])
def test_stops_and_dispatches_change_nothing(unbroken, tmp_path, stops, size):
    """Neither in step with the lines nor with the checkpoints."""
    for last in stops:
        state = run(tmp_path, last, size=size)
    expected, rows, _ = unbroken
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    for a, b in zip(
        *(jax.tree.leaves(s._replace(key=None)) for s in (state, expected)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("size", "latest"), [(1, 4), (6, None)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, size, latest):
    safe = "none" if latest is None else f"step {latest}"
    message = f"loss is nan at step 6: training stopped; last good checkpoint: {safe}, in"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, 12, size=size, poison=5)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.latest() == latest
        if latest is not None:
            state = store.restore(jax.eval_shape(start))
            assert np.all(np.isfinite(state.params["w"]))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3]


@pytest.mark.parametrize(("steps", "size"), [((4, 6), 1), ((5, 6), 3), ((4, 100), 3)])
def test_steps_are_traced(tmp_path, monkeypatch, steps, size):
    """The dispatches that hold them: one trace, which Perfetto and TensorBoard open."""
    seen, whole = [], jax.profiler.start_trace
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda *a, **k: seen.append(a) or whole(*a, **k)
    )
    with Profiler(steps, tmp_path / "profile") as profiler:
        run(tmp_path, 9, size=size, profiler=profiler)
    assert len(seen) == 1 and not profiler.running
    (perfetto,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    }
    assert any("run" in str(name) for name in names)
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 1


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:3", "-1:4", "a:b", "1:2:3", "1.5:2"])
def test_what_is_no_range_of_steps(text):
    assert parse_steps("100:120") == (100, 120)
    with pytest.raises(
        ValueError, match="--profile: expected a range of steps such as 100:120, found"
    ):
        parse_steps(text)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """The last update of a run is seen by no loss any more."""

    def explode(updates, state, params=None):
        return jax.tree.map(lambda u: jnp.where(state == 3, jnp.inf, u), updates), state + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), explode)
    with pytest.raises(
        FloatingPointError, match=r"a parameter is not finite at step 4: .* step 2, in"
    ):
        run(tmp_path, 4, size=1, optimizer=optimizer, checkpoint_every=2)
    assert checkpoints(tmp_path) == [2]
