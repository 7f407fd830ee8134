"""The type of a weighting: the weight of a squared error by noise level, and the space of that error."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_callable
from vdm_jax.parameterizations import Parameterization
from vdm_jax.typing import Real, Scalar


def _chosen(loss_space: Parameterization) -> Parameterization:
    return loss_space


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
