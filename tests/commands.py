"""The command line, run in this process or in another one."""

import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import pytest
from absl import flags
from absl.testing import flagsaver

from vdm_jax import main
from vdm_jax.runs import start as loading

CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = f"--config={CONFIGS / 'smoke.py'}"
SMALL = [
    "--config.model.network.width=8",
    "--config.train.batch_size=16",
    "--config.train.steps_per_dispatch=4",
    "--config.evaluate.draws=1",
    "--config.sample.count=4",
    "--config.sample.steps=2",
]
WEIGHTS = "--mode=weights"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change into an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs the command line in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(main, "enable_compilation_cache", lambda: None)
    monkeypatch.delenv("VDM_JAX_DEBUG", raising=False)

    def run(*arguments):
        argv = ["main", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            try:
                main.main(main.parse(argv))
            except SystemExit as left:
                status = left.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def idle(monkeypatch):
    """Fail a test that loads data or initialises a network."""

    def never(*args, **options):
        raise AssertionError("is not to be called")

    monkeypatch.setattr(loading, "load_dataset", never)
    monkeypatch.setattr(nn.Module, "init", never)


def assert_one_line(result, status=2):
    code, out, err = result
    assert (code, out) == (status, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err.removeprefix("error: ").rstrip()


def start_process(*arguments, cwd):
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd / "cache")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
    return subprocess.run(
        [sys.executable, "-m", "vdm_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
