"""The devices of a process, and the cache of its compiled programs."""

from pathlib import Path

import jax
import platformdirs

from vdm_jax.xla import cores


def check_devices() -> None:
    """Find JAX's devices.

    Raises:
      ValueError: there are none of the kind that JAX was told to use.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's own, for the second there are no words
        asked = jax.config.values["jax_platforms"]
        words = next(iter(str(error).splitlines()), "") or "it has no such device"
        raise ValueError(f"JAX cannot use JAX_PLATFORMS={asked!r} here: {words}") from error


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told where, or it cannot be written.

    XLA compiles for as many cores as the process has, and JAX's key does not say for how many: a program that
    was compiled for one would be slow on two.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = Path(platformdirs.user_cache_dir("vdm_jax")) / f"xla-{cores()}-cores"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
