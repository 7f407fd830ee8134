"""Damaged files of a checkpoint: the step is not used, and the damage is reported."""

import random
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
from harness import CONFIG, UNREPORTED, continued_from, digest, steps
from thinned import weekly_except

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
    """Return the digest of the unbroken run at step 48."""
    folder = tmp_path_factory.mktemp("longer")
    shutil.copytree(unbroken[0], folder / "run")
    assert forks(folder, CONFIG, "--workdir=run", LONGER).status == 0
    return digest(folder / "run")


def resume_at_32(forks, folder, longer):
    """Train the damaged run to step 48 from step 32; return the reported damage."""
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
@pytest.mark.parametrize("way", weekly_except([*WAYS][:1], WAYS))
def test_every_file_of_the_newest_step(unbroken, longer, forks, tmp_path, note, way):
    whole, warnings = unbroken[0], {}
    for i, path in enumerate(files(whole / "checkpoints" / "40")):
        name = str(path.relative_to(whole / "checkpoints" / "40"))
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder / "run")
        broken = folder / "run" / "checkpoints" / "40" / name
        if way == "emptied" and not broken.stat().st_size:
            continue
        WAYS[way](broken)
        warnings[name] = resume_at_32(forks, folder, longer)
        shutil.rmtree(folder)
    assert len(warnings) > 10
    note(f"a file {way}", files=len(warnings), bit_equal=True, said=warnings)


BOUND = re.compile(r"^test: .*$", re.MULTILINE)


def reported_lines(forks, folder, longer, bound):
    """Report the damaged run, then train it to step 48; return the warnings and errors of both.

    Every result equals that of the undamaged run, or is replaced by an error.
    """
    lines = []
    for flags, fault in (([], None), ([LONGER], UNREPORTED)):
        outcome = forks(folder, CONFIG, "--workdir=run", *flags, fault=fault)
        assert outcome.status in (0, 2) and "Traceback" not in outcome.err, outcome.err
        lines += [x for x in outcome.err.splitlines() if x.startswith(("warning: ", "error: "))]
        if outcome.status == 0:
            result = digest(folder / "run") if flags else BOUND.search(outcome.out)[0]
            assert lines or result == (longer if flags else bound), (
                "another result without a warning"
            )
    return lines


@pytest.mark.faults
@pytest.mark.parametrize("seed", weekly_except([0], range(4)))
def test_any_file_of_a_run(unbroken, longer, forks, tmp_path, note, seed):
    """A hundred flipped bits and truncations are detected or harmless; half are outside of the checkpoints.

    Damage is detected if a line names the file or its checkpoint, and harmless if the results are the same.
    """
    draw, whole, reports = random.Random(seed), unbroken[0], {}
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
        reports[name] = reported_lines(forks, folder, longer, bound)
        if reports[name]:
            step = path.relative_to(run).parts[1] if "checkpoints" in path.parts else path.name
            assert any(step in line for line in reports[name]), reports[name]
        shutil.rmtree(folder)
    noticed = sum(map(bool, reports.values()))
    note("any file damaged", seed=seed, noticed=noticed, harmless=25 - noticed, said=reports)


@pytest.mark.slow
def test_damaged_bits_and_files_are_detected(copy):
    """`verify` detects every file damaged in every way, and each of a thousand flipped bits."""
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
    assert "CRC-32" in resume_at_32(forks, copy.parent, longer)
    assert steps(copy) == [40, 48]


@pytest.mark.slow
def test_no_intact_checkpoint_is_an_error(copy, forks):
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
    """Readers keep damaged and unfinished steps, since the run may still be training."""
    flip(copy / "checkpoints" / "40" / "about" / "metadata", 3)
    (copy / "checkpoints" / "48").mkdir()
    (copy / "checkpoints" / "56.orbax-checkpoint-tmp").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")}
    outcome = forks(copy.parent, CONFIG, "--workdir=run", "--mode=evaluate")
    assert outcome.status == 0 and "EMA weights of step 32" in outcome.out
    assert "checkpoint 40 in" in outcome.err and "going back to step 32" in outcome.err
    assert {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")} == before


# ---------------------------------------------------------------- checkpoints of other configs

MISFITS = {  # flags, and the reported leaf or field
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
    """Without config.json, the description in the checkpoint decides."""
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
    """Save a step 41 whose average has another type."""
    state = load(run).state
    average = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state.ema_params)
    with CheckpointStore(run / "checkpoints") as store:
        about = store.about(40)
        store.save(state._replace(step=state.step + 1, ema_params=average), about)
