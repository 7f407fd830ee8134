"""The type of a base denoiser."""

from collections.abc import Callable
from typing import NamedTuple

from vdm_jax.parameterizations import Preconditioning, TargetCoefficients
from vdm_jax.typing import Data, Scalar


class Base(NamedTuple):
    """A fixed denoiser that treats each position separately, so that its error follows from histograms.

    Attributes:
      estimate: (xt, gamma_t, preconditioning) -> b [*d].
      error: (x0, eps, xt, gamma_t, preconditioning, target) -> x0 − b.
      deviation: (gamma_t, preconditioning, target) -> root mean square of x0 − b per position.
      informative: True if b contains information beyond x_t; the network then receives b as an input.

    Examples:
      >>> base = vdm.bases.levels(levels=2)  # data are −½ or ½
      >>> preconditioning = vdm.parameterizations.x0()(vdm.Interval(*jnp.asarray([-2.0, 0.0, 2.0])))
      >>> print(np.asarray(base.estimate(jnp.asarray([0.0, 5.0]), jnp.asarray(0.0), preconditioning)).round(3))
      [0.    0.499]
    """

    estimate: Callable[[Data, Scalar, Preconditioning], Data]
    error: Callable[[Data, Data, Data, Scalar, Preconditioning, TargetCoefficients], Data]
    deviation: Callable[[Scalar, Preconditioning, TargetCoefficients], Scalar]
    informative: bool
