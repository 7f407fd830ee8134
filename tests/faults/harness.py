"""Real processes of the command line, and readers of the folders that they leave."""

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from vdm_jax.runtime.manifest import MANIFEST

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
CONFIG = f"--config={HERE / 'faulty.py'}"
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "TQDM_MININTERVAL": "1",
}


UNREPORTED = {"report": False}


class Outcome(NamedTuple):
    """The outcome of a process; status None if it exceeded its time."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def last(self):
        """Return the last line of stderr."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Forks:
    """A server of forked processes; see forked.py."""

    def __init__(self, cache):
        self.env = QUICK | {"XDG_CACHE_HOME": str(cache)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(
            [sys.executable, HERE / "forked.py"], env=os.environ | self.env, **pipes
        )
        assert self.server.stdout.readline() == "ready\n"

    def __call__(self, folder, *flags, code=None, fault=None, limit=60, argv0="main"):
        """Run the command line, or Python code, in a folder; kill it after `limit` seconds."""
        out, err = folder / "out", folder / "err"
        order = {
            "argv": [argv0, *map(str, flags)],
            "code": code,
            "cwd": str(folder),
            "env": {"FAULT": json.dumps(fault or {})},
            "out": str(out),
            "err": str(err),
            "limit": limit,
        }
        began = time.monotonic()
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        status = json.loads(self.server.stdout.readline())
        return Outcome(status, out.read_text(), err.read_text(), time.monotonic() - began)

    def close(self):
        self.server.stdin.close()
        self.server.wait(60)


class Real:
    """`python -m vdm_jax.main` in a folder; `ulimit` are arguments of the shell's limits."""

    def __init__(self, folder, cache, config=CONFIG):
        self.folder, self.config = folder, config
        self.env = os.environ | QUICK | {"XDG_CACHE_HOME": str(cache)}

    def command(self, flags, ulimit=None):
        python = [
            sys.executable,
            "-m",
            "vdm_jax.main",
            self.config,
            "--workdir=run",
            *map(str, flags),
        ]
        return ["bash", "-c", f'ulimit {ulimit}; exec "$@"', "_", *python] if ulimit else python

    def environment(self, fault, env):
        return self.env | {"FAULT": json.dumps(fault or {})} | (env or {})

    def start(self, *flags, fault=None, env=None, stderr=None):
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            options = {"cwd": self.folder, "env": self.environment(fault, env)}
            return subprocess.Popen(
                self.command(flags), stdout=out, stderr=stderr or err, **options
            )

    def __call__(self, *flags, limit=120, fault=None, env=None, ulimit=None):
        began = time.monotonic()
        options = {"cwd": self.folder, "env": self.environment(fault, env), "timeout": limit}
        command = self.command(flags, ulimit)
        try:
            done = subprocess.run(command, capture_output=True, text=True, **options)
        except subprocess.TimeoutExpired:
            return Outcome(None, "", "", time.monotonic() - began)
        return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def outcome(self, status):
        """Return the outcome of a started process that has ended."""
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return Outcome(status, out, err, 0.0)


def steps(run):
    """Return the committed steps of a run's folder."""
    folder = run / "checkpoints"
    return sorted(
        int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / MANIFEST).exists()
    )


def arrays(run, step=None):
    """Read the arrays of a step (default: the newest) by name, with orbax alone."""
    step = steps(run)[-1] if step is None else step
    with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        tree = reader.restore(run / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def digest(run):
    """Return the SHA-256 of the last state and of every logged line."""
    checksum = hashlib.sha256()
    for name, value in sorted(arrays(run).items()):
        checksum.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    checksum.update((run / "metrics.jsonl").read_bytes())
    return checksum.hexdigest()


def continued_from(outcome):
    """Return the step that a process reports to continue from; 0 if it reports none."""
    parts = outcome.out.split("continuing from step ")
    return int(parts[1].split()[0]) if len(parts) > 1 else 0


def last_logged(run):
    """Return the step of the last complete line of the log."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return whole[-1] if whole else 0
