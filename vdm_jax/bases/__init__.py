"""Base denoisers: fixed estimates of x_0 that the network corrects, eq. (22).

A base is a fixed denoiser b(x_t, γ_t); the network predicts the correction, x̂_0 = b + out·net. Each base
gives the estimate b, its error x_0 − b without cancellation where b is linear, and the standard
deviation of that error, by which the output scale `unit_variance` (23) multiplies the network's output.

    zero        b = skip·x_t                 F = net, no base
    input       b = (1−σ_t)/α_t · x_t        ε̂ = x_t, the "base measure" of Kingma et al. 2021
    gaussian    E[x_0 | x_t] of N(0, σ_d²)   the skip connection of EDM, Karras et al. 2022, eq. (34)
    levels      posterior mean over K levels under independent, uniform positions
    histogram   posterior mean over K levels under the training split's histogram of each position

`levels` and `histogram` are close to soft discretization (Kong et al., Information-Theoretic Diffusion, ICLR
2023).
"""

from collections.abc import Callable

from vdm_jax.bases.base import Base
from vdm_jax.bases.discrete import histogram, levels
from vdm_jax.bases.linear import gaussian, input, zero
from vdm_jax.bases.residual import measure_residual

__all__ = ["BASES", "Base", "gaussian", "histogram", "input", "levels", "measure_residual", "zero"]

BASES: dict[str, Callable[..., Base]] = {
    "zero": zero,
    "input": input,
    "gaussian": gaussian,
    "levels": levels,
    "histogram": histogram,
}
"""name -> factory of a `Base`."""
