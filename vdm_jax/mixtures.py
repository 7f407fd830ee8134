"""Mixtures of diagonal Gaussians: data whose density, moments and best denoiser are known in closed form.

With x_0 from N(m_k, v_k) with probability w_k, the latent x_t of (6) is also a mixture, with means α m_k and
variances α² v_k + σ². E[x_0 | x_t] is the mean of the components' posterior means, weighted by their
responsibilities. Such data measure the error of a trained model exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_array, check_key, check_real, is_traced, whole_number
from vdm_jax.diffusion import alpha, sigma
from vdm_jax.gaussian import Gaussian, check_shape
from vdm_jax.typing import Array, Data, Float, Key, Numbers, Scalar


class Mixture(NamedTuple):
    """A mixture Σ_k w_k N(m_k, diag v_k).

    Attributes:
      weights: [k], positive, with sum one.
      means: [k, *d].
      variances: [k, *d], positive.

    Examples:
      >>> mixture = vdm.Mixture.of(
      ...     weights=[0.5, 0.5], means=[[-1.0], [1.0]], variances=[[0.1], [0.1]]
      ... )
      >>> mixture.denoise(jnp.asarray([0.0]), jnp.asarray(0.0)).tolist()  # half-way between the means
      [0.0]
      >>> mixture.moments()[1].round(3).tolist()
      [[1.1]]
    """

    weights: Float[Array, " k"]
    means: Float[Array, " k *d"]
    variances: Float[Array, " k *d"]

    @classmethod
    def of(cls, weights: Numbers, means: Numbers, variances: Numbers) -> "Mixture":
        """Build a mixture from arrays or nested lists.

        Raises:
          ValueError: shapes do not match, weights do not sum to one, or variances are not positive.
        """
        arrays = {"weights": weights, "means": means, "variances": variances}
        for name, array in arrays.items():
            check_array(array, f"Mixture: {name}")
            check_real(np.asarray(array), f"Mixture: {name}")
        fields = [np.asarray(array).astype(np.float64) for array in arrays.values()]
        return cls(*(jnp.asarray(field, float) for field in fields)).checked()

    def checked(self) -> "Mixture":
        """Return the mixture after checking its arrays; traced arrays cannot be checked.

        Raises:
          ValueError: shapes do not match, weights do not sum to one, or variances are not positive.
        """
        if any(is_traced(array) for array in self):
            return self
        weights, means, variances = (np.asarray(array, np.float64) for array in self)
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
        """The shape of one example."""
        return self.means.shape[1:]

    def sample(self, key: Key, n: int) -> Array:
        """Draw n examples [n, *d].

        Raises:
          TypeError, ValueError: no typed key, or n is not a whole number of at least 1.
        """
        self.checked()
        check_key(key)
        n = whole_number(n, "n", 1)
        component_key, noise_key = jax.random.split(key)
        k = jax.random.choice(component_key, len(self.weights), (n,), p=self.weights)
        eps = jax.random.normal(noise_key, (n, *self.shape), self.means.dtype)
        return self.means[k] + jnp.sqrt(self.variances[k]) * eps

    def log_prob(self, x: Data) -> Scalar:
        """Return log p(x) of one example in nats.

        Raises:
          ValueError: `x` has another shape.
        """
        self.checked()
        log_probs = jax.vmap(lambda m, v: Gaussian(m, jnp.log(v)).log_prob(x))
        return jax.nn.logsumexp(jnp.log(self.weights) + log_probs(self.means, self.variances))

    def denoise(self, xt: Data, gamma_t: Scalar) -> Data:
        """Return E[x_0 | x_t] of one example.

        Raises:
          TypeError, ValueError: `xt` is not real, or has another shape.
        """
        self.checked()
        check_real(xt, "xt")
        check_shape(jnp.shape(xt), self.shape, "xt")
        alpha_t, sigma_t = alpha(gamma_t), sigma(gamma_t)

        def log_prob_and_posterior_mean(m, v):
            variance = jnp.square(alpha_t) * v + jnp.square(sigma_t)
            log_prob = Gaussian(alpha_t * m, jnp.log(variance)).log_prob(xt)
            return log_prob, m + alpha_t * v / variance * (xt - alpha_t * m)

        log_probs, means = jax.vmap(log_prob_and_posterior_mean)(self.means, self.variances)
        responsibilities = jax.nn.softmax(jnp.log(self.weights) + log_probs)
        return jnp.tensordot(responsibilities, means, 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [d] and the covariance [d, d] of the flattened data, float64."""
        self.checked()
        weights, means, variances = (np.asarray(array, np.float64) for array in self)
        means = means.reshape(len(weights), -1)
        variances = variances.reshape(len(weights), -1)
        mean = weights @ means
        centred = means - mean
        # law of total variance: the mean of the components' covariances and the covariance of their means
        return mean, np.diag(weights @ variances) + (centred.T * weights) @ centred
