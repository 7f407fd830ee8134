"""Several processes of one run: they compute the numbers of one process, and none is left waiting."""

import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launched import Processes, free_port
from prepared import write_tfds

from vdm_jax.runtime.processes import (
    AGREE_SECONDS,
    Watchdog,
    all_gather_json,
    deadline,
    initialize,
    max_over_processes,
    on_process_0,
)
from vdm_jax.training.logs import read_metrics

pytestmark = pytest.mark.slow


def last_line(text):
    return text.replace("\r", "\n").strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        ("smoke", ["--config.train.parallel=mesh", "--config.train.fsdp=2"]),
        pytest.param("vae", ["--config.train.parallel=pmap"], marks=pytest.mark.weekly),
        pytest.param("mhvae", [], marks=pytest.mark.weekly),
    ],
)
def test_two_processes_are_one(tmp_path, config, layout):
    """Two processes have the losses of one, a single log, and a checkpoint that one process continues."""
    folders = [tmp_path / name for name in ("two", "one")]
    for folder, count in zip(folders, (2, 1), strict=True):
        folder.mkdir()
        flags = ["--config.train.steps=10", *(layout if count > 1 else [])]
        with Processes(folder, config, *flags, count=count) as run:
            assert run.wait() == [0] * count, run.text("err0")[-2000:]
    two, single = [read_metrics(folder / "run" / "metrics.jsonl") for folder in folders]
    assert [row["step"] for row in two] == [2, 4, 6, 8, 10] and single[0].keys() == two[0].keys()
    for a, b in zip(two, single, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    results = [json.loads((f / "run" / "evaluation.json").read_text())["test"] for f in folders]
    assert results[0]["examples"] == results[1]["examples"] == 297
    np.testing.assert_allclose(results[0]["bits_per_dim"], results[1]["bits_per_dim"], rtol=1e-5)
    output = "\n".join(x for x in (folders[0] / "out1").read_text().splitlines() if "Gloo" not in x)
    assert output == "" and "train:" not in (folders[0] / "err1").read_text()
    assert (folders[0] / "run" / "samples.png").exists()

    if config == "smoke":
        assert_estimates_agree(folders, config, layout)
    with Processes(folders[0], config, "--config.train.steps=12", count=1) as run:
        assert run.wait() == [0]
        assert "continuing from step 10 in run" in run.text("out0")
    assert read_metrics(folders[0] / "run" / "metrics.jsonl")[-1]["step"] == 12


def assert_estimates_agree(folders, config, layout):
    """Evaluate several estimators in two processes and in one, and compare the numbers."""
    specs = "({'name': 'tuned', 'timesteps': 2}, {'name': 'ode', 'steps': 2})"
    flags = ["--config.train.steps=10", "--mode=evaluate", f"--config.evaluate.estimators={specs}"]
    results = []
    for folder, count in zip(folders, (2, 1), strict=True):
        extra = layout if count > 1 else []
        with Processes(folder, config, *flags, *extra, count=count) as run:
            assert run.wait() == [0] * count, run.text("err0")[-2000:]
        rows = json.loads((folder / "run" / "estimates.json").read_text())["test"]
        results.append([row["bits_per_dim"] for row in rows])
    np.testing.assert_allclose(*results, rtol=1e-5)


def wait_for_lines(run, count):
    log, until = run.folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and len(read_metrics(log)) < count:
        assert {process.poll() for process in run.running} == {None}
        time.sleep(0.2)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("victim", "sent"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)]
)
def test_a_dead_or_stuck_process_ends_the_others(tmp_path, note, victim, sent):
    flags = ["--config.train.steps=1000000", "--config.train.stall_seconds=8"]
    with Processes(tmp_path, "smoke", *flags) as run:
        wait_for_lines(run, 10)
        began = time.monotonic()
        run.running[victim].send_signal(sent)
        status = run.running[1 - victim].wait(30)
        seconds = round(time.monotonic() - began, 1)
        assert status != 0
        note("a peer process", signal=sent.name, process=victim, survivor=status, seconds=seconds)
        if victim == 1:  # without process 0, JAX may end the others first, in its own words
            line = last_line(run.text("err0"))
            expected = {
                signal.SIGKILL: "error: another process is gone: ",
                signal.SIGSTOP: "error: training, after step ",
            }
            assert status == 1 and line.startswith(expected[sent])


@pytest.mark.parametrize("signalled", [[1], pytest.param([0, 1], marks=pytest.mark.faults)])
def test_a_signal_ends_all_at_the_same_step(tmp_path, note, signalled):
    """Either process may get the signal; a single process resumes from the saved step."""
    with Processes(tmp_path, "smoke", "--config.train.steps=1000000") as run:
        wait_for_lines(run, 4)
        began = time.monotonic()
        for i in signalled:
            run.running[i].send_signal(signal.SIGTERM)
        assert run.wait(60) == [143, 143], run.text("err0")[-1000:] + run.text("err1")[-1000:]
        note("SIGTERM", processes=signalled, of=2, seconds=round(time.monotonic() - began, 1))
        ends = [last_line(run.text(name)) for name in ("err0", "err1")]
        assert ends[0] == ends[1] and ends[0].startswith("ended by SIGTERM at step ")
    step = int(ends[0].split(" at step ")[1].split(";")[0])
    with Processes(tmp_path, "smoke", f"--config.train.steps={step + 4}", count=1) as run:
        assert run.wait() == [0]
        assert f"continuing from step {step} in run" in run.text("out0")


def test_a_slow_dispatch_is_not_a_stuck_process(tmp_path):
    """Dispatches that take longer than `stall_seconds` end normally."""
    flags = ["--config.train.steps=400", "--config.train.steps_per_dispatch=100"]
    flags += ["--config.train.stall_seconds=0.1", "--config.train.log_every=100"]
    with Processes(tmp_path, "smoke", *flags) as run:
        assert run.wait(120) == [0, 0], run.text("err0")[-1000:] + run.text("err1")[-1000:]


def test_missing_coordinator(tmp_path):
    flags = [[], ["--connect_seconds=3", f"--coordinator_address=localhost:{free_port()}"]]
    with Processes(tmp_path, "smoke", process_flags=flags) as run:
        assert run.running[1].wait(30) == 1
        text = run.text("err1")
        assert text.startswith("\nerror: the 2 processes did not meet at localhost:")
        assert text.endswith(" within 3 s\n")
    assert not (tmp_path / "run").exists()


def test_processes_of_different_configs(tmp_path):
    flags = [["--config.train.steps=10"], ["--config.train.steps=20"]]
    with Processes(tmp_path, "smoke", process_flags=flags) as run:
        assert run.wait(60) == [2, 2]
        for name in ("err0", "err1"):
            assert last_line(run.text(name)) == (
                "error: process 0 (there) and process 1 (here) have different configs: "
                "config.train.steps: 10 there, 20 here"
            )
    assert not (tmp_path / "run").exists()


def test_processes_of_different_data(tmp_path):
    for i, name in enumerate("ab"):
        images = np.random.default_rng(i).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
        write_tfds(tmp_path / name, images={"train": images[:30], "test": images[30:]})
        (tmp_path / f"cwd{i}").mkdir()
        (tmp_path / f"cwd{i}" / "data").symlink_to(tmp_path / name)
    flags = ["--config.data.name=tiny", "--config.data.data_dir=data", f"--workdir={tmp_path}/run"]
    with Processes(tmp_path, "smoke", *flags, cwd=["cwd0", "cwd1"]) as run:
        assert run.wait(60) == [2, 2]
        for name in ("err0", "err1"):
            line = last_line(run.text(name))
            assert line.startswith(
                "error: process 0 (there) and process 1 (here) have different data:"
            )
            assert "config.data.fingerprint" in line
    assert not (tmp_path / "run").exists()


def test_processes_of_different_folders(tmp_path):
    for i in range(2):
        (tmp_path / f"cwd{i}").mkdir()
    with Processes(tmp_path, "smoke", cwd=["cwd0", "cwd1"]) as run:
        assert run.wait(60) == [2, 2]
        for name in ("err0", "err1"):
            assert "process 1 sees another folder than process 0" in last_line(run.text(name))
    assert not (tmp_path / "cwd1" / "run").exists()


# ---------------------------------------------------------------- inside one process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, 2), "--process_id: expected one of 0 to 1, found 2"),
        (("localhost:1", 2, -1), "--process_id: expected one of 0 to 1, found -1"),
        (("localhost:1", 0, 0), "--num_processes: expected at least 1, found 0"),
        (("localhost:1", None, 0), "--distributed: --num_processes missing, expected all three"),
        ((None, 2, None), "--distributed: --coordinator_address, --process_id missing"),
        (("localhost", 2, 0), "--coordinator_address: expected host:port, found 'localhost'"),
        (("localhost:123456", 2, 0), "--coordinator_address: expected host:port"),
        ((":123", 2, 0), "--coordinator_address: expected host:port"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        initialize(*arguments)
    with pytest.raises(ValueError, match="--connect_seconds: expected a number above 0, found nan"):
        initialize("localhost:1", 1, 0, seconds=float("nan"))


def test_one_process_agrees_with_itself():
    assert all_gather_json({"a": 1}) == [{"a": 1}]
    assert on_process_0(lambda: 3) == 3 and int(max_over_processes(15)) == 15
    with pytest.raises(OSError, match="full"):
        on_process_0(lambda: (_ for _ in ()).throw(OSError("full")))


def test_deadline_ends_with_its_block():
    with deadline(0.05, "too late"):
        pass
    with pytest.raises(KeyError), deadline(0.05, "too late"):
        raise KeyError("a")
    time.sleep(0.1)  # and this process is still there


@pytest.mark.parametrize(
    ("count", "limits"),
    [
        (2, [AGREE_SECONDS, AGREE_SECONDS, 3.0, 10.0, 10.0]),
        (1, [math.inf, math.inf, 60.0, 60.0, 60.0]),
    ],
)
def test_watchdog_limit_grows_with_past_waits(monkeypatch, count, limits):
    """Two long waits come first, the first unmeasured; later limits are five times the longest wait."""
    now = [0.0]
    monkeypatch.setattr("vdm_jax.runtime.processes.jax.process_count", lambda: count)
    monkeypatch.setattr("vdm_jax.runtime.processes.time.monotonic", lambda: now[0])
    watchdog, settling, seen = Watchdog(3.0), [], []
    for takes in (100.0, 0.5, 2.0, 0.5):
        settling.append(watchdog.settling)
        seen.append(watchdog.limit)
        with watchdog.wait("here"):
            now[0] += takes
    assert [*seen, watchdog.limit] == limits
    assert settling == [count > 1, count > 1, False, False]


def test_stuck_process_ends(tmp_path):
    """A stuck process prints the stacks of its threads and one line."""
    code = (
        "import time; from vdm_jax.runtime import processes as p; p.ALONE = 1\n"
        "with p.Watchdog(0.4, command=True) as watchdog:\n"
        "    for _ in range(3):\n"
        "        with watchdog.wait('training, after step 7'): pass\n"
        "    time.sleep(1)  # between waits nothing is watched\n"
        "    print('here', flush=True)\n"
        "    with watchdog.wait('training, after step 8'): time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stdout == "here\n"
    assert "Current thread" in done.stderr or "Thread 0x" in done.stderr
    line = "error: training, after step 8: no progress for 0.4 s; it is stuck"
    assert done.stderr.strip().splitlines()[-1] == line
