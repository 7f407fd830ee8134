"""Files of a checkpoint damaged in every way: the step is not used, and that is said."""

import random
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
from harness import CONFIG, UNREPORTED, continued_from, digest, steps

from vdm_jax import load
from vdm_jax.runtime.manifest import verify
from vdm_jax.training.checkpoint import CheckpointStore

LONGER = "--config.train.steps=48"
WAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def files(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path, bit):
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def longer(unbroken, forks, tmp_path_factory):
    """The digest of the unbroken run at step 48."""
    folder = tmp_path_factory.mktemp("longer")
    shutil.copytree(unbroken[0], folder / "run")
    assert forks(folder, CONFIG, "--workdir=run", LONGER).status == 0
    return digest(folder / "run")


def go_on(forks, folder, longer):
    """Train the damaged run to step 48; it falls back to step 32 and says why, or it is an error."""
    outcome = forks(folder, CONFIG, "--workdir=run", LONGER, fault=UNREPORTED)
    assert outcome.status == 0, outcome.err
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert re.search(
        r"checkpoint 40 in .* is damaged: .*; set aside as 40\.damaged; going back to step 32",
        warning,
    )
    assert continued_from(outcome) == 32
    assert digest(folder / "run") == longer
    return warning.split("is damaged: ")[1].split(";")[0]


@pytest.mark.faults
@pytest.mark.parametrize("way", WAYS)
def test_every_file_of_the_newest_step(unbroken, longer, forks, tmp_path, note, way):
    whole, found = unbroken[0], {}
    for i, path in enumerate(files(whole / "checkpoints" / "40")):
        name = str(path.relative_to(whole / "checkpoints" / "40"))
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder / "run")
        broken = folder / "run" / "checkpoints" / "40" / name
        if way == "emptied" and not broken.stat().st_size:
            continue
        WAYS[way](broken)
        found[name] = go_on(forks, folder, longer)
        shutil.rmtree(folder)
    assert len(found) > 10
    note(f"a file {way}", files=len(found), bit_equal=True, said=found)


BOUND = re.compile(r"^test: .*$", re.MULTILINE)


def what_is_said(forks, folder, longer, bound):
    """Report the damaged run, then train it to step 48; return the lines about the damage of each.

    Every result is that of the undamaged run, or an error instead of a result.
    """
    said = []
    for flags, fault in (([], None), ([LONGER], UNREPORTED)):
        outcome = forks(folder, CONFIG, "--workdir=run", *flags, fault=fault)
        assert outcome.status in (0, 2) and "Traceback" not in outcome.err, outcome.err
        said += [x for x in outcome.err.splitlines() if x.startswith(("warning: ", "error: "))]
        if outcome.status == 0:
            result = digest(folder / "run") if flags else BOUND.search(outcome.out)[0]
            assert said or result == (longer if flags else bound), "another result, and no word"
    return said


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_any_file_of_a_run(unbroken, longer, forks, tmp_path, note, seed):
    """A hundred flipped bits and truncations in all, half of them outside of the checkpoints.

    Each is noticed, in a line that names the file or its checkpoint, or harmless: the results are the same.
    """
    draw, whole, said = random.Random(seed), unbroken[0], {}
    (bound,) = BOUND.findall((whole.parent / "said").read_text())
    for i in range(25):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder / "run")
        run = folder / "run"
        inside = run / "checkpoints" / draw.choice(["40", "40", "40", "32"])
        path = draw.choice(
            [
                p
                for p in files(inside if i % 2 else run)
                if p.stat().st_size and (i % 2 or "checkpoints" not in p.parts)
            ]
        )
        size = path.stat().st_size
        if i % 4 < 2:
            flip(path, draw.randrange(8 * size))
        else:
            path.write_bytes(path.read_bytes()[: draw.randrange(size)])
        name = f"{i}: {path.relative_to(run)}"
        said[name] = what_is_said(forks, folder, longer, bound)
        if said[name]:
            step = path.relative_to(run).parts[1] if "checkpoints" in path.parts else path.name
            assert any(step in line for line in said[name]), said[name]
        shutil.rmtree(folder)
    noticed = sum(map(bool, said.values()))
    note("any file damaged", seed=seed, noticed=noticed, harmless=25 - noticed, said=said)


@pytest.mark.slow
def test_bits_and_files_are_noticed(copy):
    """The quick one: every file in every way, and a thousand bits, by the function that restoring calls."""
    step, draw = copy / "checkpoints" / "40", random.Random(1)
    assert verify(step) is None
    for path in files(step):
        content, name = path.read_bytes(), path.relative_to(step).as_posix()
        for way, damage in WAYS.items():
            if content or way == "deleted":
                damage(path)
                assert name in (verify(step) or ""), (name, way)
                path.write_bytes(content)
    for _ in range(1000):
        path = draw.choice([p for p in files(step) if p.stat().st_size])
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert verify(step) is not None, (path, bit)
        flip(path, bit)
    assert verify(step) is None


@pytest.mark.slow
def test_a_run_falls_back(copy, longer, forks, note):
    (data,) = (copy / "checkpoints" / "40" / "state" / "d").iterdir()
    flip(data, 77)
    assert "CRC-32" in go_on(forks, copy.parent, longer)
    assert steps(copy) == [40, 48]


@pytest.mark.slow
def test_nothing_whole_is_an_error_and_nothing_is_lost(copy, forks):
    for step in (32, 40):
        WAYS["deleted"](copy / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
    for mode in ("train", "evaluate"):
        outcome = forks(copy.parent, CONFIG, "--workdir=run", LONGER, f"--mode={mode}")
        assert outcome.status == 2
        assert outcome.last == (
            f"error: no checkpoint in {copy}/checkpoints is whole: "
            "40: _CHECKPOINT_METADATA is missing; 32: _CHECKPOINT_METADATA is missing; "
            "move them away to start anew"
        )
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"32", "40", "lock"}


@pytest.mark.slow
def test_a_reader_changes_nothing(copy, forks):
    """Not even a damaged step, or one that is being written: the run may be going on."""
    flip(copy / "checkpoints" / "40" / "about" / "metadata", 3)
    (copy / "checkpoints" / "48").mkdir()
    (copy / "checkpoints" / "56.orbax-checkpoint-tmp").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")}
    outcome = forks(copy.parent, CONFIG, "--workdir=run", "--mode=evaluate")
    assert outcome.status == 0 and "EMA weights of step 32" in outcome.out
    assert "checkpoint 40 in" in outcome.err and "going back to step 32" in outcome.err
    assert {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")} == before


# ---------------------------------------------------------------- of another run

MISFITS = {  # what is asked for, and what is said of the leaf or of the field
    "width": (
        ["--config.model.network.width=9"],
        r"config\.model\.network\.width: 8 there, 9 here",
    ),
    "depth": (
        ["--config.model.network.depth=2"],
        r"config\.model\.network\.depth: 1 there, 2 here",
    ),
    "optimizer": (
        ["--config.optimizer.accumulate=2"],
        r"config\.optimizer\.accumulate: 1 there, 2 here",
    ),
    "side by side": (
        ["--config.sweep.seeds=(0, 1)"],
        r"config\.sweep\.seeds: \[\] there, \[0, 1\] here",
    ),
    "type": ([], r"expected float32\[.*\] at state\.ema_params.*, found float16\[.*\]"),
    "schedule": (
        ["--config.model.schedule.gamma_max=4.0"],
        r"config\.model\.schedule\.gamma_max: 5\.0 there, 4\.0",
    ),
    "batch size": (["--config.train.batch_size=8"], r"config\.train\.batch_size: 16 there, 8 here"),
    "seed": (["--config.seed=1"], r"config\.seed: 0 there, 1 here"),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", MISFITS)
def test_the_checkpoint_of_another_config(copy, forks, note, kind):
    """The config beside it is gone: what the checkpoint says of itself decides."""
    flags, message = MISFITS[kind]
    if kind == "type":
        save_with_half_precision(copy)
    (copy / "config.json").unlink()
    before = steps(copy)
    outcome = forks(copy.parent, CONFIG, "--workdir=run", LONGER, *flags)
    assert outcome.status == 2 and steps(copy) == before
    assert re.match(
        rf"error: checkpoint {before[-1]} in {copy}/checkpoints: .*{message}", outcome.last
    )
    note("a checkpoint of another config", kind=kind, said=outcome.last.split("checkpoints: ")[1])


def save_with_half_precision(run):
    """A step 41 whose average is of another type."""
    state = load(run).state
    average = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state.ema_params)
    with CheckpointStore(run / "checkpoints") as store:
        about = store.about(40)
        store.save(state._replace(step=state.step + 1, ema_params=average), about)
