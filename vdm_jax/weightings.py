"""Weights of the noise levels in the training loss.

The loss of one example is w · ‖F − target‖² with t uniform. F − target is the error in some space, which is
one of the parameterizations and need not be that of the network's output; λ = −γ is the log-SNR:

    name      w                                    error of   paper
    elbo      the bound's own, eq. (13), (14)      any        Kingma et al. 2021
    simple    1                                    chosen     Ho et al. 2020 (eps)
    min_snr   min(SNR, limit)                      x_0        Hang et al. 2023
    sigmoid   the bound's own · sigmoid(bias − λ)  any        Kingma & Gao 2023, Hoogeboom et al. 2024
    p2        (k + SNR)^−power                     ε          Choi et al. 2022

Each weighting defines one loss, independent of what the network predicts and of the model's `loss_space`. The
exception is `simple`, the plain squared error in the chosen `loss_space`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_callable
from vdm_jax.diffusion import Interval
from vdm_jax.parameterizations import (
    ErrorWeight,
    Parameterization,
    eps,
    exact_weight,
    stacked,
    switch_by_index,
    x0,
)
from vdm_jax.specs import build
from vdm_jax.typing import Array, Bool, Int, Real, Scalar, Spec, as_float


def _chosen(loss_space: Parameterization) -> Parameterization:
    return loss_space


def _in_eps(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return eps()


def _in_x0(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return x0()


class Weighting(NamedTuple):
    """The weight of a squared error, and the space of that error. Calling it returns the weight.

    A plain function (log_snr, exact) -> weight is a `Weighting` of the error in the model's `loss_space`.

    Attributes:
      weigh: (log_snr, exact) -> w, where `exact` is the weight of that error in the bound.
      error_space: the model's `loss_space` -> the parameterization in which the error is measured.
      bound: True if the loss is the bound itself.
    """

    weigh: Callable[[Scalar, Real], Scalar]
    error_space: Callable[[Parameterization], Parameterization] = _chosen
    bound: bool = False

    def __call__(self, log_snr: Scalar, exact: Real) -> Scalar:
        # a function of NumPy or Python numbers must not change the type of the loss
        return jnp.asarray(self.weigh(log_snr, exact), jnp.result_type(exact))


def as_weighting(given: Weighting | Callable[..., Any]) -> Weighting:
    """Convert a function (log_snr, exact) -> weight to a `Weighting`; return a `Weighting` unchanged.

    Raises:
      TypeError: the argument is not callable.
    """
    if isinstance(given, Weighting):
        return given
    check_callable(given, ("log_snr", "exact"), "weighting")
    return Weighting(given, bound=_returns_exact(given))


def _returns_exact(weigh: Callable[[Scalar, Real], Scalar]) -> bool:
    """Return True if a function gives the bound's own weight at several points and is not traced."""
    # arbitrary points (log_snr, exact), at which no other weight is likely to agree
    points = [(-9.1, 0.3), (-2.7, 5.9), (0.7, 2.3), (3.1, 0.0), (8.3, 41.0)]
    try:
        with jax.ensure_compile_time_eval():  # models are also built inside traced functions
            for point in points:
                log_snr, exact = jnp.asarray(point[0]), jnp.asarray(point[1])
                if not bool(weigh(log_snr, exact) == exact):
                    return False
    except jax.errors.JAXTypeError:  # the weight depends on a traced value
        return False
    return True


def elbo() -> Weighting:
    """Weigh each noise level as the bound does, eq. (13) and (14)."""
    return Weighting(lambda log_snr, exact: as_float(exact), _in_eps, bound=True)


def simple() -> Weighting:
    """Use the plain squared error in the model's `loss_space` (Ho et al. 2020 for eps)."""
    return Weighting(lambda log_snr, exact: jnp.ones_like(log_snr))


def min_snr(*, limit: float = 5.0) -> Weighting:
    """Weigh the error of x_0 by min(SNR, limit) (Hang et al. 2023).

    Raises:
      ValueError: `limit` is not above 0.

    Examples:
      >>> weigh = vdm.weightings.min_snr()
      >>> print(jax.vmap(weigh, (0, None))(jnp.log(jnp.asarray([1.0, 4.0, 40.0])), 1.0).round(3))
      [1. 4. 5.]
    """
    if not limit > 0:
        raise ValueError(f"limit: expected a number above 0, found {limit}")
    return Weighting(lambda log_snr, exact: jnp.exp(jnp.minimum(log_snr, math.log(limit))), _in_x0)


def sigmoid(*, bias: float = 2.0) -> Weighting:
    """Weigh each noise level by the bound's weight times sigmoid(bias − λ).

    The loss is ½ E_t[−λ'(t) sigmoid(bias − λ) ‖ε − ε̂‖²] (Kingma & Gao 2023, Hoogeboom et al. 2024), an integral
    over the log-SNR that does not depend on the schedule between its ends.
    """
    return Weighting(lambda log_snr, exact: exact * jax.nn.sigmoid(bias - log_snr), _in_eps)


def p2(*, k: float = 1.0, power: float = 1.0) -> Weighting:
    """Weigh the error of ε by (k + SNR)^−power (Choi et al. 2022).

    Raises:
      ValueError: `k` is not above 0.
    """
    if not k > 0:
        raise ValueError(f"k: expected a number above 0, found {k}")
    return Weighting(
        lambda log_snr, exact: jnp.exp(-power * jnp.logaddexp(log_snr, math.log(k))), _in_eps
    )


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


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "elbo": elbo,
    "simple": simple,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "p2": p2,
}
"""name -> factory of a `Weighting`."""


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


def training_weight(
    interval: Interval,
    time_weight: Scalar,
    parameterization: Parameterization,
    loss_space: Parameterization,
    weighting: Weighting,
) -> ErrorWeight:
    """Return the weight of the error x_0 − x̂_0 in a training loss, for `elbo.weighted_square`.

    Weight and scale are products: a ratio to the bound's weight would be 0/0 where a schedule is flat.

    Args:
      interval, time_weight: from `training_interval`.
      parameterization: of the network's output.
      loss_space: of the model; the weighting decides whether the loss depends on it.
      weighting: the `Weighting` of the loss.
    """
    error_space = weighting.error_space(loss_space)
    weight = weighting(-interval.gamma_t, exact_or_zero(interval, time_weight, error_space))
    blind = is_blind(interval, parameterization, error_space)
    return ErrorWeight(jnp.where(blind, 0, weight), 1 / error_space(interval).out)


def exact_or_zero(interval: Interval, time_weight: Scalar, error_space: Parameterization) -> Scalar:
    """Return the weight in the bound of a squared error in a space; 0 where the schedule is flat."""
    weight = exact_weight(interval, error_space(interval), time_weight)
    # where the schedule is flat, `out` of `mean` may overflow, and 0 · ∞ is NaN
    return jnp.where(time_weight == 0, 0, weight)


def is_blind(
    interval: Interval, parameterization: Parameterization, error_space: Parameterization
) -> Bool[Array, ""]:
    """Return True if an output carries no information about the error in a space.

    Among `PARAMETERIZATIONS` only `mean` is blind, and only where the schedule is flat: its target is then x_t
    for every x_0, and an error of x_0 would be that of `mean`, which is finite, times 1/Δ.
    """

    def magnification(interval):
        return jnp.abs(parameterization(interval).out / error_space(interval).out)

    # custom parameterizations have no flag for this: compare with the magnification at Δ = 1
    usual = magnification(interval._replace(delta=jnp.ones_like(interval.delta)))
    return (interval.delta == 0) & (magnification(interval) > 1e3 * usual)
