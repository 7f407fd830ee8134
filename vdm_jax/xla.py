"""A workaround for an optimization of XLA:CPU that returns wrong numbers, and the number of CPU cores.

From jaxlib 0.10.2 on, XLA may offload reductions on the CPU to YNNPACK, and some fused reductions are wrong
without an error: under `jit`, a sum of squares over the last axis of a few thousand rows is off by orders of
magnitude (jax-ml/jax issue 39103; also in jaxlib 0.12.0.1 for `cross_entropy` over 4,096 examples). XLA reads
the flag when the first CPU computation starts, so that it must be in the environment before. The flag affects
only the CPU. A user's setting of the flag is kept.
"""

import os
import sys
from importlib.metadata import version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# from the first version of jaxlib, and below the second; elsewhere, XLA aborts if it does not know the flag
KNOWN_TO_FAIL = (0, 10, 2), (0, 13)
JAX_WAS_THERE = (
    "jax" in sys.modules
)  # imported before vdm_jax, so that it may have computed already


def avoid_wrong_cpu_reductions() -> None:
    """Add the flag to XLA_FLAGS if this jaxlib needs it and the user has not set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _fails() and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()


def came_late() -> bool:
    """Return True if JAX was imported before the flag was set, and this jaxlib needs it."""
    return JAX_WAS_THERE and _fails()


def _fails() -> bool:
    installed = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    first, end = KNOWN_TO_FAIL
    return first <= installed < end


def cores() -> int:
    """Return the number of cores that this process may use, and that XLA:CPU compiles for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
