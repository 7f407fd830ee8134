"""Parameterizations of the network's output, each defined by two numbers, docs/equations.md §4.

The network's output F means x̂_0 = skip·x_t + out·F. Its regression target is (x_0 − skip·x_t)/out. Written
in (x_0, ε) the target needs no cancelling difference, so that each parameterization states both:

    name     F predicts             skip                  out                 target = a·x_0 + b·ε
    x0       x_0                    0                     1                   (1, 0)
    eps      ε                      1/α_t                 −σ_t/α_t            (0, 1)
    mean     mean of (9)            −1/(α_t expm1(Δ))     1/(α_s(1−e^{−Δ}))   (α_s, (α_s/α_t) e^{−Δ} σ_t)
    v        α_t ε − σ_t x_0        α_t                   −σ_t                (−σ_t, α_t)
    score    ∇ log q(x_t|x_0)       1/α_t                 σ_t²/α_t            (0, −1/σ_t)
    flow     ε − x_0                1/(α_t + σ_t)         −σ_t/(α_t + σ_t)    (−1, 1)

Because skip, out, a and b are numbers, one `vmap` can run over several parameterizations (`stacked`).
Sources: Luo 2022 (arXiv 2208.11970), Salimans & Ho 2022 (v), Lipman et al. 2023 (flow).
"""

from collections.abc import Callable

from vdm_jax.parameterizations.base import (
    Parameterization,
    Preconditioning,
    TargetCoefficients,
    regression_target,
    to_x0,
)
from vdm_jax.parameterizations.rows import eps, flow, mean, score, v, x0
from vdm_jax.parameterizations.stacking import stacked, switch_by_index
from vdm_jax.parameterizations.weights import ErrorWeight, bound_weight, exact_weight

__all__ = [
    "PARAMETERIZATIONS",
    "ErrorWeight",
    "Parameterization",
    "Preconditioning",
    "TargetCoefficients",
    "bound_weight",
    "eps",
    "exact_weight",
    "flow",
    "mean",
    "regression_target",
    "score",
    "stacked",
    "switch_by_index",
    "to_x0",
    "v",
    "x0",
]

PARAMETERIZATIONS: dict[str, Callable[[], Parameterization]] = {
    "mean": mean,
    "x0": x0,
    "eps": eps,
    "v": v,
    "score": score,
    "flow": flow,
}
"""name -> factory of a `Parameterization`."""
