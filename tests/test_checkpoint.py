"""Checkpoints: a restored state is bit-equal, and one that does not fit is an error of one line."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.runtime import manifest
from vdm_jax.runtime.files import write_checked
from vdm_jax.runtime.versions import LIBRARIES
from vdm_jax.training import checkpoint, recovery
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.recovery import LOOP_TYPES
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


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save steps 1 to 3; return the folder, the numbers of each step and the last state."""
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


def test_restored_state_is_bit_equal(saved):
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
        assert store.newest == 3
        assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "3"]
        store.save(last, {"note": "saved again"})
        assert store.about(3)["note"] == 3
        with pytest.raises(FileNotFoundError):
            store.restore(shapes(), 1)


def test_checkpoint_describes_itself(saved):
    folder, _, _ = saved
    with CheckpointStore(folder) as store:
        about = store.about(3)
    assert about["note"] == 3 and about["third"] == 1 / 3
    assert (
        about["versions"].keys() == set(LIBRARIES) and about["versions"]["jax"] == jax.__version__
    )
    assert about["arrays"][".params['w']"] == "float32[3, 2]"


def test_unfinished_save_is_ignored(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp"  # left by a killed run
    (left / "state").mkdir(parents=True)
    state = start()
    with CheckpointStore(tmp_path) as store:
        assert store.newest is None
        store.save(state._replace(step=jnp.asarray(3, jnp.int32)), {})
    with CheckpointStore(tmp_path) as store:
        assert store.newest == 3
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
        assert store.newest is None
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}/new"):
            store.restore(shapes())


# ---------------------------------------------------------------- errors, annotations and damage


def test_read_error_is_not_damage(saved, tmp_path, monkeypatch):
    """A step that the file system cannot read is not set aside as damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)

    def refuse(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "_crc32", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        CheckpointStore(folder)
    monkeypatch.undo()
    with CheckpointStore(folder) as store:  # and it is not locked
        assert store.newest == 3
        assert_same(numbers(store.restore(shapes())), saved[1][3])


def test_reader_of_a_running_run(saved, tmp_path, monkeypatch):
    """The newest step may be deleted while it is verified, or before it is restored."""
    folder, whole = tmp_path / "copy", manifest.verify
    shutil.copytree(saved[0], folder)

    def deleted_meanwhile(path):
        if path.name == "3":
            shutil.rmtree(path)
        return whole(path)

    monkeypatch.setattr(recovery, "verify", deleted_meanwhile)
    with CheckpointReader(folder) as store:
        assert store.newest == 2
    monkeypatch.undo()
    shutil.copytree(saved[0] / "3", folder / "3")
    with CheckpointReader(folder) as store:
        assert store.newest == 3
        shutil.rmtree(folder / "3")
        assert_same(numbers(store.restore(shapes())), saved[1][2])


@pytest.fixture
def copied(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    return folder


def with_step(state, step):
    return state._replace(step=jnp.asarray(step, jnp.int32))


def test_older_and_repeated_steps_are_not_saved(saved, copied):
    last = saved[2]
    with CheckpointStore(copied) as store:
        with pytest.raises(ValueError, match="step 2 is older than 3"):
            store.save(with_step(last, 2), {})
        store.save(last, {"note": "not"})
    with CheckpointStore(copied) as store:
        assert store.whole() == [2, 3] and store.about(3)["note"] == 3


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_annotations_change_no_other_file(saved, copied):
    before = contents(copied / "3")
    with CheckpointStore(copied) as store:
        for bound in (2.5, 1.5):
            store.annotate(3, {"note": "later", "bound": bound})
            assert store.about(3)["bound"] == bound
        store.annotate(2, {"bound": 1.0})  # only the newest step can be annotated
    after = contents(copied / "3")
    assert after.pop(manifest.ANNOTATIONS) and after == before
    with CheckpointStore(copied) as store:
        assert store.whole() == [2, 3] and store.best() == 3 and not store.failure
        assert store.about(3)["note"] == "later" and store.about(3)["third"] == 1 / 3
        assert store.about(3)["bound"] == 1.5 and "bound" not in store.about(2)
        assert_same(numbers(store.restore(shapes())), numbers(saved[2]))


@pytest.mark.parametrize("earlier", [None, 2.0])
def test_failed_annotation_loses_nothing(saved, copied, monkeypatch, earlier):
    """Earlier annotations survive a full disk and a kill during a write."""
    lines, whole = [], type(copied).replace
    with CheckpointStore(copied, log=lines.append) as store:
        if earlier is not None:
            store.annotate(3, {"bound": earlier})

    def full(folder, annotations):
        raise OSError(28, "No space left on device", str(folder))

    def killed(path, target):
        raise KeyboardInterrupt

    with CheckpointStore(copied, log=lines.append) as store:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "write_annotations", full)
            store.annotate(3, {"bound": 1.0})
        assert lines == [f"{store.failure}; the checkpoint itself is whole"]
        assert "annotations.json of checkpoint 3 in" in lines[0] and "No space left" in lines[0]
        assert store.best() == (3 if earlier else None) and store.newest == 3
        with monkeypatch.context() as patched:
            patched.setattr(type(copied), "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                store.annotate(3, {"bound": 1.0})
    assert type(copied).replace is whole
    with CheckpointStore(copied) as store:
        assert store.whole() == [2, 3] and store.about(3).get("bound") == earlier
        store.annotate(3, {"bound": 0.5})  # a leftover file does not matter
        store.save(with_step(saved[2], 4), {})
        store.wait()
        assert store.best() == 3 and store.failure is None


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b"[1, 2]"])
def test_damaged_annotation_is_ignored(saved, copied, damage):
    """The damage is reported once, and the step itself stays valid."""
    with CheckpointStore(copied) as store:
        store.annotate(3, {"note": "later", "bound": 1.5})
    path, lines = copied / "3" / manifest.ANNOTATIONS, []
    path.write_bytes(damage(path.read_bytes()))
    with CheckpointStore(copied, log=lines.append) as store:
        assert store.newest == 3 and store.about(3)["note"] == 3 and store.best() is None
        assert_same(numbers(store.restore(shapes())), numbers(saved[2]))
    assert lines == [
        f"checkpoint 3 in {copied}: annotations.json cannot be read or has another checksum; it is "
        "ignored"
    ]


def test_flipped_bits_of_annotations_are_detected(copied):
    with CheckpointStore(copied) as store:
        store.annotate(3, {"note": "later", "bound": 1.5, "nan": float("nan")})
    path = copied / "3" / manifest.ANNOTATIONS
    content, whole = path.read_bytes(), manifest.read_annotations(copied / "3")
    assert whole[1] is None and whole[0]["nan"] is None
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert manifest.read_annotations(copied / "3")[1] is not None, bit


def test_best_checkpoint_is_kept_without_evaluations(saved, tmp_path):
    """A resumed run may have evaluations switched off."""
    bounds = {1: 1.0, 2: 2.0, 3: 3.0}
    with CheckpointStore(tmp_path) as store:
        for step, bound in bounds.items():
            store.save(with_step(saved[2], step), {})
            store.annotate(step, {"bound": bound})
    (tmp_path / "0").mkdir()  # half deleted, so it cannot be the best
    (tmp_path / "0" / "state").write_text("")
    manifest.write_manifest(tmp_path / "0")
    (tmp_path / "0" / "state").unlink()
    lines = []
    with CheckpointStore(tmp_path, log=lines.append) as store:
        for step in (4, 5, 6):
            store.save(with_step(saved[2], step), {})
    assert not lines
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [1, 5, 6] and store.best() == 1


def test_damaged_best_is_reported_before_it_is_replaced(saved, copied):
    lines = []
    with CheckpointStore(copied) as store:
        store.annotate(3, {"bound": 1.0})
        store.save(with_step(saved[2], 4), {})
        store.annotate(4, {"bound": 2.0})
        store.save(with_step(saved[2], 5), {})
    (copied / "3" / "about" / "metadata").write_text("{}")
    with CheckpointStore(copied, log=lines.append) as store:
        for step in (6, 7):
            store.save(with_step(saved[2], step), {})
    (line,) = lines
    assert line.startswith(f"checkpoint 3 in {copied} is damaged: about/metadata has 2 bytes")
    with CheckpointStore(copied) as store:
        assert store.steps() == [4, 6, 7] and store.best() == 4


def test_damaged_best_is_reported(saved, tmp_path):
    lines, folder = [], tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    (folder / "2" / "about" / "metadata").write_text("{}")
    with CheckpointReader(folder, log=lines.append) as store:
        assert store.best() is None
    assert (
        len(lines) == 1
        and "checkpoint 2 in" in lines[0]
        and "about/metadata has 2 bytes" in lines[0]
    )


def copy_of(step, folder, to):
    shutil.copytree(folder / step, folder / to)


RENAMED = {
    "copied": lambda folder: copy_of("2", folder, "7"),
    "renamed": lambda folder: (folder / "3").rename(folder / "7"),
}


@pytest.mark.parametrize("change", RENAMED.values(), ids=RENAMED)
def test_step_under_another_number_is_damaged(saved, copied, change):
    change(copied)
    lines = []
    with CheckpointReader(copied, log=lines.append) as store:
        newest = store.newest
    with CheckpointStore(copied, log=lines.append) as store:
        assert store.newest == newest < 7
        store.save(with_step(saved[2], 8), {})  # nothing blocks the run
    assert len(lines) == 2 and all("renamed or copied" in line for line in lines)
    assert (copied / "7.damaged").exists()


def sealed(folder, change):
    """Change a step and update its manifest."""
    change(folder)
    (folder / manifest.MANIFEST).unlink()
    manifest.write_manifest(folder)


def about_of(content):
    def change(folder):
        path = folder / "about" / "metadata"
        text = path.read_text() if callable(content) else content
        path.write_text(content(json.loads(text)) if callable(content) else text)

    return change


HOSTILE = {
    "deep": about_of("[" * 10**5),
    "list": about_of("[]"),
    "empty": about_of(""),
    "nan": about_of('{"step": 3, "arrays": {}, "loop": NaN}'),
    "another step": about_of(lambda about: json.dumps(about | {"step": 2})),
    "arrays of another type": about_of(lambda about: json.dumps(about | {"arrays": []})),
    **{
        f"{name} of another type": about_of(
            lambda about, name=name: json.dumps(about | {"loop": {name: "many"}})
        )
        for name in LOOP_TYPES
    },
    "loop of another type": about_of(lambda about: json.dumps(about | {"loop": 1})),
    "missing": lambda folder: (folder / "about" / "metadata").unlink(),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_description_falls_back(saved, copied, change):
    sealed(copied / "3", change)
    lines = []
    with CheckpointReader(copied, log=lines.append) as store:
        assert store.newest == 2
        assert_same(numbers(store.restore(shapes())), saved[1][2])
    assert len(lines) == 1 and "checkpoint 3" in lines[0] and "damaged" in lines[0]


@pytest.mark.parametrize("name", ["../../outside", "/dev/zero", "fifo", "link", "folder"])
def test_manifest_reads_regular_files_of_its_folder_only(copied, tmp_path, name):
    (tmp_path / "outside").write_text("")
    step = copied / "3"
    (step / "folder").mkdir()
    content = json.loads((step / manifest.MANIFEST).read_text())
    files = {"manifest.json": content["name"], **content["files"], name: [0, 0]}
    del files["manifest.json"]
    write_checked(step / manifest.MANIFEST, {"name": "3", "files": files})
    if name == "fifo":
        os.mkfifo(step / name)
    elif name == "link":
        (step / name).symlink_to(tmp_path / "outside")
    assert manifest.verify(step) == f"{name} is missing"


def test_links_in_the_folder_are_refused(copied, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for place in ("lock", "4", "3.orbax-checkpoint-tmp-1"):
        (copied / place).unlink(missing_ok=True)
        (copied / place).symlink_to(outside / place)
        for opened in (CheckpointReader, CheckpointStore):
            with pytest.raises(OSError, match=r"link"):
                opened(copied)
        (copied / place).unlink()
    assert not any(outside.iterdir())


GONE = {
    "deleted": lambda folder: shutil.rmtree(folder),
    "replaced": lambda folder: (shutil.rmtree(folder), folder.mkdir(), (folder / "lock").touch()),
}


@pytest.mark.parametrize("word", GONE)
def test_folder_deleted_during_a_run(saved, copied, word):
    with CheckpointStore(copied) as store:
        store.poll()
        GONE[word](copied)
        doors = store.poll, store.check_owner, lambda: store.save(with_step(saved[2], 4), {})
        for door in (*doors, lambda: store.annotate(3, {"bound": 1.0})):
            with pytest.raises(OSError, match=word):
                door()


def test_reader_of_a_run_that_prunes(saved, copied, monkeypatch):
    """The best and the newest step may be deleted between their choice and their restoration."""
    with CheckpointStore(copied) as store:
        store.annotate(3, {"bound": 1.0})
    for method in ("restore", "restore_best"):
        folder = copied.with_name(method)
        shutil.copytree(copied, folder)
        with CheckpointStore(folder) as store:
            store.save(with_step(saved[2], 4), {})
            store.annotate(4, {"bound": 2.0})
        with CheckpointReader(folder) as store:
            if method == "restore_best":
                assert store.best() == 3
            shutil.rmtree(folder / {"restore": "4", "restore_best": "3"}[method])
            restored = getattr(store, method)(shapes())
        assert int(restored.step) == {"restore": 3, "restore_best": 4}[method]
