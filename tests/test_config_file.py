"""Config files: what they return, and one line for whatever is wrong with them."""

import os

import pytest

from vdm_jax.config import default
from vdm_jax.config_file import load_config

GOOD = "from vdm_jax.config import default\ndef get_config({}):\n    return default()\n"

BROKEN = {
    "returns nothing": (
        "def get_config():\n    pass\n",
        "get_config of own.py returned None, expected",
    ),
    "returns a number": (
        "def get_config():\n    return 3\n",
        "get_config of own.py returned 3, expected",
    ),
    "no function": ("x = 1\n", "own.py has no function get_config"),
    "no callable": ("get_config = 3\n", "own.py has no function get_config"),
    "raises": (
        "def get_config():\n    return 1 / 0\n",
        "own.py, line 2: ZeroDivisionError: division",
    ),
    "raises at once": ("\n\nraise KeyError('x')\n", "own.py, line 3: KeyError: 'x'"),
    "raises in a call": (
        "import json\ndef get_config():\n    return json.loads('{')\n",
        "own.py, line 3: JSONDecodeError: ",
    ),
    "raises nothing said": ("assert False\n", "own.py, line 1: AssertionError"),
    "leaves": ("import sys\nsys.exit(3)\n", "own.py, line 2: SystemExit: 3"),
    "syntax": ("def get_config():\n    return (\n", "own.py, line 2: SyntaxError: "),
    "indentation": ("def get_config():\nreturn 3\n", "own.py, line 2: IndentationError: "),
    "missing import": (
        "import nothing_of_that_name\n",
        "own.py, line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ),
    "missing name": (
        "from vdm_jax.config import defualt\n",
        "own.py, line 1: ImportError: cannot import name 'defualt'",
    ),
    "not UTF-8": (b"# \xff\n", "own.py: SyntaxError: invalid or missing encoding"),
    "not UTF-8 later": (b"\n\nx = 1  # \xff\n", "own.py: UnicodeDecodeError: 'utf-8' codec"),
    "NUL bytes": (b"\0\0\n", "own.py: "),
    "bytes of another kind": (bytes(range(256)), "own.py"),
    "needs an argument": (
        GOOD.format("x"),
        "get_config of own.py: missing a required argument: 'x'; expected --config=own.py:ARGUMENT",
    ),
    "recursion": ("def get_config():\n    return get_config()\n", "own.py, line 2: RecursionError"),
    "own error": (
        "class Odd(Exception):\n    pass\nraise Odd('two\\nlines')\n",
        "own.py, line 3: Odd: two",
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(here, name):
    content, start = BROKEN[name]
    (here / "own.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^--config: ") as caught:
        load_config("own.py")
    assert str(caught.value).startswith(f"--config: {start}")
    assert [path.name for path in here.iterdir()] == ["own.py"]


def test_what_is_no_file(here):
    (here / "folder").mkdir()
    (here / "gone").symlink_to("nowhere")
    os.mkfifo(here / "pipe")
    for name, words in {
        "folder": "'folder' is a folder, expected a file such as configs/eps.py",
        "gone": "no file 'gone' in ",
        "nothing.py": "no file 'nothing.py' in ",
        "nothing.py:x": "no file 'nothing.py' in ",
        "pipe": "'pipe' is no regular file",
        "": "expected a config file",
        "gs://bucket/eps.py": "no file ",
        "~nobody-of-that-name/x.py": "has no home folder here",
    }.items():
        with pytest.raises(ValueError, match=rf"^--config: .*{words}"):
            load_config(name)


def test_arguments(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    text = "def get_config(size='small'):\n    return {'size': size}\n"
    (here / "own.py").write_text(text)
    (here / "a:b.py").write_text(text)
    (here / "link.py").symlink_to("own.py")
    for given, size in {
        "own.py": "small",
        "own.py:big": "big",
        "own.py:a:b": "a:b",
        "own.py:": "",
        "a:b.py": "small",
        "link.py": "small",
        "~/own.py": "small",
        str(here / "own.py"): "small",
    }.items():
        _, config = load_config(given)
        assert config.size == size
    (here / "own.py").write_text(GOOD.format(""))
    with pytest.raises(
        ValueError, match=r"too many positional arguments; expected --config=own.py$"
    ):
        load_config("own.py:big")


def test_files_are_read_anew(here):
    """Twice within the resolution of a file's time, with the same size."""
    for value in (1, 2):
        (here / "own.py").write_text(f"def get_config():\n    return {{'value': {value}}}\n")
        _, config = load_config("own.py")
        assert config.value == value


def test_files_may_hold_dataclasses(here):
    (here / "own.py").write_text(
        "from __future__ import annotations\nimport dataclasses, pathlib\n"
        "@dataclasses.dataclass\nclass A:\n    x: int = 3\n"
        "def get_config():\n    return {'x': A().x, 'file': pathlib.Path(__file__).name}\n"
    )
    path, config = load_config("own.py")
    assert (path.name, config.to_dict()) == ("own.py", {"x": 3, "file": "own.py"})


def test_frozen_and_plain_configs(here):
    for kind in ("FrozenConfigDict(default())", "default().to_dict()", "default()"):
        (here / "own.py").write_text(
            "from ml_collections import FrozenConfigDict\nfrom vdm_jax.config import default\n"
            f"def get_config():\n    return {kind}\n"
        )
        _, config = load_config("own.py")
        config.seed = 5
        assert config.train.to_dict() == default().train.to_dict()
