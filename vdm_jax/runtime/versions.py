"""The versions of libraries, for checkpoints and reports."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = "vdm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that determine the results of a run."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            versions[name] = "unknown"
    return versions
