"""JAX's devices and its cache of compiled programs."""

from pathlib import Path

import jax
import platformdirs

from vdm_jax.xla import cores


def check_devices() -> None:
    """Check that JAX finds the devices that it is configured to use.

    Raises:
      ValueError: there are no devices of the platforms in JAX_PLATFORMS.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's AssertionError has no message
        platforms = jax.config.values["jax_platforms"]
        reason = next(iter(str(error).splitlines()), "") or "it has no such device"
        raise ValueError(f"JAX cannot use JAX_PLATFORMS={platforms!r} here: {reason}") from error


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, if JAX has no other one and it is writable.

    XLA compiles for the number of cores of the process, but JAX's cache key does not contain this number: a
    program compiled for one core would be slow on two. Hence a folder for each number of cores.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = Path(platformdirs.user_cache_dir("vdm_jax")) / f"xla-{cores()}-cores"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
