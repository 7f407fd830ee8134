"""The documentation is true: its Python runs, its tests and names exist, the examples of docstrings hold."""

import ast
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import public
import pytest

import vdm_jax as vdm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
RUN = [
    name
    for name in sorted(PAGES)
    if name.split("/")[0] in ("index.md", "derivation", "parameterizations", "how-to")
    and "```python" in PAGES[name]
]
CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.S | re.M)
NAME = re.compile(r"(?<!`)`(vdm_jax(?:\.\w+)+)`(?!`)|^::: (vdm_jax(?:\.\w+)*)$", re.M)

# --- pages -------------------------------------------------------------------------------------------


def test_pages_exist():
    for folder, names in {
        "derivation": ["vae", "mhvae", "vdm", "losses"],
        "parameterizations": vdm.parameterizations.PARAMETERIZATIONS,
        "how-to": ["own_network", "own_data", "own_schedule", "tpu_pod", "resume"],
    }.items():
        assert {f"{folder}/{name}.md" for name in names} <= set(PAGES)
    assert {
        f"parameterizations/{name}.md" for name in vdm.parameterizations.PARAMETERIZATIONS
    } <= set(RUN)


@pytest.fixture
def tables():
    """Restore the tables after a page has added rows."""
    all_tables = [*public.tables().values()]
    before = [dict(table) for table in all_tables]
    yield all_tables
    for table, rows in zip(all_tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.parametrize("page", RUN)
@pytest.mark.slow
def test_python_blocks_print_what_is_shown(
    page, tmp_path, monkeypatch, capsys, tables, without_optimizations
):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    text = PAGES[page]
    for block in CODE.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + block[1], DOCS / page, "exec"), names)
        printed = capsys.readouterr().out
        assert printed == (block[2] or ""), f"{page}, line {line}"


def test_every_block_is_found():
    for page in RUN:
        assert len(CODE.findall(PAGES[page])) == PAGES[page].count("```python"), page


def resolve(name: str) -> Any:
    """Return the object of a full dotted name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            resolved = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            resolved = getattr(resolved, part)
        return resolved
    raise AttributeError(name)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_names_and_tests_that_a_page_mentions_exist(page):
    for names in NAME.findall(PAGES[page]):
        for name in filter(None, names):
            resolve(name)
    for name in re.findall(r"(?<![\w./])vdm\.(?!md\b)(\w+)", PAGES[page]):
        assert name in vdm.__all__, name
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGES[page]):
        statements = ast.parse((ROOT / file).read_text()).body
        assert name in [node.name for node in statements if isinstance(node, ast.FunctionDef)], name


@pytest.mark.parametrize("name", ["vdm_jax.gaussian.nothing", "vdm_jax.nothing"])
def test_missing_name_is_an_error(name):
    with pytest.raises(AttributeError, match="nothing"):
        resolve(name)


STEP = re.compile(r"^### (?P<steps>[\d, –+]+) · .*?(?=^##|\Z)", re.S | re.M)


def test_every_derivation_step_is_complete():
    seen: list[int | str] = []
    for page in ("vae", "mhvae", "vdm", "losses"):
        for section in STEP.finditer(PAGES[f"derivation/{page}.md"]):
            for part in section["steps"].split(", "):
                first, _, last = part.partition("–")
                seen += ["+"] if part == "+" else range(int(first), int(last or first) + 1)
            assert "$" in section[0] and "tests/test_" in section[0], section["steps"]
            assert NAME.search(section[0]), section["steps"]
    assert sorted(n for n in seen if n != "+") == list(range(1, 43))
    assert "+" in seen


def test_equation_links_show_their_numbers():
    tags = re.findall(r"\\tag\{(\d+)\}", PAGES["equations.md"])
    assert len(tags) == len(set(tags)) > 20
    anchors = re.findall(r'<a id="eq-(\d+)"></a>\n\n\$\$.*?\$\$', PAGES["equations.md"], re.S)
    assert sorted(anchors) == sorted(tags)
    for text in PAGES.values():
        for shown, target in re.findall(r"\[\((\d+)\)\]\([\w./]*equations\.md#eq-(\d+)\)", text):
            assert shown == target and target in tags


def test_every_public_name_is_in_the_reference():
    rows = dict(re.findall(r"^\| `vdm\.(\w+)` \| `([\w.]+)` \|", PAGES["api/index.md"], re.M))
    assert set(rows) == set(vdm.__all__)
    for name, path in rows.items():
        assert resolve(path) is getattr(vdm, name), name


# --- the built site ----------------------------------------------------------------------------------

NOT_TEXT = re.compile(r"<(pre|code|script|style)\b.*?</\1>", re.S)
LATEX = re.compile(r"\\[(\[A-Za-z]|\$\$")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)|<link\b[^>]*\bhref=[\"']?([^\"' >]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return path -> HTML of each page."""
    for name in ("material", "math_core", "mkdocstrings"):
        pytest.importorskip(name, reason="needs vdm_jax[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.html")
    }


def test_formulas_are_mathml(site):
    for name, page in site.items():
        assert not LATEX.search(NOT_TEXT.sub("", page)), name
    for name, text in PAGES.items():
        if "$$" in text:
            stem = name.removesuffix(".md").removesuffix("index").removesuffix("/")
            assert '<math display="block"' in site[f"{stem}/index.html"], name


def test_pages_load_nothing_from_other_hosts(site):
    for name, page in site.items():
        for loaded in LOADED.findall(page):
            assert not re.match(r"(https?:)?//", "".join(loaded)), (name, loaded)


def test_public_names_have_an_entry_in_the_reference(site):
    reference = "".join(page for name, page in site.items() if name.startswith("api/"))
    for path in re.findall(r"^\| `vdm\.\w+` \| `([\w.]+)` \|", PAGES["api/index.md"], re.M):
        assert f'id="{path}"' in reference, path


def test_raw_latex_and_other_hosts_are_detected():
    assert LATEX.search(r"a \(x_0\)") and LATEX.search(r"\alpha")
    assert not LATEX.search(NOT_TEXT.sub("", r"<code>\d</code> costs 5 $"))
    assert LOADED.findall('<script defer src="https://a.org/x.js">') == [("https://a.org/x.js", "")]
    assert LOADED.findall('<link rel="stylesheet" href=//a.org/x.css>') == [("", "//a.org/x.css")]


# --- docstrings --------------------------------------------------------------------------------------


def modules() -> dict[str, Any]:
    packages = pkgutil.walk_packages(vdm.__path__, "vdm_jax.")
    return {"vdm_jax": vdm} | {
        module.name: importlib.import_module(module.name) for module in packages
    }


def described():
    """Yield (full name, object) of everything in the package that may have a docstring.

    `DocTestFinder` alone does not do: under the import hook it assigns functions to another module.
    """
    for module_name, module in modules().items():
        yield module_name, module
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", None) == module_name
            if not (defined_here and (inspect.isclass(value) or inspect.isroutine(value))):
                continue
            yield f"{module_name}.{name}", value
            if inspect.isclass(value):
                for part, member in vars(value).items():
                    if inspect.isroutine(member) or isinstance(member, property):
                        yield f"{module_name}.{name}.{part}", member


FINDER = doctest.DocTestFinder(recurse=False)
GIVEN = {"jax": jax, "jnp": jnp, "np": np, "vdm": vdm}  # as the API reference says
EXAMPLES = {
    name: test
    for name, thing in described()
    for test in FINDER.find(thing, name, module=False, globs=dict(GIVEN))
    if test.examples
}
MATHEMATICS = ("typing", "gaussian", "specs", "diffusion", "schedules", "likelihoods")
MATHEMATICS += ("parameterizations", "bases", "weightings", "elbo", "samplers")
BELOW = (*MATHEMATICS, "nets", "data", "training")  # models and runs take more than an example
TYPES = "Elbo", "Preconditioning", "Schedule", "TrainState", "stacked"
EXPECTED = {
    f"{thing.__module__}.{thing.__name__}"
    for thing in (getattr(vdm, name) for name in (*vdm.__all__, *TYPES))
    if (inspect.isclass(thing) or inspect.isroutine(thing))
    and thing.__module__.split(".")[1] in BELOW
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    result = runner.run(EXAMPLES[name], out=output.write)
    assert result.attempted == len(EXAMPLES[name].examples) > 0
    assert result.failed == 0, output.getvalue()


def test_public_functions_have_examples():
    assert len(EXPECTED) >= 20
    assert EXPECTED - set(EXAMPLES) == set()


def test_wrong_example_is_detected():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(test, out=lambda line: None).failed == 1


OPENINGS = re.compile(r"(What|Of|Whether|How|That|Such|The same)\b")


def test_docstrings_open_with_a_verb_or_a_noun():
    """No docstring of the package, constants included, opens with a subordinate clause."""
    bad_openings = []
    for path in sorted(Path(vdm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            text = str(node.value.value).strip() if is_string else ""
            if OPENINGS.match(text):
                bad_openings.append(f"{path}: {text.splitlines()[0]}")
    assert bad_openings == []
