"""Checks of every annotation of the package in every test, and the table of faults."""

from jaxtyping import install_import_hook

install_import_hook("vdm_jax", "beartype.beartype")

import json  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("deterministic")


@pytest.fixture
def as_users():
    """Switch off the checks of annotations, as in a user's program."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def without_optimizations():
    """Disable most optimizations of the compiler, which cost some tests more time than they save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def note(request, tmp_path):
    """Return a function that adds a row to the table of faults, which `--table` writes."""

    def note(fault, **facts):
        row = json.dumps({"fault": fault, **facts}).replace(str(tmp_path), "FOLDER")
        request.node.user_properties.append(("fault", json.loads(row)))

    return note


def pytest_addoption(parser):
    parser.addoption(
        "--table", help="where the faults write what was tried and what became of it, as JSON"
    )


ROWS = []


def pytest_runtest_logreport(report):
    """Collect the rows of a test, also in the process that gathers the reports of several."""
    if report.when == "call":
        ROWS.extend(
            row | {"passed": report.passed}
            for kind, row in report.user_properties
            if kind == "fault"
        )


def pytest_sessionfinish(session):
    path = session.config.getoption("--table")
    if path and not hasattr(session.config, "workerinput"):
        versions = {name: version(name) for name in ("jax", "orbax-checkpoint")}
        rows = sorted(ROWS, key=lambda row: (row["fault"], json.dumps(row)))
        Path(path).write_text(json.dumps({"versions": versions, "faults": rows}, indent=1) + "\n")
