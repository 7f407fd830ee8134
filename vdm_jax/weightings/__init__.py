"""Weights of the noise levels in the training loss.

The loss of one example is w · ‖F − target‖² with t uniform. F − target is the error in some space, which is
one of the parameterizations and need not be that of the network's output; λ = −γ is the log-SNR:

    name          w                                    error of   paper
    elbo          the bound's own, eq. (13), (14)      any        Kingma et al. 2021
    simple        1                                    chosen     Ho et al. 2020 (eps)
    min_snr       min(SNR, limit)                      x_0        Hang et al. 2023
    sigmoid       the bound's own · sigmoid(bias − λ)  any        Kingma & Gao 2023, Hoogeboom et al. 2024
    p2            (k + SNR)^−power                     ε          Choi et al. 2022
    edm           p(γ) γ'(t) (1/e^γ + 1/σ_d²)          x_0        Karras et al. 2022
    logit_normal  p(γ) γ'(t)                           ε − x_0    Esser et al. 2024

Each weighting defines one loss, independent of what the network predicts and of the model's `loss_space`. The
exception is `simple`, the plain squared error in the chosen `loss_space`. The last two are means over noise
levels of density p; γ'(t) makes them independent of the schedule between its ends.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vdm_jax.parameterizations import Parameterization, stacked, switch_by_index
from vdm_jax.specs import build
from vdm_jax.typing import Array, Int, Spec
from vdm_jax.weightings.base import Weighting, as_weighting
from vdm_jax.weightings.rows import edm, elbo, logit_normal, min_snr, p2, sigmoid, simple
from vdm_jax.weightings.training import exact_or_zero, is_blind, training_weight

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "as_weighting",
    "build_weighting",
    "edm",
    "elbo",
    "exact_or_zero",
    "is_blind",
    "logit_normal",
    "min_snr",
    "p2",
    "sigmoid",
    "simple",
    "stacked_weightings",
    "training_weight",
    "wrap_function",
]

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "elbo": elbo,
    "simple": simple,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "p2": p2,
    "edm": edm,
    "logit_normal": logit_normal,
}
"""name -> factory of a `Weighting`."""


def stacked_weightings(
    rows: Sequence[Weighting | Callable[..., Any]], index: int | Int[Array, ""]
) -> Weighting:
    """Return weighting `index` of several; `index` may be traced, as in `parameterizations.stacked`."""
    weightings = [as_weighting(row) for row in rows]

    def error_space(loss_space: Parameterization) -> Parameterization:
        return stacked([w.error_space(loss_space) for w in weightings], index)

    return Weighting(
        switch_by_index(weightings, index), error_space, bound=all(w.bound for w in weightings)
    )


def wrap_function(spec: object) -> object:
    """Convert a function (log_snr, exact) -> weight to a `Weighting`; return any other spec unchanged."""
    # `build` reports a factory passed in place of its name
    is_weighting = isinstance(spec, Weighting) or spec in WEIGHTINGS.values()
    return as_weighting(spec) if callable(spec) and not is_weighting else spec


def build_weighting(spec: Spec | Weighting | Callable[..., Any]) -> Weighting:
    """Build the weighting that a spec names, or wrap a function (log_snr, exact) -> weight.

    Raises:
      ValueError, TypeError: as in `build` and `as_weighting`.
    """
    return build(WEIGHTINGS, wrap_function(spec), "weighting")
