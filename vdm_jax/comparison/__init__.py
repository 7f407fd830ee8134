"""Comparing training objectives: one call, one unit, with errors."""

from vdm_jax.comparison.experiment import compare
from vdm_jax.comparison.losses import Losses, parameterization_losses
from vdm_jax.comparison.result import Comparison, Estimate

__all__ = ["Comparison", "Estimate", "Losses", "compare", "parameterization_losses"]
