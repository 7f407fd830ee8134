"""The arguments of a user's function, read from its signature and never from trial calls."""

import inspect
from collections.abc import Callable
from typing import Any


def named(function: Callable[..., Any]) -> list[str]:
    """Return the names of all arguments of a function."""
    return list(inspect.signature(function).parameters)


def known(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of the keyword `arguments` that a function takes by name."""
    names = named(function)
    return {name: value for name, value in arguments.items() if name in names}


def positional(function: Callable[..., Any]) -> list[str] | None:
    """Return the names of the positional arguments except `extra` and `keys`, or None for `*arguments`."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("extra", "keys")]


def required(function: Callable[..., Any]) -> int:
    """Return the number of positional arguments, except `extra` and `keys`, without a default."""
    parameters = inspect.signature(function).parameters
    names = positional(function) or []
    return sum(parameters[name].default is inspect.Parameter.empty for name in names)
