"""Scales of the network's output: c in x̂_0 = b + out·c·net, eq. (23).

    name            c                                  the network outputs
    none            1                                  F, or its correction to the base
    unit_variance   r(γ_t)/|out|, r² = E‖x_0 − b‖²/d   a correction of unit variance, EDM's c_out

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022.
"""

from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.bases import Base
from vdm_jax.parameterizations import Preconditioning, TargetCoefficients
from vdm_jax.typing import Scalar

OutputScale = Callable[[Base, Scalar, Preconditioning, TargetCoefficients], Scalar]
"""(base, gamma_t, preconditioning, target) -> c, the factor on the network's output."""


def none() -> OutputScale:
    """Return the scale 1: the network outputs F or its correction to the base."""
    return lambda base, gamma_t, preconditioning, target: jnp.ones_like(preconditioning.out)


def unit_variance() -> OutputScale:
    """Return the standard deviation of the network's target as the scale, so that outputs are of order one."""
    return lambda base, gamma_t, preconditioning, target: (
        base.deviation(gamma_t, preconditioning, target) / jnp.abs(preconditioning.out)
    )


OUTPUT_SCALES: dict[str, Callable[[], OutputScale]] = {
    "none": none,
    "unit_variance": unit_variance,
}
"""name -> factory of an `OutputScale`."""
