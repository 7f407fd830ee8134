"""A denoiser from its parts: x̂_0 = b + out·c·net, eq. (22), (23), for whole batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.bases import BASES, HEADS
from vdm_jax.checks import check_floats
from vdm_jax.diffusion import Interval
from vdm_jax.elbo import NoisySample
from vdm_jax.models.model import Statistics
from vdm_jax.nets import network_of
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization
from vdm_jax.specs import build
from vdm_jax.typing import Array, Key, Params, in_precision_of


class Denoiser(NamedTuple):
    """x̂_0 of latents [B, *d]; the mathematics is per example and mapped, the network sees the whole batch.

    Attributes:
      init: key -> params of the network.
      predict: (params, xt, intervals, keys=None) -> x̂_0; `Interval` of arrays [B], `keys` [B] of dropout.
      error: (params, noisy, keys=None) -> x_0 − x̂_0, without the cancellation of computing x̂_0 first.
      gain: intervals -> out·c [B], what the network's output is multiplied by in x̂_0.
      deviation: intervals -> [B], root mean square of x_0 − b per position: the error of an output of zero.
      parameterization: of the network's output.
    """

    init: Callable[[Key], Params]
    predict: Callable[..., Array]
    error: Callable[..., Array]
    gain: Callable[[Interval], Array]
    deviation: Callable[[Interval], Array]
    parameterization: Parameterization


def denoiser(
    statistics: Statistics, *, network: Any, parameterization: Any, base: Any, head: Any, where: str
) -> Denoiser:
    """Build a denoiser of specs; arguments as in `vdm`."""
    net = network_of(network, statistics.shape, f"{where}.network")
    row = build(PARAMETERIZATIONS, parameterization, f"{where}.parameterization")
    base = build(BASES, base, f"{where}.base", **statistics._asdict())
    head = build(HEADS, head, f"{where}.head")

    def init(key):
        xt = jnp.zeros((1, *statistics.shape))
        return net.init(key, xt, jnp.zeros((1,)), xt if base.informative else None)

    def gain(steps: Interval):
        def one(step):
            mix = row(step)
            return mix.out * head(base, step.gamma_t, mix, row.target(step))

        return jax.vmap(one)(steps)

    def deviation(steps: Interval):
        return jax.vmap(lambda step: base.deviation(step.gamma_t, row(step), row.target(step)))(
            steps
        )

    def correction(params, xt, steps: Interval, keys=None):
        """The base's estimate and the network's correction to it, [B, *d] both."""
        estimate = jax.vmap(base.estimate)(xt, steps.gamma_t, jax.vmap(row)(steps))
        extra = estimate if base.informative else None
        output = net.apply(params, xt, steps.gamma_t, extra, keys)
        check_floats(output, f"{where}.network: output")
        if output.shape != xt.shape:
            raise ValueError(f"{where}.network: gives {output.shape[1:]} for data {xt.shape[1:]}")
        output = in_precision_of(output, xt)
        return estimate, jax.vmap(jnp.multiply)(gain(steps), output)

    def predict(params, xt, steps, keys=None):
        estimate, change = correction(params, xt, steps, keys)
        return estimate + change

    def error(params, noisy: NoisySample, keys=None):
        _, change = correction(params, noisy.xt, noisy.interval, keys)
        mix, target = jax.vmap(row)(noisy.interval), jax.vmap(row.target)(noisy.interval)
        own = jax.vmap(base.error)(
            noisy.x0, noisy.eps, noisy.xt, noisy.interval.gamma_t, mix, target
        )
        return own - change

    return Denoiser(init, predict, error, gain, deviation, row)


def same_for_all(step: Interval, xt: Array) -> Interval:
    """One interval for every example of a batch."""
    return jax.tree.map(lambda value: jnp.broadcast_to(value, xt.shape[:1]), step)
