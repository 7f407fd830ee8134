"""Every annotation of the package is checked at every call of every test."""

from jaxtyping import install_import_hook

install_import_hook("vdm_jax", "beartype.beartype")

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("deterministic")
