"""A full or read-only disk, a folder in use, no memory, and data that never arrive."""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest
from harness import CONFIGS, Real, continued_from, digest, last_logged, steps


@contextmanager
def mounted(folder, options):
    """Mount a separate file system, and unmount it at the end; skip where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, leave):
    """Fill a file system except for `leave` bytes."""
    free = shutil.disk_usage(folder).free
    with (folder / "ballast").open("wb") as file:
        file.write(b"x" * (free - leave))
    return folder / "ballast"


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.faults
def test_the_disk_is_full(tmp_path, cache, unbroken, note):
    """Failed saves are reported, earlier checkpoints stay intact, and the run resumes once there is space."""
    with mounted(tmp_path / "disk", "size=4m") as disk:
        real = Real(disk, cache)
        assert real("--config.train.steps=16").status == 0
        ballast = fill(disk, 100_000)
        out = tmp_path / "elsewhere"
        out.mkdir()
        elsewhere = Real(out, cache)
        outcome = elsewhere(f"--workdir={disk / 'run'}")
        failed = [line for line in outcome.err.splitlines() if "could not be written" in line]
        assert outcome.status == 2, outcome.err
        assert "checkpoint 24 in" in failed[0] and "the last good one is 16" in failed[0]
        assert outcome.last.startswith(
            f"error: checkpoint 40 in {disk}/run/checkpoints could not be written: "
        )
        assert "No space left" in outcome.last
        assert steps(disk / "run") == [8, 16]
        ballast.unlink()
        again = elsewhere(f"--workdir={disk / 'run'}")
        assert again.status == 0, again.err
        assert continued_from(again) == 16
        assert digest(disk / "run") == unbroken[1]
    reported_steps = [int(re.search(r"checkpoint (\d+) in", line)[1]) for line in failed]
    note(
        "disk full", kind="tmpfs", said_at=reported_steps, status=2, resumed_from=16, bit_equal=True
    )


@pytest.mark.faults
def test_the_disk_is_full_for_a_while(tmp_path, cache, unbroken, note):
    """The run continues, saves again once there is space, and loses no line of its log."""
    with mounted(tmp_path / "disk", "size=4m") as disk:
        out = tmp_path / "elsewhere"
        out.mkdir()
        real = Real(out, cache)
        process = real.start(f"--workdir={disk / 'run'}", fault={"slow": 0.3})
        wait_until(lambda: last_logged(disk / "run") >= 4)
        ballast = fill(disk, 0)
        wait_until(lambda: "could not be written" in (out / "err").read_text())
        ballast.unlink()
        outcome = real.outcome(process.wait(60))
        assert outcome.status == 0, outcome.err
        assert steps(disk / "run")[-1] == 40 and digest(disk / "run") == unbroken[1]
        failed = outcome.err.count("could not be written")
    note("disk full for a while", kind="tmpfs", status=0, failed_saves=failed, bit_equal=True)


@pytest.mark.slow
def test_files_cannot_grow(copy, real, unbroken, note):
    """A limit of the file size stands for a full disk where mounting is not allowed."""
    shutil.rmtree(copy / "checkpoints" / "40")
    outcome = real(ulimit="-f 12")
    assert outcome.status == 2, outcome.err
    assert "could not be written" in outcome.last and "File too large" in outcome.last
    assert "Traceback" not in outcome.err and "never awaited" not in outcome.err
    assert steps(copy) == [32]
    assert real().status == 0
    assert digest(copy) == unbroken[1]
    note("disk full", kind="file-size limit", status=2, resumed_from=32, bit_equal=True)


@pytest.mark.faults
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_read_only(tmp_path, cache, unbroken, note, there):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        if there:
            shutil.copytree(unbroken[0], disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (tmp_path / "elsewhere").mkdir()
        real = Real(tmp_path / "elsewhere", cache)
        outcome = real(f"--workdir={disk / 'run'}", "--config.train.steps=48")
        assert outcome.status == 2
        assert outcome.last == f"error: workdir {disk}/run cannot be written: Read-only file system"
        if there:  # it can be read
            outcome = real(f"--workdir={disk / 'run'}", "--mode=evaluate")
            assert outcome.status == 0 and "EMA weights of step 40" in outcome.out
    note("read-only workdir", run_in_it=there, status=2)


@pytest.mark.faults
def test_a_folder_that_is_in_use(real, unbroken, note):
    """The first process trains on undisturbed."""
    first = real.start(fault={"slow": 0.4})
    run = real.folder / "run"
    wait_until(lambda: last_logged(run) > 0)
    (real.folder / "second").mkdir()
    second = Real(real.folder / "second", real.env["XDG_CACHE_HOME"])(f"--workdir={run}")
    assert second.status == 2
    assert second.last == f"error: {run}/checkpoints: another process is training there"
    assert first.wait(60) == 0 and digest(run) == unbroken[1]
    note("two processes in a folder", status=2, first_bit_equal=True)


@pytest.mark.faults
def test_no_memory_left(tmp_path, cache, note):
    """A batch of all digits through a wide U-Net exceeds 3 GB."""
    real = Real(tmp_path, cache, config=f"--config={CONFIGS / 'eps.py'}")
    small = ["--config.model.network.channels=(128, 128)", "--config.model.network.blocks=1"]
    outcome = real(*small, "--config.train.batch_size=1500", ulimit="-v 3000000")
    assert outcome.status == 1, outcome.err
    assert outcome.last.startswith("error: out of memory with config.train.batch_size = 1500: ")
    for advice in ("a smaller one", "config.optimizer.accumulate", "remat = "):
        assert advice in outcome.last
    note("out of memory", status=1, said=outcome.last)


@pytest.mark.faults
def test_data_that_never_arrive(real, note):
    """A single process that waits for data ends with an error, too."""
    began = time.monotonic()
    outcome = real("--config.train.stall_seconds=0.1", fault={"stuck": 21})
    assert outcome.status == 1 and outcome.last.startswith("error: training, after step ")
    assert outcome.last.endswith("no progress for 2 s; it is stuck")
    assert max(steps(real.folder / "run")) in (8, 16)
    note("a stuck step", status=1, seconds=round(time.monotonic() - began, 1))


@pytest.mark.faults
@pytest.mark.parametrize(("count", "flags"), [(2, []), (4, ["--config.train.fsdp=2"])])
def test_on_other_devices(copy, real, note, count, flags):
    """The order of examples and, up to rounding, the losses are those of one device."""
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(copy / "checkpoints" / "40")
    env = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    }
    outcome = real(*flags, env=env)
    assert outcome.status == 0, outcome.err
    assert continued_from(outcome) == 32
    again = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    far = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(again, rows, strict=True))
    assert far < 1e-5
    note("resumed on other devices", devices=count, flags=flags, largest_difference=far)
