"""The weightings of the training loss, and the densities of noise levels that act as weights."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from vdm_jax.checks import real_number
from vdm_jax.parameterizations import Parameterization, eps, x0
from vdm_jax.typing import Scalar, as_float
from vdm_jax.weightings.base import Weighting

LOG_SMALLEST = -60.0
"""Log of the smallest weight relative to the bound's, so that no weight underflows to 0."""


def elbo() -> Weighting:
    """Weigh each noise level as the bound does, eq. (13) and (14)."""
    return Weighting(lambda log_snr, exact: as_float(exact), _eps_space, bound=True)


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
    return Weighting(
        lambda log_snr, exact: jnp.exp(jnp.minimum(log_snr, math.log(limit))), _x0_space
    )


def sigmoid(*, bias: float = 2.0) -> Weighting:
    """Weigh each noise level by the bound's weight times sigmoid(bias − λ).

    The loss is ½ E_t[−λ'(t) sigmoid(bias − λ) ‖ε − ε̂‖²] (Kingma & Gao 2023, Hoogeboom et al. 2024), an integral
    over the log-SNR that does not depend on the schedule between its ends.
    """
    return Weighting(lambda log_snr, exact: exact * jax.nn.sigmoid(bias - log_snr), _eps_space)


def p2(*, k: float = 1.0, power: float = 1.0) -> Weighting:
    """Weigh the error of ε by (k + SNR)^−power (Choi et al. 2022).

    Raises:
      ValueError: `k` is not above 0.
    """
    if not k > 0:
        raise ValueError(f"k: expected a number above 0, found {k}")
    return Weighting(
        lambda log_snr, exact: jnp.exp(-power * jnp.logaddexp(log_snr, math.log(k))), _eps_space
    )


def edm(*, sigma_data: float = 0.5, mean: float = -1.2, deviation: float = 1.2) -> Weighting:
    """Weigh the error of x_0 by 1/c_out², with noise levels of a lognormal density (Karras et al. 2022).

    The loss is E[(η² + σ_d²)/(η σ_d)² ‖x_0 − x̂_0‖²], where η = σ/α = e^{γ/2} and log η is normal. It is the
    squared error of a network whose target has unit variance. Noise levels beyond the schedule's ends have no
    weight. The time sampler `lognormal_sigma` draws noise levels from nearly the same density.

    Args:
      sigma_data: σ_d, standard deviation of the data.
      mean, deviation: of log η, the paper's P_mean and P_std.

    Raises:
      ValueError: `mean` is not finite, or another argument is not positive and finite.
    """
    _check_positive(sigma_data, "sigma_data")
    # log(1 + e^γ/σ_d²)
    return _of_density(
        mean, deviation, lambda gamma: jax.nn.softplus(gamma - 2 * math.log(sigma_data))
    )


def logit_normal(*, mean: float = 0.0, deviation: float = 1.0) -> Weighting:
    """Use the squared error of ε − x_0 with the logit-normal times of rectified flows (Esser et al. 2024).

    The loss is E‖(ε − x_0) − F‖², where the time τ = σ/(α + σ) of the straight path has a normal logit, which
    is γ/2. Times beyond the schedule's ends have no weight. The time sampler `lognormal_sigma` with the same
    arguments draws noise levels from nearly the same density.

    Args:
      mean, deviation: of the logit.

    Raises:
      ValueError: `mean` is not finite, or `deviation` is not positive and finite.
    """
    # log((1 + e^{γ/2})²)
    return _of_density(mean, deviation, lambda gamma: 2 * jax.nn.softplus(0.5 * gamma))


def _of_density(mean: float, deviation: float, log_ratio: Callable[[Scalar], Scalar]) -> Weighting:
    """Return the weighting with γ/2 normal of the squared error e^{log_ratio − γ} ‖x_0 − x̂_0‖².

    The bound's weight of the error of ε is ½ γ'(t), so that the density of γ times γ'(t) is the bound's weight
    times that of γ/2.
    """
    real_number(mean, "mean")
    _check_positive(deviation, "deviation")

    def weigh(log_snr, exact):
        gamma = -log_snr
        log_weight = norm.logpdf(0.5 * gamma, mean, deviation) + log_ratio(gamma)
        return exact * jnp.exp(jnp.maximum(log_weight, LOG_SMALLEST))

    return Weighting(weigh, _eps_space)


def _check_positive(value: float, name: str) -> None:
    real_number(value, name, "a number above 0", lambda value: 0 < value < math.inf)


def _eps_space(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return eps()


def _x0_space(loss_space: Parameterization) -> Parameterization:
    del loss_space
    return x0()
