"""The tables of the public submodules."""

import inspect
from typing import Any

import vdm_jax as vdm


def tables() -> dict[str, dict[str, Any]]:
    """Return every table of components, by its name."""
    modules = filter(inspect.ismodule, (getattr(vdm, name) for name in vdm.__all__))
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, dict)
    }
