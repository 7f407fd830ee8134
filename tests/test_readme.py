"""The README's Python runs, its commands and links exist, its numbers are those of the committed results."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

from public import tables

import vdm_jax as vdm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)


def test_python_prints_what_is_shown(capsys):
    blocks = BLOCK.findall(README)
    python = [i for i, (language, _) in enumerate(blocks) if language == "python"]
    assert python
    names: dict = {}
    for i in python:
        exec(compile(blocks[i][1], "README.md", "exec"), names)
        assert blocks[i + 1] == ("text", capsys.readouterr().out)


def test_commands_and_links_exist():
    for path in re.findall(r"--config=(\S+)", README) + re.findall(r"\]\(([^)#:]+)\)?", README):
        assert (ROOT / path).is_file(), path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) <= set(project["optional-dependencies"])
    module, _, function = project["scripts"]["vdm-jax"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_contributing_names_the_tables():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"in `([\w/]+?)(?:\.py|/)`[^|\n]*?a row of `([A-Z_]+)`", text)
    rows += [(path, table) for table, path in re.findall(r"of `([A-Z_]+)` in `([\w/]+)\.py`", text)]
    assert len(rows) >= 12
    for path, table in rows:
        module = importlib.import_module(
            "vdm_jax." + path.removesuffix("/__init__").replace("/", ".")
        )
        assert isinstance(getattr(module, table), dict), (path, table)
    tests = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `(tests/\w+\.py)`", text)
    assert tests
    for *names, path in tests:
        source = (ROOT / path).read_text()
        assert all(re.search(rf"^(def )?{name}\b", source, re.M) for name in names if name), path


def test_numbers_are_those_of_the_results():
    tables = "".join(path.read_text() for path in (ROOT / "experiments/results").rglob("*.md"))
    table = README[README.index("## Parameterizations in one unit") :]
    numbers = re.findall(r"\d\.\d+ ± \d\.\d+", table)
    rows = re.findall(r"^\| `(\w+)`, the", table, re.M)
    assert len(rows) >= 5 and {*rows} <= {*vdm.parameterizations.PARAMETERIZATIONS}
    assert len(numbers) == 2 * len(rows) + 8
    for number in numbers:
        assert number in tables, number
    test, error = re.findall(r"^test: (\S+) ± (\S+) bits/dim", README, re.M)[0]
    assert (
        f"| eps | unit_variance | histogram | ∞ | {float(test):.3f} ± {float(error):.3f} |"
        in tables
    )


def test_documents_stay_short():
    assert README.count("\n") <= 160
    assert (ROOT / "CHANGELOG.md").read_text().count("\n") <= 30


def test_every_public_name_is_there():
    for name in vdm.__all__:
        assert getattr(vdm, name) is not None
    assert callable(vdm.train)  # not a folder of that name
    functions = [name for name in vdm.__all__ if not inspect.ismodule(getattr(vdm, name))]
    assert len(functions) <= 27
    for name, table in tables().items():
        assert getattr(vdm, name, table) is table
