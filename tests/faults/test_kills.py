"""SIGKILL at any time: committed steps survive, and the resumed run equals the unbroken one."""

import hashlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from harness import CONFIG, UNREPORTED, Real, continued_from, digest, last_logged, steps
from launched import Processes
from thinned import weekly_except

from vdm_jax import load

EVERY = 20
SLOW = {"slow": 0.02}  # 2 steps each
FLAGS = [f"--config.train.checkpoint_every={EVERY}", "--config.train.steps=1600"]


@pytest.fixture(scope="session")
def long(tmp_path_factory, cache):
    """Return the digest of an undisturbed run."""
    folder = tmp_path_factory.mktemp("long")
    outcome = Real(folder, cache)(*FLAGS)
    assert outcome.status == 0, outcome.err
    expected = digest(folder / "run")
    shutil.rmtree(folder)
    return expected


def wait_for_save(folder, process, seconds):
    """Wait until a save begins; return False if none does."""
    until = time.monotonic() + seconds
    before = {path.name for path in folder.glob("*tmp*")}  # of the life before
    while time.monotonic() < until and process.poll() is None:
        if {path.name for path in folder.glob("*tmp*")} - before:
            return True
        time.sleep(0.001)
    return False


def in_a_save(folder):
    """Return True if a killed process left an uncommitted save."""
    names = {path.name for path in folder.glob("*") if path.name[0].isdigit()}
    return not names <= {str(step) for step in steps(folder.parent)}


@pytest.mark.faults
@pytest.mark.parametrize("seed", weekly_except([0], [0, 1]))
def test_killed_at_any_time(real, long, note, seed):
    """Each run is killed ten times, six times right after a save began; uncommitted saves are counted."""
    draw, run = random.Random(seed), real.folder / "run"
    folder, inside, lost = run / "checkpoints", 0, []
    for life in range(10):
        process = real.start(*FLAGS, fault=SLOW)
        if life < 6:
            assert wait_for_save(folder, process, 60), (real.folder / "err").read_text()
            time.sleep(draw.uniform(0, 0.06))
        else:
            time.sleep(draw.uniform(0, 6))
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert "Traceback" not in (real.folder / "err").read_text()
        inside += in_a_save(folder)
        committed, logged = max(steps(run), default=0) if folder.exists() else 0, last_logged(run)
        lost.append(logged - committed)
        assert lost[-1] <= 2 * EVERY
    outcome = real(*FLAGS)
    assert outcome.status == 0, outcome.err
    assert continued_from(outcome) == committed
    assert digest(run) == long
    assert not [*folder.glob("*tmp*")]
    note("SIGKILL", seed=seed, kills=10, inside_a_save=inside, steps_lost=lost, bit_equal=True)
    assert inside >= 4


@pytest.mark.slow
def test_killed_in_a_save(real, unbroken):
    """A run killed in a save resumes to the unbroken one."""
    process = real.start(fault={"slow": 0.05})
    assert wait_for_save(real.folder / "run" / "checkpoints", process, 60)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert real().status == 0
    assert digest(real.folder / "run") == unbroken[1]


@pytest.mark.faults
def test_killed_in_an_evaluation(real, forks, note):
    """Repeated kills keep the evaluated step, though there is no other checkpoint."""
    flags = ["--config.train.evaluate_every=16", "--config.train.checkpoint_every=100"]
    fault = {"signals": [int(signal.SIGKILL)], "at": "evaluation"} | UNREPORTED
    for _ in range(2):
        assert real(*flags, fault=fault).status == -signal.SIGKILL
        assert steps(real.folder / "run") == [16]
    again = forks(real.folder, CONFIG, "--workdir=run", *flags, fault=UNREPORTED)
    assert again.status == 0, again.err
    assert continued_from(again) == 16
    whole = real.folder / "whole"
    whole.mkdir()
    assert forks(whole, CONFIG, "--workdir=run", *flags, fault=UNREPORTED).status == 0
    assert digest(real.folder / "run") == digest(whole / "run")
    note("SIGKILL", phase="evaluation", kills=2, at=16, bit_equal=True)


KINDS = {
    "sweep": ["--config.sweep.seeds=(0, 1)"],
    "learned times, best step": [
        "--config.model.time_sampler=learned",
        "--config.train.evaluate_every=16",
    ],
    "accumulated batches": ["--config.optimizer.accumulate=3"],
    "several steps per dispatch": ["--config.train.steps_per_dispatch=4"],
    "muon": ["--config.optimizer.name=muon"],
    "timesteps, learned schedule": [
        "--config.model.timesteps=20",
        "--config.model.schedule.name=learned_linear",
    ],
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", weekly_except(["sweep", "learned times, best step"], KINDS))
def test_killed_runs_of_other_configs(forks, tmp_path, note, kind):
    """Each run is killed in a save, in training and at a random time."""
    flags, draw = [CONFIG, "--workdir=run", *KINDS[kind]], random.Random(kind)
    whole, killed, resumed = tmp_path / "whole", tmp_path / "killed", []
    for folder in (whole, killed):
        folder.mkdir()
    outcome = forks(whole, *flags, fault=UNREPORTED, limit=120)
    assert outcome.status == 0, outcome.err
    kill = {"signals": [int(signal.SIGKILL)]} | UNREPORTED
    for phase in ("save", "training"):
        outcome = forks(killed, *flags, fault=kill | {"at": phase}, limit=120)
        assert outcome.status == -signal.SIGKILL, outcome.err
        resumed.append(max(steps(killed / "run"), default=0))
    slow = {"slow": 0.4} | UNREPORTED
    assert forks(killed, *flags, fault=slow, limit=draw.uniform(2, 5)).status is None
    resumed.append(max(steps(killed / "run"), default=0))
    outcome = forks(killed, *flags, fault=UNREPORTED, limit=120)
    assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err
    assert continued_from(outcome) == resumed[-1]
    assert digest(killed / "run") == digest(whole / "run")
    note("SIGKILL", config=kind, kills=3, resumed_from=resumed, bit_equal=True)


@pytest.mark.faults
def test_two_killed_processes(tmp_path, note):
    """Two processes that share the parameters are both killed, twice."""
    layout = ["--config.train.parallel=mesh", "--config.train.fsdp=2"]
    flags = [*layout, "--config.train.steps=48", "--config.train.checkpoint_every=8"]
    folders, resumed = [tmp_path / name for name in ("whole", "killed")], []
    for folder in folders:
        folder.mkdir()
    run = folders[1] / "run"
    for life in range(2):
        with Processes(folders[1], "smoke", *flags) as processes:
            until, before = time.monotonic() + 120, max(steps_of(run), default=0)
            while max(steps_of(run), default=0) == before and time.monotonic() < until:
                time.sleep(0.002)
            for process in processes.running[:: 1 - 2 * life]:
                process.kill()
            assert -signal.SIGKILL in processes.wait()  # the other one may have noticed
        resumed.append(max(steps(run)))
    for folder in folders:
        with Processes(folder, "smoke", *flags) as processes:
            assert processes.wait() == [0, 0], processes.text("err0")[-2000:]
    assert restored(run) == restored(folders[0] / "run")
    note("SIGKILL", config="two processes, fsdp", kills=2, resumed_from=resumed, bit_equal=True)


def restored(run):
    """Return the SHA-256 of the last parameters and of the log, read by one process."""
    checksum = hashlib.sha256((run / "metrics.jsonl").read_bytes())
    for leaf in jax.tree.leaves(load(run).state.params):
        checksum.update(np.asarray(leaf).tobytes())
    return checksum.hexdigest()


def steps_of(run):
    return steps(run) if (run / "checkpoints").is_dir() else []
