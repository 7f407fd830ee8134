"""A denoiser from its parts: x̂_0 = b + out·c·net, eq. (22), (23), for whole batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.bases import BASES
from vdm_jax.checks import check_floats
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import NoisySample
from vdm_jax.models.model import Statistics
from vdm_jax.nets import network_of
from vdm_jax.output_scales import OUTPUT_SCALES
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.specs import build
from vdm_jax.typing import Array, Key, Params, in_precision_of


class Denoiser(NamedTuple):
    """Predict x̂_0 of latents [B, *d]: the mathematics is per example, the network takes the whole batch.

    Attributes:
      init: key -> params of the network.
      predict: (params, xt, intervals, keys=None) -> x̂_0; `Interval` of arrays [B], `keys` [B] of dropout.
      error: (params, noisy, keys=None) -> x_0 − x̂_0, without the cancellation of computing x̂_0 first.
      output_gain: intervals -> out·c [B], the factor on the network's output in x̂_0.
      deviation: intervals -> [B], root mean square of x_0 − b per position: the error of an output of zero.
      parameterization: of the network's output.
    """

    init: Callable[[Key], Params]
    predict: Callable[..., Array]
    error: Callable[..., Array]
    output_gain: Callable[[Interval], Array]
    deviation: Callable[[Interval], Array]
    parameterization: Parameterization


def denoiser(
    statistics: Statistics,
    *,
    network: Any,
    parameterization: Any,
    base: Any,
    output_scale: Any,
) -> Denoiser:
    """Build a denoiser of specs; arguments as in `vdm`."""
    net = network_of(network, statistics.shape)
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    base_denoiser = build(BASES, base, "base", **statistics._asdict())
    output_scale = build(OUTPUT_SCALES, output_scale, "output_scale")

    def init(key):
        xt = jnp.zeros((1, *statistics.shape))
        return net.init(key, xt, jnp.zeros((1,)), xt if base_denoiser.informative else None)

    def output_gain(intervals: Interval):
        def of_example(interval):
            preconditioning, target = parameterization(interval), parameterization.target(interval)
            scale = output_scale(base_denoiser, interval.gamma_t, preconditioning, target)
            return preconditioning.out * scale

        return jax.vmap(of_example)(intervals)

    def deviation(intervals: Interval):
        def of_example(interval):
            preconditioning, target = parameterization(interval), parameterization.target(interval)
            return base_denoiser.deviation(interval.gamma_t, preconditioning, target)

        return jax.vmap(of_example)(intervals)

    def estimate_and_correction(params, xt, intervals: Interval, keys=None):
        """Return the base's estimate and the network's correction to it, [B, *d] both."""
        preconditioning = jax.vmap(parameterization)(intervals)
        estimate = jax.vmap(base_denoiser.estimate)(xt, intervals.gamma_t, preconditioning)
        extra = estimate if base_denoiser.informative else None
        output = net.apply(params, xt, intervals.gamma_t, extra, keys)
        check_floats(output, "network: output")
        if output.shape != xt.shape:
            raise ValueError(f"network: gives {output.shape[1:]} for data {xt.shape[1:]}")
        output = in_precision_of(output, xt)
        return estimate, jax.vmap(jnp.multiply)(output_gain(intervals), output)

    def predict(params, xt, intervals, keys=None):
        estimate, correction = estimate_and_correction(params, xt, intervals, keys)
        return estimate + correction

    def error(params, noisy: NoisySample, keys=None):
        _, correction = estimate_and_correction(params, noisy.xt, noisy.interval, keys)
        preconditioning = jax.vmap(parameterization)(noisy.interval)
        target = jax.vmap(parameterization.target)(noisy.interval)
        base_error = jax.vmap(base_denoiser.error)(
            noisy.x0, noisy.eps, noisy.xt, noisy.interval.gamma_t, preconditioning, target
        )
        return base_error - correction

    return Denoiser(init, predict, error, output_gain, deviation, parameterization)


def same_for_all(interval: Interval, xt: Array) -> Interval:
    """Repeat one interval for every example of a batch."""
    return jax.tree.map(lambda value: jnp.broadcast_to(value, xt.shape[:1]), interval)
