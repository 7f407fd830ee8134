"""The loop: lines and checkpoints do not depend on the dispatches, and divergence ends the run."""

import gzip
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.runtime.interrupt import Interrupted
from vdm_jax.runtime.profile import Profiler, parse_steps
from vdm_jax.training import checkpoint
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.loop import NonFinite, fit
from vdm_jax.training.meter import Meter
from vdm_jax.training.reader import CheckpointReader
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


def stacks(first, last, size, poison=()):
    """Yield stacks of batches of the steps first..last−1; those of the steps `poison` hold NaNs."""
    for low in range(first, last, size):
        steps = np.arange(low, min(low + size, last))
        x = np.cos(steps[:, None, None] + np.arange(6.0).reshape(3, 2)).astype(np.float32)
        x[np.isin(steps, poison)] = np.nan
        yield Batch(x, np.zeros(x.shape[:2], np.int32), np.zeros(x.shape[:2], np.float32))


def run(
    folder,
    last,
    *,
    size,
    poison=(),
    optimizer=SGD,
    every=3,
    checkpoint_every=4,
    state=None,
    profiler=None,
    max_nonfinite_steps=3,
    evaluate_every=None,
    evaluate=None,
):
    """Train to step `last` from the newest checkpoint of the folder; return the state."""
    with CheckpointStore(folder / "checkpoints") as store:
        if store.newest is not None:
            state = store.restore(jax.eval_shape(lambda: start(optimizer)))
        state = start(optimizer) if state is None else state
        first = int(state.step)
        with MetricsLog(folder, first) as metrics_log:
            return fit(
                state,
                dispatcher(make_layout("jit"), make_step(loss, optimizer), state, size),
                stacks(first, last, size, poison),
                steps=last,
                store=store,
                metrics_log=metrics_log,
                about=lambda step: {"name": "toy"},
                log_every=every,
                checkpoint_every=checkpoint_every,
                max_nonfinite_steps=max_nonfinite_steps,
                evaluate_every=evaluate_every,
                evaluate=evaluate,
                profiler=profiler,
            )


def checkpoints(folder):
    with CheckpointReader(folder / "checkpoints") as store:
        return store.steps()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return steps per dispatch -> the last state, the logged lines and the folder."""
    runs = {}
    for size in (1, 3, 5):
        folder = tmp_path_factory.mktemp("unbroken")
        runs[size] = run(folder, 12, size=size), read_metrics(folder / "metrics.jsonl"), folder
    return runs


def test_lines_are_means_at_the_multiples(unbroken):
    _, rows, _ = unbroken[1]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    step, state, losses = make_step(loss, SGD), start(), []
    for stack in stacks(0, 12, 1):
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], stack))
        losses.append(float(metrics["loss"]))
    means = np.asarray(losses).reshape(4, 3).mean(1)
    np.testing.assert_allclose([row["loss"] for row in rows], means, rtol=1e-5)
    np.testing.assert_allclose([row["bits_per_dim"] for row in rows], means / 2, rtol=1e-5)
    assert all(
        row.keys() == {"step", "loss", "bits_per_dim", "grad_norm", "skipped"} for row in rows
    )


def test_checkpoints_are_at_the_multiples_and_at_the_end(unbroken, tmp_path):
    assert checkpoints(unbroken[1][2]) == [8, 12]
    run(tmp_path, 11, size=3)  # dispatches end at 3, 6, 9, 11
    assert checkpoints(tmp_path) == [9, 11]


def leaves(state):
    return jax.tree.leaves(state._replace(key=None))


@pytest.mark.parametrize(("stops", "size"), [([12], 5), ([5, 12], 1), ([4, 7, 12], 3)])
def test_stops_change_nothing(unbroken, tmp_path, stops, size):
    """Stops may fall between lines and between checkpoints."""
    for last in stops:
        state = run(tmp_path, last, size=size)
    expected, rows, _ = unbroken[size]
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    for a, b in zip(leaves(state), leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dispatches_change_nothing_but_rounding(unbroken):
    for size in (3, 5):
        for a, b in zip(leaves(unbroken[size][0]), leaves(unbroken[1][0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


# ---------------------------------------------------------------- nonfinite steps


@pytest.mark.parametrize("size", [1, 4])
def test_nonfinite_step_is_skipped(tmp_path, capsys, size):
    """A bad update is neither applied nor averaged; two in a row, or four apart, do not end the run."""
    state = run(tmp_path, 12, size=size, poison=[2, 3, 6, 9])
    assert np.all(np.isfinite(state.params["w"])) and int(state.step) == 12
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [1, 1, 1, 1]
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]) for row in rows)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "not applied" in line]
    assert warnings[:2] == [
        "loss is nan at step 3: update not applied (1 in a row, the run ends at 3)",
        "loss is nan at step 4: update not applied (2 in a row, the run ends at 3)",
    ]
    assert len(warnings) == 4 and "step 7" in warnings[2] and "1 in a row" in warnings[3]


def test_an_interval_of_bad_steps_has_no_means(tmp_path):
    run(tmp_path, 9, size=1, poison=[3, 4, 5], max_nonfinite_steps=4)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[1] == {"step": 6, "skipped": 3.0} and "loss" in rows[2]


@pytest.mark.parametrize(("size", "latest"), [(1, 4), (6, None)])
def test_too_many_in_a_row_end_the_run(tmp_path, size, latest):
    safe = "none" if latest is None else f"step {latest}"
    message = f"loss is nan at step 6: training stopped; last good checkpoint: {safe}, in"
    with pytest.raises(NonFinite, match=message) as caught:
        run(tmp_path, 12, size=size, poison=[3, 4, 5])
    assert caught.value.step == 6 and caught.value.batch.x.shape == (3, 2)
    assert np.all(np.isnan(caught.value.batch.x))
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.newest == latest
        if latest is not None:
            state = store.restore(jax.eval_shape(start))
            assert np.all(np.isfinite(state.params["w"]))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3]


def test_streak_continues_after_a_restart(tmp_path):
    run(tmp_path, 5, size=1, poison=[3, 4])
    with pytest.raises(NonFinite, match="loss is nan at step 6"):
        run(tmp_path, 12, size=1, poison=[3, 4, 5])


def test_streak_respects_a_lower_limit(tmp_path):
    run(tmp_path, 5, size=1, poison=[3, 4])
    with pytest.raises(NonFinite, match="loss is nan at step 6"):
        run(tmp_path, 12, size=1, poison=[3, 4, 5], max_nonfinite_steps=2)


# ---------------------------------------------------------------- evaluation during training


def outcome_of(folder):
    """Return the lines, the best step, the newest step and its loop state."""
    with CheckpointReader(folder / "checkpoints") as store:
        latest = store.newest
        return (
            read_metrics(folder / "metrics.jsonl"),
            store.best(),
            latest,
            store.about(latest)["loop"],
        )


def five(state):
    """Return a test bound that is lowest at step 5."""
    return {"test_bits_per_dim": float(abs(5 - state.step))}


def test_nan_bound_is_not_the_best(tmp_path):
    bounds = iter([1.0, np.nan, 3.0, np.inf, 4.0])

    def evaluate(state):
        return {"a/test_bits_per_dim": next(bounds), "b/test_bits_per_dim": np.nan}

    run(tmp_path, 10, size=1, evaluate_every=2, evaluate=evaluate)
    assert checkpoints(tmp_path) == [2, 8, 10]
    with CheckpointReader(tmp_path / "checkpoints") as store:
        assert store.best() == 2


@pytest.mark.parametrize("last", [4, 9])
def test_interrupted_evaluation_is_repeated(tmp_path, last):
    """Lines and best step equal those of an uninterrupted run."""

    def interrupted(state):
        raise Interrupted(signal.SIGTERM)

    options = {"size": 1, "evaluate_every": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, last, evaluate=five, **options)
    with pytest.raises(Interrupted, match="at step 4; saved"):
        run(parts, last, evaluate=interrupted, **options)
    run(parts, last, evaluate=five, **options)
    assert outcome_of(parts) == outcome_of(whole) and outcome_of(whole)[1:3] == (4, last)


@pytest.mark.parametrize("every", [2, 4])
def test_failed_evaluation_loses_no_step(tmp_path, every):
    """The step is saved before its evaluation, which is repeated until it succeeds."""
    options = {"size": 1, "evaluate_every": every}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 9, evaluate=five, **options)

    def fail(state):
        raise OSError("out of memory")

    for _ in range(2):
        with pytest.raises(OSError, match="out of memory"):
            run(parts, 9, evaluate=fail, **options)
        assert checkpoints(parts) == [every]
    run(parts, 9, evaluate=five, **options)
    assert outcome_of(parts) == outcome_of(whole) and outcome_of(whole)[1:3] == (4, 9)


def test_step_is_saved_before_its_evaluation(tmp_path):
    """A kill during the evaluation loses no step."""
    seen = []

    def evaluate(state):
        seen.append(checkpoints(tmp_path)[-1])
        return {"test_bits_per_dim": 1.0}

    run(tmp_path, 9, size=1, evaluate_every=2, evaluate=evaluate)
    assert seen == [2, 4, 6, 8]


def test_failed_evaluation_is_dropped_if_disabled(tmp_path):
    def fail(state):
        raise OSError("out of memory")

    with pytest.raises(OSError, match="out of memory"):
        run(tmp_path, 9, size=1, evaluate=fail, evaluate_every=4)
    run(tmp_path, 9, size=1, evaluate=fail)
    assert checkpoints(tmp_path) == [8, 9]


@pytest.mark.parametrize("last", [4, 9])
@pytest.mark.parametrize("where", ["before the line", "after the line", "after the note"])
@pytest.mark.slow
def test_a_kill_at_the_end_of_an_evaluation(tmp_path, monkeypatch, where, last):
    """A resumed run logs and annotates the bound once."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"size": 1, "evaluate_every": 4, "evaluate": five}
    run(whole, last, **options)
    note = CheckpointStore.annotate

    def killed(self, *arguments):
        if where == "after the note":
            note(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "before the line":
            patched.setattr(Meter, "write", killed)
        else:
            patched.setattr(CheckpointStore, "annotate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(parts, last, **options)
    assert checkpoints(parts)[-1] == 4
    run(parts, last, **options)
    assert outcome_of(parts) == outcome_of(whole)


def test_failed_annotation_is_an_error_at_the_end(tmp_path, monkeypatch, capsys):
    """A run without its annotation is incomplete; when restarted, it repeats the evaluation."""
    options = {"size": 1, "evaluate_every": 4, "evaluate": five}

    def full(folder, annotations):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_annotations", full)
        with pytest.raises(OSError, match=r"annotations\.json of checkpoint 4 in .* No space left"):
            run(tmp_path, 4, **options)
    assert capsys.readouterr().err.count("the checkpoint itself is whole") == 1
    run(tmp_path, 4, **options)
    rows, best, latest, carried = outcome_of(tmp_path)
    assert (best, latest, carried["evaluation_due"]) == (4, 4, False)
    assert [row for row in rows if "test_bits_per_dim" in row] == [
        {"step": 4, "test_bits_per_dim": 1.0}
    ]


def test_the_best_bound_is_kept_beside_the_newest(tmp_path):
    bounds = iter([3.0, 1.0, 2.0, 2.5, 1.5])
    run(
        tmp_path,
        10,
        size=1,
        evaluate_every=2,
        evaluate=lambda s: {"test_bits_per_dim": next(bounds)},
    )
    assert checkpoints(tmp_path) == [4, 8, 10]
    with CheckpointReader(tmp_path / "checkpoints") as store:
        assert store.best() == 4 and store.newest == 10 and store.about(4)["bound"] == 1.0
        state = store.restore(jax.eval_shape(start), 4)
    assert int(state.step) == 4
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "test_bits_per_dim" in row]
    assert [(row["step"], row["test_bits_per_dim"]) for row in rows] == [
        (2, 3.0),
        (4, 1.0),
        (6, 2.0),
        (8, 2.5),
        (10, 1.5),
    ]


@pytest.mark.parametrize(("steps", "size"), [((4, 6), 1), ((5, 6), 3), ((4, 100), 3)])
@pytest.mark.slow
def test_steps_are_traced(tmp_path, monkeypatch, steps, size):
    """The dispatches of the given steps are in one trace, for Perfetto and TensorBoard."""
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
def test_invalid_ranges_of_steps(text):
    assert parse_steps("100:120") == (100, 120)
    with pytest.raises(
        ValueError, match="--profile: expected a range of steps such as 100:120, found"
    ):
        parse_steps(text)


def test_nonfinite_parameters_are_not_saved(tmp_path):
    """No loss would show the last update of a run."""

    def explode(updates, state, params=None):
        return jax.tree.map(lambda u: jnp.where(state == 3, jnp.inf, u), updates), state + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), explode)
    with pytest.raises(NonFinite, match=r"a parameter is not finite at step 4: .* step 2, in"):
        run(tmp_path, 4, size=1, optimizer=optimizer, checkpoint_every=2)
    assert checkpoints(tmp_path) == [2]
