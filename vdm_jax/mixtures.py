"""Mixtures of diagonal Gaussians: data whose density, moments and best denoiser are known in closed form.

With x_0 from N(m_k, v_k) with probability w_k, the latent x_t of (6) is a mixture too, with means α m_k and
variances α² v_k + σ², and E[x_0 | x_t] is the mean of the components' own posterior means, weighed by their
responsibilities. What a trained model gets wrong can be measured against it exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, check_key, check_real, is_traced, whole_number
from vdm_jax.diffusion import alpha, sigma
from vdm_jax.gaussian import Gaussian, check_shape
from vdm_jax.typing import Array, Data, Float, Key, Scalar


class Mixture(NamedTuple):
    """Σ_k w_k N(m_k, diag v_k).

    Attributes:
      weights: [k], positive, adding up to one.
      means: [k, *d].
      variances: [k, *d], positive.

    Examples:
      >>> two = vdm.Mixture.of(weights=[0.5, 0.5], means=[[-1.0], [1.0]], variances=[[0.1], [0.1]])
      >>> two.denoise(jnp.asarray([0.0]), jnp.asarray(0.0)).tolist()  # between the two
      [0.0]
      >>> two.moments()[1].round(3).tolist()
      [[1.1]]
    """

    weights: Float[Array, " k"]
    means: Float[Array, " k *d"]
    variances: Float[Array, " k *d"]

    @classmethod
    def of(cls, weights, means, variances) -> "Mixture":
        """Make one of anything that is like an array.

        Raises:
          ValueError: shapes that do not fit, weights that do not add up to one, variances not above zero.
        """
        given = dict(zip(cls._fields, (weights, means, variances), strict=True))
        for name, part in given.items():
            check_array(part, f"Mixture: {name}")
            check_real(np.asarray(part), f"Mixture: {name}")
        parts = [np.asarray(part) for part in given.values()]
        weights, means, variances = (part.astype(np.float64) for part in parts)
        return cls(*(jnp.asarray(a, float) for a in (weights, means, variances))).checked()

    def checked(self) -> "Mixture":
        """Return the mixture, if its arrays make one; what is traced is taken as it is.

        Raises:
          ValueError: shapes that do not fit, weights that do not add up to one, variances not above zero.
        """
        if any(map(is_traced, self)):
            return self
        weights, means, variances = (np.asarray(part, np.float64) for part in self)
        if weights.ndim != 1 or means.shape != variances.shape or means.shape[:1] != weights.shape:
            raise ValueError(
                "Mixture: expected weights [k] and means and variances [k, *d], "
                f"found {weights.shape}, {means.shape} and {variances.shape}"
            )
        if not (np.all(weights > 0) and abs(weights.sum() - 1) < 1e-5):
            raise ValueError(
                f"Mixture: expected positive weights that add up to one, found {weights}"
            )
        if not (
            np.all(variances > 0) and np.all(np.isfinite(variances)) and np.isfinite(means).all()
        ):
            raise ValueError("Mixture: expected finite means and positive, finite variances")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.means.shape[1:]

    def sample(self, key: Key, n: int) -> Array:
        """Draw n examples [n, *d]."""
        self.checked()
        check_key(key)
        n = whole_number(n, "n", 1)
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(self.weights), (n,), p=self.weights)
        eps = jax.random.normal(noise, (n, *self.shape), self.means.dtype)
        return self.means[k] + jnp.sqrt(self.variances[k]) * eps

    def log_prob(self, x: Data) -> Scalar:
        """log p(x) of one example, nats."""
        self.checked()
        each = jax.vmap(lambda m, v: Gaussian(m, jnp.log(v)).log_prob(x))
        return jax.nn.logsumexp(jnp.log(self.weights) + each(self.means, self.variances))

    def denoise(self, xt: Data, gamma_t: Scalar) -> Data:
        """E[x_0 | x_t] of one example."""
        self.checked()
        check_real(xt, "xt")
        check_shape(jnp.shape(xt), self.shape, "xt")
        a, s = alpha(gamma_t), sigma(gamma_t)

        def one(m, v):
            spread = jnp.square(a) * v + jnp.square(s)
            return Gaussian(a * m, jnp.log(spread)).log_prob(xt), m + a * v / spread * (xt - a * m)

        logs, means = jax.vmap(one)(self.means, self.variances)
        share = jax.nn.softmax(jnp.log(self.weights) + logs)
        return jnp.tensordot(share, means, 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] of the flattened data, float64."""
        self.checked()
        weights, means, variances = (np.asarray(a, np.float64) for a in self)
        means, variances = means.reshape(len(weights), -1), variances.reshape(len(weights), -1)
        mean = weights @ means
        off = means - mean
        return mean, np.diag(weights @ variances) + (off.T * weights) @ off
