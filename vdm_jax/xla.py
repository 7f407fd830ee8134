"""Workarounds for XLA:CPU: an optimization that returns wrong numbers is switched off; its cores are counted.

From jaxlib 0.10.2 on, reductions on the CPU may be offloaded to YNNPACK, and some fused ones come out wrong
without an error: a sum of squares over the last axis of a few thousand rows is off by orders of magnitude
under `jit` (jax-ml/jax issue 39103; still so in jaxlib 0.12.0.1 for `cross_entropy` over 4,096 examples).
The flag is read when the first CPU computation starts, so it has to be in the environment before that; it
concerns the CPU alone. A user's own setting of it is left as it is.
"""

import os
import sys
from importlib.metadata import version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
KNOWN_TO_FAIL = (0, 10, 2), (0, 13)  # from, below; XLA stops at a flag that a version does not know
JAX_WAS_THERE = "jax" in sys.modules  # and may have computed


def avoid_wrong_cpu_reductions() -> None:
    """Add the flag to XLA_FLAGS where this jaxlib needs it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _fails() and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()


def came_late() -> bool:
    """Return True if JAX was imported before the flag was set, and this jaxlib needs it."""
    return JAX_WAS_THERE and _fails()


def _fails() -> bool:
    found = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    first, fixed = KNOWN_TO_FAIL
    return first <= found < fixed


def cores() -> int:
    """Return the cores that this process may use, and that XLA:CPU compiles for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
