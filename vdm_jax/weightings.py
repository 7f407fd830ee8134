"""How much each noise level counts in the training loss, each defined once in log-SNR λ = −γ.

The loss of one example is w · ‖F − target‖² in a chosen space (any row of the parameterizations, whatever
the network outputs). `elbo` is the exact weight of that space, so that the loss is the bound itself in
every space; the others are functions of λ alone, and the space in which their paper used them is named.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.typing import Scalar

Weighting = Callable[[Scalar, Scalar], Scalar]
"""(log_snr, exact) -> weight, where `exact` is the bound's weight in the chosen space."""


def elbo() -> Weighting:
    """The exact bound, eq. (13) and (14)."""
    return lambda log_snr, exact: exact


def simple() -> Weighting:
    """1: the plain squared error of the chosen space (Ho et al. 2020, eps)."""
    return lambda log_snr, exact: jnp.ones_like(log_snr)


def min_snr(*, limit: float = 5.0) -> Weighting:
    """min(SNR, limit) (Hang et al. 2023, x0).

    Raises:
      ValueError: limit not above 0.

    Examples:
      >>> weigh = vdm.WEIGHTINGS["min_snr"]()
      >>> print(jax.vmap(weigh, (0, None))(jnp.log(jnp.asarray([1.0, 4.0, 40.0])), 1.0).round(3))
      [1. 4. 5.]
    """
    if not limit > 0:
        raise ValueError(f"min_snr: limit must be positive, found {limit}")
    return lambda log_snr, exact: jnp.exp(jnp.minimum(log_snr, math.log(limit)))


def sigmoid(*, bias: float = 2.0) -> Weighting:
    """sigmoid(bias − λ) (Hoogeboom et al. 2024, eps)."""
    return lambda log_snr, exact: jax.nn.sigmoid(bias - log_snr)


def p2(*, k: float = 1.0, power: float = 1.0) -> Weighting:
    """(k + SNR)^−power (Choi et al. 2022, eps).

    Raises:
      ValueError: k not above 0.
    """
    if not k > 0:
        raise ValueError(f"p2: k must be positive, found {k}")
    return lambda log_snr, exact: jnp.exp(-power * jnp.logaddexp(math.log(k), log_snr))


def is_bound(weigh: Weighting) -> bool:
    """Whether a weighting, none that is traced, is that of the bound."""
    with jax.ensure_compile_time_eval():  # models are built inside traced functions, too
        return bool(weigh(jnp.asarray(0.7), jnp.asarray(2.3)) == jnp.asarray(2.3))


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "elbo": elbo,
    "simple": simple,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "p2": p2,
}
"""name -> factory of a `Weighting`."""
