"""Checkpoints: what is saved comes back bit for bit, and what does not fit is one line."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.training import checkpoint, manifest
from vdm_jax.training.checkpoint import LIBRARIES, CheckpointStore
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step

OPTIMIZER, _ = make_optimizer(
    learning_rate=0.1,
    warmup_steps=2,
    decay_steps=9,
    decay_to=0.1,
    weight_decay=0.01,
    b1=0.9,
    b2=0.99,
    clip_norm=1.0,
    accumulate=2,
)


def loss(params, key, x):
    output = jnp.mean(x @ params["w"], 0) + params["b"]
    value = jnp.mean(jnp.square(output - jax.random.normal(key, ())))
    return value, {"loss": value}


def start(width=3, dtype="float32", optimizer=OPTIMIZER, bias="b"):
    params = {"w": jnp.ones((width, 2), dtype), bias: jnp.zeros(2)}
    return init_state(params, optimizer, jax.random.key(7))


def shapes(**changes):
    return jax.eval_shape(lambda: start(**changes))


def numbers(state):
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.array(leaf) for leaf in jax.tree.leaves(plain)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the states of steps 1 to 3, the numbers of each, and the last state."""
    folder = tmp_path_factory.mktemp("checkpoints")
    step = jax.jit(make_step(loss, OPTIMIZER, ema_decay=0.9), donate_argnums=0)
    state, seen = start(), {}
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    with CheckpointStore(folder) as store:
        for i in range(1, 4):
            state, _ = step(state, x)
            seen[i] = numbers(state)
            store.save(state, {"note": i, "third": 1 / 3})  # the next step overwrites its buffers
    return folder, seen, state


def test_what_is_saved_comes_back_bit_for_bit(saved):
    folder, seen, last = saved
    with CheckpointStore(folder) as store:
        for step, restored in ((3, store.restore(shapes())), (2, store.restore(shapes(), 2))):
            assert_same(numbers(restored), seen[step])
            assert jax.tree.structure(restored) == jax.tree.structure(last)
            assert restored.key.dtype == last.key.dtype  # a typed key
            assert int(restored.step) == step and restored.step.dtype == jnp.int32
    assert any(np.any(a != b) for a, b in zip(seen[2], seen[3], strict=True))


def test_the_two_newest_are_kept(saved):
    folder, _, last = saved
    with CheckpointStore(folder) as store:
        assert store.latest() == 3
        assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "3"]
        store.save(last, {"note": "saved again"})
        assert store.about(3)["note"] == 3
        with pytest.raises(FileNotFoundError):
            store.restore(shapes(), 1)


def test_a_checkpoint_says_what_it_is(saved):
    folder, _, _ = saved
    with CheckpointStore(folder) as store:
        about = store.about(3)
    assert about["note"] == 3 and about["third"] == 1 / 3
    assert (
        about["versions"].keys() == set(LIBRARIES) and about["versions"]["jax"] == jax.__version__
    )
    assert about["arrays"][".params['w']"] == "float32[3, 2]"


def test_an_unfinished_save_is_no_checkpoint_and_in_nobodys_way(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp"  # of a killed run
    (left / "state").mkdir(parents=True)
    state = start()
    with CheckpointStore(tmp_path) as store:
        assert store.latest() is None
        store.save(state._replace(step=jnp.asarray(3, jnp.int32)), {})
    with CheckpointStore(tmp_path) as store:
        assert store.latest() == 3
        assert_same(numbers(store.restore(shapes()))[1:], numbers(state)[1:])


MISFITS = [
    ({"width": 4}, r"expected float32\[4, 2\] at state\.params\['w'\], found float32\[3, 2\]"),
    ({"dtype": "float16"}, r"expected float16\[3, 2\] at state\.params\['w'\], found float32"),
    ({"bias": "c"}, r"expected float32\[2\] at state\.params\['c'\], found nothing"),
    ({"optimizer": optax.sgd(0.1)}, r"expected nothing at state\.opt_state.*, found int32\[\]"),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_another_state_does_not_fit(saved, changes, message):
    folder, _, _ = saved
    where = re.escape(f"checkpoint 3 in {folder}: ")
    with (
        CheckpointStore(folder) as store,
        pytest.raises(ValueError, match=f"^{where}{message}") as caught,
    ):
        store.restore(shapes(**changes))
    assert "\n" not in str(caught.value)


def test_nothing_to_restore(tmp_path):
    with CheckpointStore(tmp_path / "new") as store:
        assert store.latest() is None
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}/new"):
            store.restore(shapes())


# ---------------------------------------------------------------- what goes wrong


def test_a_file_that_cannot_be_read_says_nothing_of_the_step(saved, tmp_path, monkeypatch):
    """An error of the file system is no damage: nothing is set aside."""
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)

    def refuse(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "_fingerprint", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        CheckpointStore(folder)
    monkeypatch.undo()
    with CheckpointStore(folder) as store:  # nor is it locked
        assert store.latest() == 3
        assert_same(numbers(store.restore(shapes())), saved[1][3])


def test_a_reader_of_a_run_that_goes_on(saved, tmp_path, monkeypatch):
    """Whose newest step is deleted while it is verified, or before it is restored."""
    folder, whole = tmp_path / "copy", manifest.verify
    shutil.copytree(saved[0], folder)

    def deleted_meanwhile(path):
        if path.name == "3":
            shutil.rmtree(path)
        return whole(path)

    monkeypatch.setattr(checkpoint, "verify", deleted_meanwhile)
    with CheckpointStore(folder, read_only=True) as store:
        assert store.latest() == 2
    monkeypatch.undo()
    shutil.copytree(saved[0] / "3", folder / "3")
    with CheckpointStore(folder, read_only=True) as store:
        assert store.latest() == 3
        shutil.rmtree(folder / "3")
        assert_same(numbers(store.restore(shapes())), saved[1][2])


def test_older_steps_are_not_saved_and_the_same_one_on_demand(saved, tmp_path):
    folder, last = tmp_path / "copy", saved[2]
    shutil.copytree(saved[0], folder)
    with CheckpointStore(folder, best=True) as store:
        with pytest.raises(ValueError, match="step 2 is older than 3"):
            store.save(last._replace(step=jnp.asarray(2, jnp.int32)), {})
        store.save(last, {"note": "not"})
        store.save(last, {"note": "again"}, bound=1.5, again=True)
    with CheckpointStore(folder) as store:
        assert store.whole() == [2, 3] and store.best() == 3
        assert store.about(3)["note"] == "again" and store.about(3)["bound"] == 1.5
        assert_same(numbers(store.restore(shapes())), numbers(last))


def test_a_damaged_best_is_said(saved, tmp_path):
    said, folder = [], tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    (folder / "2" / "about" / "metadata").write_text("{}")
    with CheckpointStore(folder, read_only=True, say=said.append) as store:
        assert store.best() is None
    assert (
        len(said) == 1 and "checkpoint 2 in" in said[0] and "about/metadata has 2 bytes" in said[0]
    )
