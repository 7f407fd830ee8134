"""Hostile folders of runs at every door: nothing is executed, written elsewhere or waited for."""

import re
import shutil

import pytest
from harness import CONFIG, UNREPORTED
from hostile import KINDS

COMMANDS = {
    "train": ["--config.train.steps=48"],
    "report": [],
    "evaluate": ["--mode=evaluate"],
    "sample": ["--mode=sample"],
}
CALLS = {
    "load": "vdm.load('run').sample(jax.random.key(0), 1)",
    "replay": "vdm.replay('run', step=40)",
}
LIMIT = 60  # an undisturbed door takes about three seconds, on a busy machine several times that


def contents(folder):
    """Return path -> (time of the last change, size) of everything in a folder."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def through(door, forks, folder):
    """Go through a door of the command line or of Python."""
    if door in CALLS:
        code = f"import jax\nimport vdm_jax as vdm\n{CALLS[door]}"
        return forks(folder, CONFIG, code=code, limit=LIMIT)
    fault = UNREPORTED if door == "train" else None
    return forks(folder, CONFIG, "--workdir=run", *COMMANDS[door], fault=fault, limit=LIMIT)


@pytest.mark.faults
@pytest.mark.parametrize("name", KINDS)
def test_hostile_folder(unbroken, forks, tmp_path, note, name):
    errors = {}
    for door in [*COMMANDS, *CALLS]:
        folder, outside = tmp_path / door, tmp_path / door / "outside"
        outside.mkdir(parents=True)
        shutil.copytree(unbroken[0], folder / "run")
        KINDS[name].change(folder / "run", outside)
        before = contents(outside)
        outcome = through(door, forks, folder)
        assert outcome.status is not None, f"{door} hangs"
        assert contents(outside) == before, door
        assert not (folder / "executed").exists(), door
        errors[door] = line = outcome.last if outcome.status else ""
        if KINDS[name].pattern is None:
            assert outcome.status == 0, outcome.err
        elif outcome.status:
            assert outcome.status == (1 if door in CALLS else 2), outcome.err
            assert ("Traceback" in outcome.err) == (door in CALLS), outcome.err
            assert re.match(r"(OSError|ValueError|error): ", line), outcome.err
            assert re.search(KINDS[name].pattern, line), outcome.err
        else:
            assert re.search(KINDS[name].pattern, outcome.err), outcome.err
        shutil.rmtree(folder)
    note("hostile folder", kind=name, doors=len(errors), said=sorted(set(errors.values())))
