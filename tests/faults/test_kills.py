"""SIGKILL at any time: what was committed is there, and the run that goes on is the unbroken one."""

import random
import shutil
import signal
import time

import pytest
from harness import CONFIG, UNREPORTED, Real, continued_from, digest, last_logged, steps

EVERY = 20
SLOW = {"slow": 0.02}  # 2 steps each
FLAGS = [f"--config.train.checkpoint_every={EVERY}", "--config.train.steps=1600"]


@pytest.fixture(scope="session")
def long(tmp_path_factory, cache):
    """The digest of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("long")
    outcome = Real(folder, cache)(*FLAGS)
    assert outcome.status == 0, outcome.err
    found = digest(folder / "run")
    shutil.rmtree(folder)
    return found


def wait_for_save(folder, process, seconds):
    """Until a save is going on; False if none begins."""
    until = time.monotonic() + seconds
    before = {path.name for path in folder.glob("*tmp*")}  # of the life before
    while time.monotonic() < until and process.poll() is None:
        if {path.name for path in folder.glob("*tmp*")} - before:
            return True
        time.sleep(0.001)
    return False


def in_a_save(folder):
    """Whether what a killed process left is a save that it had begun and not committed."""
    names = {path.name for path in folder.glob("*") if path.name[0].isdigit()}
    return not names <= {str(step) for step in steps(folder.parent)}


@pytest.mark.faults
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_time(real, long, note, seed):
    """Ten lives each, six of them aimed at a save; what is counted as in a save was seen in the folder."""
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


def test_killed_in_a_save(real, unbroken):
    """The quick one, of every run of the tests."""
    process = real.start(fault={"slow": 0.05})
    assert wait_for_save(real.folder / "run" / "checkpoints", process, 60)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert real().status == 0
    assert digest(real.folder / "run") == unbroken[1]


@pytest.mark.faults
def test_killed_in_an_evaluation(real, forks, note):
    """However often: the step before it is kept, though there is no other checkpoint."""
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
