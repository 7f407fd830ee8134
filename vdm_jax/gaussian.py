"""Diagonal Gaussians in log-variances: log-density, sampling and KL, eq. (4)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_instance, check_key, check_real
from vdm_jax.typing import Data, Key, Reals, Scalar

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """N(mean, diag exp(log_var)); `log_var` has the mean's shape or is a scalar.

    Examples:
      >>> q = vdm.Gaussian(mean=jnp.asarray([1.0, -1.0]), log_var=jnp.log(jnp.asarray(4.0)))
      >>> print(f"{q.log_prob(jnp.asarray([1.0, -1.0])):.3f}")  # −log(2π·4), at the mean
      -3.224
      >>> q.sample(jax.random.key(0)).shape
      (2,)
    """

    mean: Data
    log_var: Reals

    def sample(self, key: Key) -> Data:
        """Draw mean + σ·ε, differentiable in mean and log-variance.

        Raises:
          TypeError: no typed key.
        """
        check_key(key)
        noise = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean))
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def log_prob(self, x: Data) -> Scalar:
        """Log-density of `x` in nats, summed over all axes.

        Raises:
          ValueError: `x` has another shape than the mean, or the log-variance one that is not the mean's.
        """
        check_shape(jnp.shape(x), _shape(self), "log_prob: x")
        z2 = jnp.square(x - self.mean) * jnp.exp(-self.log_var)
        return -0.5 * jnp.sum(z2 + self.log_var + LOG_2PI)


def check_shape(found: Sequence[int], expected: Sequence[int], what: str) -> None:
    """Raise ValueError unless two shapes are the same: those that broadcast make sums of the wrong terms."""
    if tuple(found) != tuple(expected):
        raise ValueError(f"{what}: expected shape {tuple(expected)}, found {tuple(found)}")


def _shape(normal: Gaussian) -> tuple[int, ...]:
    """The mean's, which the log-variance has too unless it is a scalar."""
    check_instance(normal, Gaussian, "kl", "vdm.Gaussian(mean, log_var)")
    check_real(normal.mean, "mean of a Gaussian")
    check_real(normal.log_var, "log_var of a Gaussian")
    shape = jnp.shape(normal.mean)
    if jnp.ndim(normal.log_var) > 0:
        check_shape(jnp.shape(normal.log_var), shape, "log_var of a Gaussian")
    return shape


def standard_normal(shape: tuple[int, ...], dtype=None) -> Gaussian:
    """N(0, I) of that shape."""
    return Gaussian(jnp.zeros(shape, dtype), jnp.zeros((), dtype))


def kl(q: Gaussian, p: Gaussian) -> Scalar:
    """KL(q ‖ p) in nats, summed over all axes, eq. (4); relative accuracy holds as the two meet.

    Raises:
      ValueError: the means have different shapes, or a log-variance one that is not its mean's.

    Examples:
      >>> p = vdm.Gaussian(jnp.zeros(2), jnp.asarray(0.0))
      >>> q = vdm.Gaussian(jnp.asarray([0.5, 0.0]), jnp.asarray(0.0))
      >>> print(f"{vdm.kl(q, p):.4f}, {vdm.kl(p, p):.4f}")  # ½·0.5², and 0
      0.1250, 0.0000
    """
    check_shape(_shape(p), _shape(q), "kl: mean of p")
    log_ratio = q.log_var - p.log_var
    z2 = jnp.square(q.mean - p.mean) * jnp.exp(-p.log_var)
    return 0.5 * jnp.sum(z2 + expm1_minus(log_ratio))


def cross_entropy(q: Gaussian, p: Gaussian) -> Scalar:
    """−E_q log p in nats, summed over all axes.

    Raises:
      ValueError: as of `kl`.

    Examples:
      >>> from vdm_jax.gaussian import cross_entropy, standard_normal
      >>> p = standard_normal((2,))
      >>> print(f"{cross_entropy(p, p):.3f}")  # its entropy, log(2πe)
      2.838
    """
    check_shape(_shape(p), _shape(q), "cross_entropy: mean of p")
    second_moment = jnp.exp(q.log_var) + jnp.square(q.mean - p.mean)
    return 0.5 * jnp.sum(second_moment * jnp.exp(-p.log_var) + p.log_var + LOG_2PI)


def expm1_minus(x: Reals) -> Reals:
    """e^x − 1 − x, elementwise; a Taylor polynomial near 0, where the plain form cancels."""
    small = jnp.abs(x) < 0.5
    s = jnp.where(small, x, 0.0)
    tail = jnp.ones_like(s)
    for n in range(15, 2, -1):  # Horner; 0.5^14/16!·2 < float64 epsilon
        tail = 1.0 + s / n * tail
    return jnp.where(small, 0.5 * s * s * tail, jnp.expm1(jnp.where(small, 1.0, x)) - x)
