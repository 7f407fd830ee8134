"""Diagonal Gaussians given by log-variances: sampling, log-density and KL, eq. (4)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

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
          TypeError: `key` is not a typed key.
        """
        check_key(key)
        noise = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean))
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def log_prob(self, x: Data) -> Scalar:
        """Return the log-density of `x` in nats, summed over all axes.

        Raises:
          ValueError: `x` differs in shape from the mean, or so does a log-variance that is not a scalar.
        """
        check_shape(jnp.shape(x), _shape(self, "log_prob"), "log_prob: x")
        z2 = jnp.square(x - self.mean) * jnp.exp(-self.log_var)
        return -0.5 * jnp.sum(z2 + self.log_var + LOG_2PI)


def check_shape(found: Sequence[int], expected: Sequence[int], what: str) -> None:
    """Raise ValueError unless two shapes are equal; broadcasting them would sum the wrong terms."""
    if tuple(found) != tuple(expected):
        raise ValueError(f"{what}: expected shape {tuple(expected)}, found {tuple(found)}")


def _shape(normal: Gaussian, name: str) -> tuple[int, ...]:
    """Return the mean's shape, and check that the log-variance has that shape or is a scalar."""
    check_instance(normal, Gaussian, name, "vdm.Gaussian(mean, log_var)")
    check_real(normal.mean, "mean of a Gaussian")
    check_real(normal.log_var, "log_var of a Gaussian")
    shape = jnp.shape(normal.mean)
    if jnp.ndim(normal.log_var) > 0:
        check_shape(jnp.shape(normal.log_var), shape, "log_var of a Gaussian")
    return shape


def standard_normal(shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Gaussian:
    """Return N(0, I) of a shape."""
    return Gaussian(jnp.zeros(shape, dtype), jnp.zeros((), dtype))


def kl(q: Gaussian, p: Gaussian) -> Scalar:
    """Return KL(q ‖ p) in nats, summed over all axes, eq. (4), with relative accuracy even as q approaches p.

    Raises:
      TypeError: an argument is no `Gaussian` of real numbers.
      ValueError: the means differ in shape, or a log-variance that is not a scalar differs from its mean.

    Examples:
      >>> p = vdm.Gaussian(jnp.zeros(2), jnp.asarray(0.0))
      >>> q = vdm.Gaussian(jnp.asarray([0.5, 0.0]), jnp.asarray(0.0))
      >>> print(f"{vdm.kl(q, p):.4f}, {vdm.kl(p, p):.4f}")  # ½·0.5², and 0
      0.1250, 0.0000
    """
    check_shape(_shape(p, "p"), _shape(q, "q"), "kl: mean of p")
    # the second form of (4), a sum of two non-negative parts; the first cancels as q approaches p
    log_ratio = q.log_var - p.log_var
    z2 = jnp.square(q.mean - p.mean) * jnp.exp(-p.log_var)
    return 0.5 * jnp.sum(z2 + expm1_minus(log_ratio))


def cross_entropy(q: Gaussian, p: Gaussian) -> Scalar:
    """Return −E_q log p in nats, summed over all axes.

    Raises:
      ValueError: as for `kl`.

    Examples:
      >>> from vdm_jax.gaussian import cross_entropy, standard_normal
      >>> p = standard_normal((2,))
      >>> print(f"{cross_entropy(p, p):.3f}")  # the entropy of p, log(2πe)
      2.838
    """
    check_shape(_shape(p, "p"), _shape(q, "q"), "cross_entropy: mean of p")
    second_moment = jnp.exp(q.log_var) + jnp.square(q.mean - p.mean)
    return 0.5 * jnp.sum(second_moment * jnp.exp(-p.log_var) + p.log_var + LOG_2PI)


def expm1_minus(x: Reals) -> Reals:
    """Return e^x − 1 − x, elementwise, by a Taylor polynomial near 0, where the plain form cancels."""
    is_small = jnp.abs(x) < 0.5
    # the polynomial of a large x could overflow, and 0 · ∞ would then make the gradient of the selection NaN
    small = jnp.where(is_small, x, 0.0)
    tail = jnp.ones_like(small)
    for n in range(15, 2, -1):  # Horner's method; 0.5^14/16!·2 < float64 epsilon
        tail = 1.0 + small / n * tail
    series = 0.5 * small * small * tail
    return jnp.where(is_small, series, jnp.expm1(jnp.where(is_small, 1.0, x)) - x)
