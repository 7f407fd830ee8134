"""Weights of the noise levels in the training loss.

The loss of one example is w · ‖F − target‖² with t uniform, where F − target is the error in some space (a row
of the parameterizations, whatever the network outputs) and λ = −γ is the log-SNR:

    name      w                                    error of   paper
    elbo      the bound's own, eq. (13), (14)      any        Kingma et al. 2021
    simple    1                                    chosen     Ho et al. 2020 (eps)
    min_snr   min(SNR, limit)                      x_0        Hang et al. 2023
    sigmoid   the bound's own · sigmoid(bias − λ)  any        Kingma & Gao 2023, Hoogeboom et al. 2024
    p2        (k + SNR)^−power                     ε          Choi et al. 2022

Each is one loss, whatever the network predicts and in whatever space a model takes its error, except `simple`,
whose meaning is the plain error of the chosen space.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_callable
from vdm_jax.parameterizations import Parameterization, eps, stacked, switch_by_index, x0
from vdm_jax.specs import build
from vdm_jax.typing import Real, Scalar, as_float


def _chosen(loss_space: Parameterization) -> Parameterization:
    return loss_space


def _in_eps(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return eps()


def _in_x0(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return x0()


class Weighting(NamedTuple):
    """The weight of a squared error, and the space that the error is taken in. Call it for the weight.

    A plain function (log_snr, exact) -> weight is a `Weighting` of the error in the model's `loss_space`.

    Attributes:
      weigh: (log_snr, exact) -> w, where `exact` is the weight of that error in the bound.
      space: the space of the model -> the space of the error.
      bound: True if the loss is the bound itself.
    """

    weigh: Callable[[Scalar, Real], Scalar]
    error_space: Callable[[Parameterization], Parameterization] = _chosen
    bound: bool = False

    def __call__(self, log_snr: Scalar, exact: Real) -> Scalar:
        return jnp.asarray(self.weigh(log_snr, exact), jnp.result_type(exact))


def as_weighting(given: Any) -> Weighting:
    """Turn a function (log_snr, exact) -> weight into a `Weighting`.

    Raises:
      TypeError: the argument is not callable.
    """
    if isinstance(given, Weighting):
        return given
    check_callable(given, ("log_snr", "exact"), "weighting")
    return Weighting(given, bound=_returns_exact(given))


def _returns_exact(weigh: Callable[[Scalar, Real], Scalar]) -> bool:
    """Return True if a function gives the bound's own weight at several points and is not traced."""
    points = (-9.1, 0.3), (-2.7, 5.9), (0.7, 2.3), (3.1, 0.0), (8.3, 41.0)
    try:
        with jax.ensure_compile_time_eval():  # models are built inside traced functions, too
            pairs = [map(jnp.asarray, point) for point in points]
            return all(bool(weigh(log_snr, exact) == exact) for log_snr, exact in pairs)
    except jax.errors.JAXTypeError:
        return False


def elbo() -> Weighting:
    """Weigh each noise level as the bound does, eq. (13) and (14)."""
    return Weighting(lambda log_snr, exact: as_float(exact), _in_eps, bound=True)


def simple() -> Weighting:
    """Use the plain squared error of the model's space (Ho et al. 2020 for eps)."""
    return Weighting(lambda log_snr, exact: jnp.ones_like(log_snr))


def min_snr(*, limit: float = 5.0) -> Weighting:
    """Weigh the error of x_0 by min(SNR, limit) (Hang et al. 2023).

    Raises:
      ValueError: limit not above 0.

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
      ValueError: k not above 0.
    """
    if not k > 0:
        raise ValueError(f"k: expected a number above 0, found {k}")
    return Weighting(
        lambda log_snr, exact: jnp.exp(-power * jnp.logaddexp(log_snr, math.log(k))), _in_eps
    )


def stacked_weightings(rows: Sequence[Any], index: Any) -> Weighting:
    """Return weighting `index` of several, where `index` may be traced, as `stacked` does for rows."""
    rows = [as_weighting(row) for row in rows]
    return Weighting(
        switch_by_index(rows, index),
        lambda loss_space: stacked([row.error_space(loss_space) for row in rows], index),
        all(row.bound for row in rows),
    )


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "elbo": elbo,
    "simple": simple,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "p2": p2,
}
"""name -> factory of a `Weighting`."""


def wrap_function(spec: Any) -> Any:
    """Turn a function (log_snr, exact) -> weight into a `Weighting`; return other specs unchanged."""
    known = isinstance(spec, Weighting) or spec in WEIGHTINGS.values()
    return as_weighting(spec) if callable(spec) and not known else spec


def build_weighting(spec: Any) -> Weighting:
    """Build the weighting that a spec names, or wrap a function (log_snr, exact) -> weight.

    Raises:
      ValueError, TypeError: those of `build` and `as_weighting`.
    """
    return build(WEIGHTINGS, wrap_function(spec), "weighting")
