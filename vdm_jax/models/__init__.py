"""Model families: functions that return a `Model`."""

from collections.abc import Callable

from vdm_jax.models.model import Model, Statistics
from vdm_jax.models.vdm import vdm

MODELS: dict[str, Callable[..., Model]] = {"vdm": vdm}

__all__ = ["MODELS", "Model", "Statistics", "vdm"]
