"""Samplers that condition on known elements or on a linear observation of the data.

    inpainting                 draws known elements of x_t from q(x_t | x_0)         Song et al. 2021
    reconstruction_guidance    moves x̂_0 along the gradient of log p(y | x_t)        Ho et al. 2022

They need no training, and work with every sampler and model. Both are approximations of the posterior:
`inpainting` ignores what known elements say about the others at high noise, and `reconstruction_guidance`
approximates the covariance of x_0 given x_t by a multiple of the identity (Song et al. 2023, ΠGDM).
docs/how-to/inverse_problems.md compares them with an exact posterior.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_callable, check_floats, is_key, real_number
from vdm_jax.diffusion import alpha, marginal, sigma
from vdm_jax.gaussian import check_shape
from vdm_jax.keys import fold
from vdm_jax.samplers.base import Sampler, noise_like
from vdm_jax.typing import Array, ArrayLike, Data, Real

OWN_KEY = 0x1A11
"""Number that separates the noise of `inpainting` from that of its sampler."""


def inpainting(sampler: Sampler, known: ArrayLike, mask: ArrayLike) -> Sampler:
    """Return a sampler that replaces known elements of x_t by a draw from q(x_t | x_0) before each step.

    The other elements are sampled. The chain ends with a prediction of all elements, so that known ones return
    up to the error of the network at the lowest noise level.

    Args:
      sampler: the sampler of the steps.
      known: x_0 [*d] on the scale of the model, such as `likelihood.encode` returns; only known elements count.
      mask: booleans [*d], True for known elements.

    Raises:
      TypeError: `known` is not of floats.
      ValueError: `mask` is not of booleans, or of another shape than `known`; in the first step, a sample of
        another shape.
    """
    check_floats(known, "known")
    known, mask = jnp.asarray(known), jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask: expected booleans, found {mask.dtype}")
    check_shape(mask.shape, known.shape, "mask")

    def step(key, xt, interval, predict, state):
        assert key is not None
        check_shape(known.shape, _shape_of_one(key, xt), "known")
        here, x0 = (jnp.broadcast_to(array, xt.shape) for array in (mask, known.astype(xt.dtype)))
        q = marginal(x0, interval.gamma_t)
        noisy = q.mean + jnp.exp(0.5 * q.log_var) * noise_like(fold(key, OWN_KEY), xt)
        return sampler.step(key, jnp.where(here, noisy, xt), interval, predict, state)

    def fitted(gammas, squares):
        assert sampler.fitted is not None
        return inpainting(sampler.fitted(gammas, squares), known, mask)

    return Sampler(sampler.init, step, None if sampler.fitted is None else fitted)


def reconstruction_guidance(
    sampler: Sampler,
    forward: Callable[[Data], Array],
    observed: ArrayLike,
    *,
    noise_variance: Real = 0.0,
    data_variance: Real = 1.0,
) -> Sampler:
    """Return a sampler that predicts E[x_0 | x_t, y] for y = A x_0 + n with Gaussian noise n.

    The prediction is x̂_0 + σ_t²/α_t ∇ log N(y; A x̂_0(x_t), ν + r_t²), where ν is the variance of n and r_t² =
    sσ_t²/(sα_t² + σ_t²) is that of x_0 given x_t for independent elements of variance s. It is exact for such
    Gaussian data if the rows of A are orthonormal. Each prediction also needs the gradient of the network.

    Args:
      sampler: the sampler of the steps.
      forward: A, from x_0 [*d] of one example on the scale of the model to [*m].
      observed: y [*m].
      noise_variance: ν ≥ 0.
      data_variance: s > 0, the variance of the elements of x_0.

    Raises:
      ValueError: a variance out of range; in the first step, `observed` of another shape than `forward`
        returns.
      TypeError: `forward` is not a callable of one argument, or `observed` is not of floats.
    """
    check_callable(forward, ("x0",), "forward")
    check_floats(observed, "observed")
    real_number(noise_variance, "noise_variance", "a finite number of at least 0", _not_negative)
    real_number(data_variance, "data_variance", "a finite number above 0", _positive)
    observed = jnp.asarray(observed)

    def step(key, xt, interval, predict, state):
        observe = forward if key is None or is_key(key) else jax.vmap(forward)
        one = jax.ShapeDtypeStruct(_shape_of_one(key, xt), xt.dtype)
        check_shape(observed.shape, np.shape(jax.eval_shape(forward, one)), "observed")

        def guided(xt, level):
            signal, noise = alpha(level.gamma_t) ** 2, sigma(level.gamma_t) ** 2
            spread = data_variance * noise / (data_variance * signal + noise)

            def log_likelihood(xt):
                x0_hat = predict(xt, level)
                found = observe(x0_hat)
                square = jnp.sum(jnp.square(jnp.broadcast_to(observed, found.shape) - found))
                return -0.5 * square / (noise_variance + spread), x0_hat

            gradient, x0_hat = jax.grad(log_likelihood, has_aux=True)(xt)
            return x0_hat + noise / jnp.sqrt(signal) * gradient

        return sampler.step(key, xt, interval, guided, state)

    def fitted(gammas, squares):
        assert sampler.fitted is not None
        variances = {"noise_variance": noise_variance, "data_variance": data_variance}
        return reconstruction_guidance(
            sampler.fitted(gammas, squares), forward, observed, **variances
        )

    return Sampler(sampler.init, step, None if sampler.fitted is None else fitted)


def _not_negative(value: Any) -> bool:
    return 0 <= value < math.inf


def _positive(value: Any) -> bool:
    return 0 < value < math.inf


def _shape_of_one(key: object, xt: Data) -> tuple[int, ...]:
    """Return the shape of one example; with a key for each, `xt` is a batch."""
    return xt.shape if key is None or is_key(key) else xt.shape[1:]
