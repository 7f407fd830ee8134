"""Signals in every phase: the step is finished and saved, and no work is lost."""

import os
import signal
import time

import pytest
from harness import CONFIG, UNREPORTED, Real, continued_from, digest, steps

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
WARNINGS = "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"
EVALUATED = ["--config.train.evaluate_every=16", "--config.train.steps=40"]
CASES = {  # phase, signals, flags
    "compilation": ("compilation", [TERM], []),
    "training": ("training", [TERM], []),
    "training, SIGINT": ("training", [INT], []),
    "training, twice": ("training", [INT, TERM, INT], []),
    "a save": ("save", [TERM], []),
    "a save, twice": ("save", [TERM, TERM], []),
    "evaluation": ("evaluation", [TERM], []),
    "evaluation while training": ("evaluation", [INT], EVALUATED),
    "sampling": ("sampling", [INT], []),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", CASES)
def test_a_signal_loses_nothing(real, forks, unbroken, note, name):
    phase, signals, flags = CASES[name]
    outcome = real(*flags, fault={"signals": signals, "at": phase, "slow": 0.01})
    ended = time.time() - float((real.folder / "signalled").read_text())
    assert outcome.status == 128 + signals[0], outcome.err
    assert outcome.last.startswith(f"ended by {signal.Signals(signals[0]).name}")
    assert "Traceback" not in outcome.err and ended < 10
    run = real.folder / "run"
    saved = max(steps(run))
    if phase not in ("evaluation", "sampling") or flags:
        assert outcome.last.split(" at step ")[1].startswith(f"{saved}; saved in ")
    else:
        assert saved == 40
    again = forks(real.folder, CONFIG, "--workdir=run", *flags, fault=UNREPORTED)
    assert again.status == 0, again.err
    assert continued_from(again) == (saved if saved < 40 else 0)
    if flags:  # the lines hold the bounds of the test split
        (real.folder / "whole").mkdir()
        assert (
            forks(real.folder / "whole", CONFIG, "--workdir=run", *flags, fault=UNREPORTED).status
            == 0
        )
        assert digest(run) == digest(real.folder / "whole" / "run")
    else:
        assert digest(run) == unbroken[1]
    note(
        "SIGTERM, SIGINT",
        phase=name,
        seconds=round(ended, 2),
        at=saved,
        resumed_from=continued_from(again),
    )


@pytest.mark.faults
def test_ended_at_every_step(forks, tmp_path, cache, note):
    """A run that is ended after each of thirty steps equals the unbroken one."""
    flags = ["--config.train.steps=30", "--config.train.steps_per_dispatch=1"]
    (tmp_path / "whole").mkdir()
    assert Real(tmp_path / "whole", cache)(*flags).status == 0
    run = tmp_path / "run"
    for life in range(1, 31):
        fault = {"signals": [TERM], "at": "first step"}
        outcome = forks(tmp_path, CONFIG, "--workdir=run", *flags, fault=fault)
        assert outcome.status == 128 + TERM, outcome.err
        assert max(steps(run)) == life and continued_from(outcome) == life - 1
    assert forks(tmp_path, CONFIG, "--workdir=run", *flags).status == 0
    assert digest(run) == digest(tmp_path / "whole" / "run")
    note("interrupted at every step", steps=30, bit_equal=True)


@pytest.mark.faults
def test_broken_pipe_of_stderr(real, unbroken, note):
    """Ctrl-C in a pipe also ends `tee`; the step is saved and the status is right nevertheless."""
    reader, writer = os.pipe()
    fault = {"signals": [INT], "at": "training", "slow": 0.01}
    process = real.start(fault=fault, stderr=writer)
    os.close(reader)
    os.close(writer)
    assert process.wait(60) == 128 + INT
    saved = max(steps(real.folder / "run"))
    assert real().status == 0 and saved < 40
    assert digest(real.folder / "run") == unbroken[1]
    note("SIGTERM, SIGINT", phase="with a broken pipe for stderr", at=saved)


@pytest.mark.faults
def test_nohup(real, unbroken):
    """An ignored SIGHUP stays ignored, and the run ends normally."""
    hangup = {"signals": [int(signal.SIGHUP)], "at": "training"}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process inherits it
    try:
        outcome = real(fault=hangup)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert outcome.status == 0 and (real.folder / "signalled").exists()
    assert digest(real.folder / "run") == unbroken[1]


@pytest.mark.faults
@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_save_the_step(forks, unbroken, tmp_path, name):
    signum = int(getattr(signal, name))
    fault = {"signals": [signum], "at": "training"}
    outcome = forks(tmp_path, CONFIG, "--workdir=run", fault=fault)
    assert outcome.status == 128 + signum, outcome.err
    saved = max(steps(tmp_path / "run"))
    assert outcome.last.startswith(f"ended by {name} at step {saved}; saved in ") and saved < 40
    again = forks(tmp_path, CONFIG, "--workdir=run", fault=UNREPORTED)
    assert again.status == 0 and continued_from(again) == saved
    assert digest(tmp_path / "run") == unbroken[1]


@pytest.mark.slow
def test_ended_by_sigterm(real, unbroken):
    """A run ended by SIGTERM resumes to the unbroken one."""
    outcome = real(fault={"signals": [TERM], "at": "training"})
    assert outcome.status == 143 and outcome.last.startswith("ended by SIGTERM at step ")
    assert real().status == 0
    assert digest(real.folder / "run") == unbroken[1]
