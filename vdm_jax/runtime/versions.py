"""The versions of the libraries that a checkpoint or a report was made with."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = "vdm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a checkpoint or a report was made with."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            versions[name] = "unknown"
    return versions
