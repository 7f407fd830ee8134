"""Which arguments a user's function takes; read from its signature, never from whether a call succeeds."""

import inspect
from collections.abc import Callable
from typing import Any


def named(function: Callable[..., Any]) -> list[str]:
    """Names of all arguments."""
    return list(inspect.signature(function).parameters)


def known(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of some keyword arguments that a function has."""
    names = named(function)
    return {name: value for name, value in arguments.items() if name in names}


def positional(function: Callable[..., Any]) -> list[str] | None:
    """Names of the positional arguments except `extra` and `keys`; None for any number of them."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("extra", "keys")]


def required(function: Callable[..., Any]) -> int:
    """Number of positional arguments without a default."""
    parameters = inspect.signature(function).parameters
    names = positional(function) or []
    return sum(parameters[name].default is inspect.Parameter.empty for name in names)
