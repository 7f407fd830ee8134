"""A denoiser from its components: x̂_0 = b + out·c·net, eq. (22), (23), for whole batches."""

from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.bases import BASES, Base
from vdm_jax.checks import check_floats
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import NoisySample
from vdm_jax.models.statistics import Statistics
from vdm_jax.nets import network_of
from vdm_jax.output_scales import OUTPUT_SCALES, OutputScale
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.specs import build
from vdm_jax.typing import Array, Key, Keys, Params, Spec, in_precision_of


class Denoiser(NamedTuple):
    """Pure functions that predict x̂_0 of latents [B, *d].

    The mathematics is per example and mapped over the batch; the network takes the whole batch.

    Attributes:
      init: key -> params of the network.
      predict: (params, xt, intervals, keys=None) -> x̂_0; `intervals` is an `Interval` of arrays [B], `keys` [B]
        are those of dropout.
      error: (params, noisy, keys=None) -> x_0 − x̂_0, without the cancellation of computing x̂_0 first.
      output_gain: intervals -> out·c [B], the factor on the network's output in x̂_0.
      deviation: intervals -> [B], root mean square of x_0 − b per position, which is the error of a network
        whose output is zero.
      parameterization: of the network's output.
    """

    init: Callable[[Key], Params]
    predict: Callable[Concatenate[Params, Array, Interval, ...], Array]
    error: Callable[Concatenate[Params, NoisySample, ...], Array]
    output_gain: Callable[[Interval], Array]
    deviation: Callable[[Interval], Array]
    parameterization: Parameterization


def denoiser(
    statistics: Statistics,
    *,
    network: object,
    parameterization: Spec | Parameterization,
    base: Spec | Base,
    output_scale: Spec | OutputScale,
) -> Denoiser:
    """Build a denoiser from names, specs or built components; the arguments are those of `vdm`."""
    net = network_of(network, statistics.shape)
    parameterization = build(PARAMETERIZATIONS, parameterization, "parameterization")
    base_denoiser = build(BASES, base, "base", **statistics._asdict())
    output_scale = build(OUTPUT_SCALES, output_scale, "output_scale")

    def init(key):
        xt = jnp.zeros((1, *statistics.shape))
        # the estimate of an informative base, which has the shape of x_t, is a second input of the network
        return net.init(key, xt, jnp.zeros((1,)), xt if base_denoiser.informative else None)

    def output_gain(intervals: Interval) -> Array:
        def example_gain(interval):
            preconditioning = parameterization(interval)
            target = parameterization.target(interval)
            scale = output_scale(base_denoiser, interval.gamma_t, preconditioning, target)
            return preconditioning.out * scale

        return jax.vmap(example_gain)(intervals)

    def deviation(intervals: Interval) -> Array:
        def example_deviation(interval):
            preconditioning = parameterization(interval)
            target = parameterization.target(interval)
            return base_denoiser.deviation(interval.gamma_t, preconditioning, target)

        return jax.vmap(example_deviation)(intervals)

    def estimate_and_correction(
        params: Params, xt: Array, intervals: Interval, keys: Keys | None
    ) -> tuple[Array, Array]:
        """Return the base's estimate and the network's correction to it, [B, *d] both."""
        preconditioning = jax.vmap(parameterization)(intervals)
        estimate = jax.vmap(base_denoiser.estimate)(xt, intervals.gamma_t, preconditioning)
        extra = estimate if base_denoiser.informative else None
        output = _checked_output(net.apply(params, xt, intervals.gamma_t, extra, keys), xt)
        return estimate, jax.vmap(jnp.multiply)(output_gain(intervals), output)

    def predict(params: Params, xt: Array, intervals: Interval, keys: Keys | None = None) -> Array:
        estimate, correction = estimate_and_correction(params, xt, intervals, keys)
        return estimate + correction

    def error(params: Params, noisy: NoisySample, keys: Keys | None = None) -> Array:
        _, correction = estimate_and_correction(params, noisy.xt, noisy.interval, keys)
        preconditioning = jax.vmap(parameterization)(noisy.interval)
        target = jax.vmap(parameterization.target)(noisy.interval)
        # bases compute x_0 − b themselves: `zero` and `input` from x_0 and ε, without cancellation
        base_error = jax.vmap(base_denoiser.error)(
            noisy.x0, noisy.eps, noisy.xt, noisy.interval.gamma_t, preconditioning, target
        )
        return base_error - correction

    return Denoiser(init, predict, error, output_gain, deviation, parameterization)


def _checked_output(output: Any, xt: Array) -> Array:
    """Return a network's output in the precision of the latents, or in its own if that is higher.

    Raises:
      TypeError: the output is not an array of floats.
      ValueError: the output does not have the shape of the latents.
    """
    check_floats(output, "network: output")
    if output.shape != xt.shape:
        raise ValueError(f"network: gives {output.shape[1:]} for data {xt.shape[1:]}")
    return in_precision_of(output, xt)
