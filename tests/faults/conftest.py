"""Fixtures of the faults: compiled programs, processes and an unbroken run."""

import shutil

import pytest
from harness import Forks, Real, digest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def forks(cache):
    server = Forks(cache)
    yield server
    server.close()


@pytest.fixture
def real(tmp_path, cache):
    return Real(tmp_path, cache)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, cache):
    """Train 40 steps undisturbed, with checkpoints at 32 and 40; return the folder and its digest."""
    folder = tmp_path_factory.mktemp("unbroken")
    outcome = Real(folder, cache)()
    assert outcome.status == 0, outcome.err
    (folder / "said").write_text(outcome.out)
    return folder / "run", digest(folder / "run")


@pytest.fixture
def copy(unbroken, tmp_path):
    """Return a copy of the unbroken run, to be damaged."""
    shutil.copytree(unbroken[0], tmp_path / "run")
    return tmp_path / "run"
