"""Config files: Python files with a function `get_config`, which the user trusts."""

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

MODULE = "vdm_jax_config_file"
"""The name of a config file's module while it runs; dataclasses look themselves up by it."""


def load_config(text: str) -> tuple[Path, Any]:
    """Run a config file.

    Args:
      text: FILE, or FILE:ARGUMENT for a `get_config` that takes an argument.

    Returns:
      (path, config): the file, and what its `get_config` returns as a `ConfigDict`.

    Raises:
      ValueError: no such file, an error in the file (with the line), or a `get_config` that returns no config.
    """
    path, arguments = _file(text)
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    try:
        # not through an importer, which would take a file that was edited within a second for its old bytecode
        source = importlib.util.decode_source(path.read_bytes())
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(_line(error, path)) from error
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise ValueError(f"--config: {path} has no function get_config")
    _check_arguments(make, arguments, path)
    try:
        result: Any = make(*arguments)
        config = ConfigDict(result) if issubclass(type(result), dict | ConfigDict) else None
    except (Exception, SystemExit) as error:
        raise ValueError(_line(error, path)) from error
    if config is None:
        raise ValueError(
            f"--config: get_config of {path} returned {result!r}, expected a config, such as that of "
            "vdm_jax.config.default()"
        )
    return path, config


def _file(text: str) -> tuple[Path, list[str]]:
    """The file that --config names, and the argument of its `get_config`, if any."""
    if not text:
        raise ValueError("--config: expected a config file such as configs/eps.py, found ''")
    name, colon, argument = text, "", ""
    if not _path(text).exists():
        name, colon, argument = text.partition(":")
    path = _path(name)
    if path.is_dir():
        raise ValueError(f"--config: {name!r} is a folder, expected a file such as configs/eps.py")
    if not path.exists():
        raise ValueError(
            f"--config: no file {name!r} in {Path.cwd()}, expected one such as configs/eps.py"
        )
    if not path.is_file():
        raise ValueError(f"--config: {name!r} is no regular file")
    return path, [argument] if colon else []


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--config: {name!r} has no home folder here") from error


def _check_arguments(make: Any, arguments: list[str], path: Path) -> None:
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as error:
        wanted = f"{path}:ARGUMENT" if not arguments else f"{path}"
        raise ValueError(
            f"--config: get_config of {path}: {error}; expected --config={wanted}"
        ) from error


def _line(error: BaseException, path: Path) -> str:
    """One line for an error in a config file, with the file's line that raised it."""
    kind, words, line = type(error).__name__, str(error), None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        words, line = error.msg, error.lineno
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}, line {line}" if line else f"{path}"
    return f"--config: {where}: {kind}: {words}" if words else f"--config: {where}: {kind}"
