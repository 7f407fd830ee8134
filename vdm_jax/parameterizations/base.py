"""The meaning of a network's output F: x̂_0 = skip·x_t + out·F, and the regression target of F."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.checks import check_instance, check_real
from vdm_jax.diffusion import Interval
from vdm_jax.gaussian import check_shape
from vdm_jax.typing import Data, Reals


class Preconditioning(NamedTuple):
    """The coefficients of x̂_0 = skip·x_t + out·F.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> preconditioning = vdm.parameterizations.v()(interval)
      >>> print(f"{preconditioning.skip:.3f}, {preconditioning.out:.3f}")  # α, −σ
      0.707, -0.707
    """

    skip: Reals
    out: Reals


class TargetCoefficients(NamedTuple):
    """The coefficients of the regression target of F, x0·x_0 + eps·ε."""

    x0: Reals
    eps: Reals


class Parameterization(NamedTuple):
    """The meaning of a network's output F on an interval. Calling it returns its `Preconditioning`.

    Attributes:
      preconditioning: interval -> Preconditioning.
      target: interval -> TargetCoefficients.
      continuous: True if it has a finite form as Δ → 0 (all but `mean`).
      needs_signal: True if it divides by α and is therefore undefined where SNR = 0 (`eps` and `score`).
    """

    preconditioning: Callable[[Interval], Preconditioning]
    target: Callable[[Interval], TargetCoefficients]
    continuous: bool = True
    needs_signal: bool = False

    def __call__(self, interval: Interval) -> Preconditioning:
        return self.preconditioning(interval)


def to_x0(output: Data, xt: Data, preconditioning: Preconditioning) -> Data:
    """Return the prediction x̂_0 of a network's output F.

    Raises:
      ValueError: the output and x_t differ in shape.
      TypeError: the output or x_t is not a real array, or `preconditioning` is not a `Preconditioning`.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> x0, eps = jnp.asarray([0.25]), jnp.asarray([-1.0])
      >>> xt = jnp.sqrt(0.5) * (x0 + eps)
      >>> print(np.asarray(vdm.to_x0(eps, xt, vdm.parameterizations.eps()(interval))).round(3))
      [0.25]
    """
    check_instance(
        preconditioning, Preconditioning, "preconditioning", "vdm.parameterizations.eps()(interval)"
    )
    check_real(output, "output")
    check_real(xt, "xt")
    check_shape(jnp.shape(output), jnp.shape(xt), "to_x0: output")
    return preconditioning.skip * xt + preconditioning.out * output


def regression_target(x0: Data, eps: Data, target: TargetCoefficients) -> Data:
    """Return the regression target of F for the data and the noise."""
    return target.x0 * x0 + target.eps * eps
