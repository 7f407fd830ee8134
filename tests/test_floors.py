"""The floors of the package, read from its imports: nothing reaches up, around, or into private modules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vdm_jax

PACKAGE = "vdm_jax"
ROOT = Path(vdm_jax.__file__).parent
FLOORS = [  # a name stands for the module, or for everything in the folder
    {"typing", "checks", "gaussian", "keys", "xla", "specs", "runtime"},
    {"diffusion", "schedules", "likelihoods", "mixtures", "variance"},
    {"parameterizations", "bases", "output_scales", "weightings", "reductions"},
    {"elbo", "effective_weights", "samplers", "time_samplers", "estimators", "nets"},
    {"models"},
    {"training", "data"},
    {
        "settings",
        "config",
        "config_file",
        "overrides",
        "override_values",
        "runs",
        "comparison",
        "main",
    },
    {""},  # the package itself: it shows what is below it, and nothing below reads it
]
# What floors 0 to 3 may use outside `nets` and `runtime`; jaxlib is a part of JAX
FREE = {"jax", "jaxlib", "numpy", "jaxtyping"} | sys.stdlib_module_names


def module_name(path: Path) -> str:
    """`a/b.py` is "a.b", `a/__init__.py` is "a", the package itself is ""."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path.relative_to(ROOT)): (path.read_text(), path.name == "__init__.py")
    for path in sorted(ROOT.rglob("*.py"))
}


def floor(module: str) -> int | None:
    top = module.split(".")[0]
    return next((i for i, names in enumerate(FLOORS) if top in names), None)


def imports(module: str, source: str, is_folder: bool) -> list[str]:
    """Full dotted names of everything imported, anywhere in the file; `from a import b` is "a.b"."""
    here = [PACKAGE, *filter(None, module.split("."))]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + is_folder] if node.level else []
            base = [*base, *filter(None, [node.module])]
            found += [".".join([*base, alias.name]) for alias in node.names]
    return found


def arrows(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    graph = {}
    for module, (source, is_folder) in sources.items():
        graph[module] = set()
        for name in imports(module, source, is_folder):
            top, *rest = name.split(".")
            if top == PACKAGE:
                # the longest part that is a module; what follows is a name in it
                while rest and ".".join(rest) not in sources:
                    rest.pop()
                graph[module].add(".".join(rest))
        graph[module].discard(module)
    return graph


def complaints(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """Modules in no floor, arrows that go up, and cycles."""
    graph = arrows(sources)
    found = [f"{module}: in no floor" for module in graph if floor(module) is None]
    for module, targets in graph.items():
        for target in targets:
            if None not in (floor(module), floor(target)) and floor(target) > floor(module):
                found.append(f"{module} imports {target or PACKAGE}, which is above it")
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {m: targets - leaves for m, targets in graph.items() if m not in leaves}
    if graph:
        found.append(f"cycle among {sorted(graph)}")
    return found


def foreign(module: str, source: str, is_folder: bool) -> list[str]:
    """Private or experimental names of other packages, and packages that the floor may not use."""
    names = imports(module, source, is_folder)
    names += [
        ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
    ]
    imported = {name.split(".")[0] for name in imports(module, source, is_folder)}
    found = []
    for name in names:
        top, *rest = name.split(".")
        if top == PACKAGE or top not in imported:
            continue
        if top not in sys.stdlib_module_names and any(
            part.startswith("_") and not part.endswith("__") for part in [top, *rest]
        ):
            found.append(f"{module}: {name} is private")
        if name.startswith("jax.experimental"):
            found.append(f"{module}: {name} is experimental")
    low = (floor(module) or 0) <= 3 and module.split(".")[0] not in ("nets", "runtime")
    for top in sorted(imported - FREE - {PACKAGE}) if low else []:
        found.append(f"{module}: {top} is not for floors 0 to 3")
    return found


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/index.md"])
def test_pages_list_the_modules_of_each_floor(page):
    text = (ROOT.parent / page).read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.M)
    listed = {int(number): {*re.findall(r"`(\w+)`", names)} for number, names in rows}
    assert listed == {i: names for i, names in enumerate(FLOORS) if names != {""}}


def test_imports_go_down():
    assert len(SOURCES) > 15
    assert complaints(SOURCES) == []


@pytest.mark.parametrize("module", SOURCES)
def test_imports_are_public_and_few(module):
    assert foreign(module, *SOURCES[module]) == []


def test_mathematics_needs_nothing_but_jax():
    """`import vdm_jax`, in a fresh process, loads none of the libraries of the upper floors."""
    upper = [
        "flax",
        "optax",
        "orbax",
        "ml_collections",
        "grain",
        "absl",
        "matplotlib",
        "tensorflow",
    ]
    code = f"import sys, vdm_jax; print([name for name in {upper} if name in sys.modules])"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert found.stdout.strip() == "[]"


def test_every_floor_is_built_on():
    """The reader of imports sees the arrows that are there."""
    graph = arrows(SOURCES)
    assert "diffusion" in graph["schedules.base"] and "gaussian" in graph["diffusion"]
    assert "xla" in graph[""] and "nets" in graph["models.denoiser"] and "nets.mlp" in graph["nets"]


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"gaussian": "from vdm_jax.diffusion import alpha"}, "gaussian imports diffusion"),
        ({"gaussian": "def f():\n    import vdm_jax.elbo as e"}, "gaussian imports elbo"),
        ({"gaussian": "from vdm_jax import elbo"}, "gaussian imports elbo"),
        ({"gaussian": "from .elbo import prior"}, "gaussian imports elbo"),
        ({"gaussian": "from . import elbo"}, "gaussian imports elbo"),
        ({"nets.mlp": "from ..models import vdm"}, "nets.mlp imports models"),
        ({"elbo": "import vdm_jax.samplers", "samplers": "import vdm_jax.elbo"}, "cycle among"),
        ({"elbo": "from vdm_jax import vdm"}, "elbo imports vdm_jax, which is above it"),
        ({"helpers": ""}, "helpers: in no floor"),
        ({"extras.helpers": ""}, "extras.helpers: in no floor"),
    ],
)
def test_a_wrong_arrow_is_seen(extra, complaint):
    sources = {name: ("", "." not in name) for name in ("", "nets", "models", "elbo", "diffusion")}
    sources |= {"models.vdm": ("", False)}
    assert complaints(sources) == []
    found = complaints(sources | {name: (text, False) for name, text in extra.items()})
    assert len(found) == 1 and complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("elbo", "from jax._src import core", "jax._src.core is private"),
        ("training.step", "import jax._src.core", "jax._src.core is private"),
        ("nets.mlp", "from flax.linen import _helper", "flax.linen._helper is private"),
        ("elbo", "import numpy as np\nimport numpy\nnumpy._core.f()", "numpy._core is private"),
        ("models.vdm", "from jax.experimental import shard_map", "is experimental"),
        ("models.vdm", "import jax\njax.experimental.f()", "is experimental"),
        ("elbo", "import optax", "optax is not for floors 0 to 3"),
        ("typing", "def f():\n    from flax import linen", "flax is not for floors 0 to 3"),
    ],
)
def test_a_wrong_import_is_seen(module, source, complaint):
    assert any(complaint in text for text in foreign(module, source, False))


def test_imports_that_are_fine_are_not_complained_of():
    fine = "from __future__ import annotations\nimport jax\nself._x = jax.numpy.pi\nx.__name__"
    assert foreign("elbo", fine, False) == []
    assert foreign("nets.mlp", "import flax.linen as nn", False) == []
    assert foreign("training.step", "import optax", False) == []


# --- sizes -----------------------------------------------------------------------------------------------


def body_lines(function: ast.FunctionDef) -> int:
    """Return the lines of a function without those of its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_are_short(module):
    source, _ = SOURCES[module]
    assert len(source.splitlines()) <= 260
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert body_lines(node) <= 60, node.name


def test_lines_of_docstrings_do_not_count():
    source = 'def f():\n    """A.\n\n    B.\n    """\n    return 1\n'
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef) and body_lines(function) == 2
