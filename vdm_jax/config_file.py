"""Config files: Python files with a function `get_config`, which are executed and therefore trusted."""

import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

MODULE = "vdm_jax_config_file"
"""Module name of a config file while it runs; dataclasses look up their module in `sys.modules`."""


def load_config(text: str) -> tuple[Path, Any]:
    """Run a config file.

    Args:
      text: FILE, or FILE:ARGUMENT for a `get_config` that takes an argument.

    Returns:
      (path, config): the file, and the result of its `get_config` as a `ConfigDict`.

    Raises:
      ValueError: a missing file, an error in the file (with its line), a `get_config` that returns no config.
    """
    path, arguments = _file(text)
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    try:
        # without an importer, which would run the old bytecode of a file that was edited within the same second
        source = importlib.util.decode_source(path.read_bytes())
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(_line(error, path)) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"--config: {path} has no function get_config")
    _check_arguments(get_config, arguments, path)
    try:
        result: Any = get_config(*arguments)
        # `type`, because a class may claim to be another one; and in `try`, because a conversion may fail
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
    """Return the file that --config names, and the list of the arguments of its `get_config`."""
    if not text:
        raise ValueError("--config: expected a config file such as configs/eps.py, found ''")
    name, colon, argument = text, "", ""
    if not _path(text).exists():  # a file name may contain a colon
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
    """Return a path with '~' expanded."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--config: {name!r} has no home folder here") from error


def _check_arguments(get_config: Callable[..., Any], arguments: list[str], path: Path) -> None:
    # not by the call, whose TypeError may come from inside of the function
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        expected = f"{path}:ARGUMENT" if not arguments else f"{path}"
        raise ValueError(
            f"--config: get_config of {path}: {error}; expected --config={expected}"
        ) from error


def _line(error: BaseException, path: Path) -> str:
    """Return one line about an error in a config file, with the number of the line that raised it."""
    kind, message, line = type(error).__name__, str(error), None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        message, line = error.msg, error.lineno
    trace = error.__traceback__
    # the last entry of the file itself: an error may be raised in a library that the file calls
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}, line {line}" if line else f"{path}"
    return f"--config: {where}: {kind}: {message}" if message else f"--config: {where}: {kind}"
