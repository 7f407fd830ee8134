"""vdm_jax: variational diffusion models as pure functions on JAX."""

from vdm_jax.xla import avoid_wrong_cpu_reductions

avoid_wrong_cpu_reductions()  # before anything can start a computation
