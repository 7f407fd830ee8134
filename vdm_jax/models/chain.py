"""Markov chains of latents over the data, learned, or the fixed chain of a diffusion.

    q(z_1…z_T | x) = q(z_1|x) Π_{t≥2} q(z_t|z_{t−1}),   p(x, z) = p(z_T) p(x|z_1) Π_{t≥2} p(z_{t−1}|z_t)   (3)

with p(z_T) = N(0, I). All Gaussians are of whole batches; z_0 stands for the encoded data. The learned chain of
one latent is a VAE, eq. (2). The chain of a diffusion has the restrictions that turn a hierarchical VAE into a
VDM.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.bases import Base
from vdm_jax.checks import check_key, check_sizes
from vdm_jax.diffusion import Interval, data_interval, marginal, posterior, transition
from vdm_jax.elbo import check_ends, check_timesteps, same_for_all
from vdm_jax.gaussian import Gaussian
from vdm_jax.keys import fold_each
from vdm_jax.likelihoods import Likelihood, observation
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.statistics import Statistics
from vdm_jax.nets import NETS, Network
from vdm_jax.nets.adapters import as_map
from vdm_jax.output_scales import OutputScale
from vdm_jax.parameterizations import Parameterization
from vdm_jax.schedules import SCHEDULES, Schedule, interval
from vdm_jax.specs import build, located
from vdm_jax.typing import Array, Key, Keys, Params, Spec

Shape = tuple[int, ...]
"""The shape of one example or latent, without the batch axis."""


class Chain(NamedTuple):
    """The conditionals of T latents z_1 … z_T in both directions. Levels t count from 1.

    Attributes:
      shapes: of z_1 … z_T, per example.
      init: key -> params.
      up: (params, below, t, keys=None) -> q(z_t | z_{t−1}), where `below` is z_{t−1} and `keys` [B] are those
        of dropout.
      down: (params, above, t, keys=None) -> p(z_{t−1} | z_t), where `above` is z_t; for t = 1 the observation
        that the likelihood decodes.
      given_data: (params, x0, above, t) -> q(z_t | z_{t+1}, x_0), and at the top, where `above` is None,
        q(z_T | x_0); None if the chain does not know these.
    """

    shapes: tuple[Shape, ...]
    init: Callable[[Key], Params]
    up: Callable[Concatenate[Params, Array, int, ...], Gaussian]
    down: Callable[Concatenate[Params, Array, int, ...], Gaussian]
    given_data: Callable[[Params, Array, Array | None, int], Gaussian] | None


KEEP = 0.5**0.5
"""κ of `_corrected`. A latent keeps κ² of its variance from the latent below it: one half."""


def gaussian(
    *,
    statistics: Statistics,
    latents: object,
    encoder: object = "mlp",
    decoder: object = "mlp",
    level: object = "mlp",
) -> Chain:
    """Build a chain of learned conditionals, from one network each.

    Between latents, the networks correct two fixed conditionals that are the reversals of each other under
    N(0, I). At initialization the levels above the first therefore change neither the model nor its bound:
    training starts at the VAE of the first latent.

    Args:
      statistics: of the data.
      latents: sequence of the dimensions of z_1 … z_T.
      encoder: from the data to z_1: a name or spec of `NETS`, a Linen module, called as module(x), or
        (init, apply), called as apply(params, x).
      decoder: the same from z_1 to the data.
      level: the same between two latents, for each conditional with its own params.

    Raises:
      ValueError: there is no latent, a dimension is below 1, or a network does not map between these shapes.
    """
    if not isinstance(latents, Sequence) or isinstance(latents, str) or len(latents) < 1:
        raise ValueError(
            f"latents: expected the dimensions of T ≥ 1 latents such as [16], found {latents!r}"
        )
    sizes = check_sizes(latents, "latents")
    data = statistics.shape
    # the axis of mean and log-variance is the first of a latent but the last of the data, because convolutional
    # decoders put the image axes first
    nets = {
        "encoder": _build_map(encoder, "encoder", data, (2, sizes[0]), zero=False),
        "decoder": _build_map(decoder, "decoder", (sizes[0],), (*data, 2), zero=False),
    }
    inputs = {"encoder": data, "decoder": (sizes[0],)}
    for t, (below, above) in enumerate(itertools.pairwise(sizes), start=2):
        nets[f"up_{t}"] = _build_map(level, "level", (below,), (2, above), zero=True)
        nets[f"down_{t}"] = _build_map(level, "level", (above,), (2, below), zero=True)
        inputs |= {f"up_{t}": (below,), f"down_{t}": (above,)}

    def init(key):
        check_key(key)
        keys = jax.random.split(key, len(nets))
        return {
            name: net.init(k, jnp.zeros((1, *inputs[name])))
            for k, (name, net) in zip(keys, nets.items(), strict=True)
        }

    def apply(params: Params, name: str, x: Array, keys: Keys | None) -> Array:
        # the networks share the keys of the examples: without the fold, they would share dropout masks
        if keys is not None:
            keys = fold_each(keys, list(nets).index(name))
        return nets[name].apply(params[name], x, keys=keys)

    def up(params: Params, below: Array, t: int, keys: Keys | None = None) -> Gaussian:
        if t == 1:
            output = apply(params, "encoder", below, keys)
            return Gaussian(output[:, 0], output[:, 1])
        return _corrected(below, apply(params, f"up_{t}", below, keys))

    def down(params: Params, above: Array, t: int, keys: Keys | None = None) -> Gaussian:
        if t == 1:
            output = apply(params, "decoder", above, keys)
            return Gaussian(output[..., 0], output[..., 1])
        return _corrected(above, apply(params, f"down_{t}", above, keys))

    return Chain(tuple((size,) for size in sizes), init, up, down, None)


def _corrected(z: Array, correction: Array) -> Gaussian:
    """Return the reversible conditional given z [B, d], corrected by a network's output [B, 2, e].

    Coordinates that both latents have get the mean κ·z and the variance 1−κ², the others N(0, 1). The two rows
    of the correction are added to the mean and to the log-variance.
    """
    size = correction.shape[-1]
    shared = min(size, z.shape[-1])
    pad = ((0, 0), (0, size - shared))
    mean = jnp.pad(KEEP * z[:, :shared], pad)
    log_var = jnp.pad(jnp.full((shared,), math.log(1 - KEEP**2), z.dtype), pad[1:])
    return Gaussian(mean + correction[:, 0], log_var[None, :] + correction[:, 1])


def _build_map(spec: object, name: str, inputs: Shape, outputs: Shape, *, zero: bool) -> Network:
    """Build the network of one conditional, with zero output at initialization if `zero`."""
    if isinstance(spec, str | Mapping):
        spec = build(NETS, spec, name, outputs=outputs, zero=zero)
    with located(name):
        net = as_map(spec)
        _check_map(net, inputs, outputs)
    return net


def _check_map(net: Network, inputs: Shape, outputs: Shape) -> None:
    """Raise ValueError unless a network maps examples of shape `inputs` to `outputs`."""
    x, key = jax.ShapeDtypeStruct((1, *inputs), jnp.float32), jax.random.key(0)

    def run(key, x):
        params = net.init(key, x)
        # with keys for dropout, as in the training loss, and without, as in the bound
        return net.apply(params, x, keys=key[None]), net.apply(params, x)

    try:
        _, output = jax.eval_shape(run, key, x)
        shape = output.shape[1:]
    except Exception as error:  # a network of any library may raise anything
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot map {inputs} to {outputs}: {line}") from error
    if shape != outputs:
        raise ValueError(f"expected a map from {inputs} to {outputs}, found one to {shape}")


def diffusion(
    *,
    statistics: Statistics,
    likelihood: Likelihood,
    timesteps: Any,
    network: object = "mlp",
    schedule: Spec | Schedule = "linear",
    parameterization: Spec | Parameterization = "eps",
    base: Spec | Base = "zero",
    output_scale: Spec | OutputScale = "none",
) -> Chain:
    """Build the fixed linear-Gaussian chain of eq. (7) at the times 0, 1/T', …, 1, with p = q given x̂_0.

    The hierarchical VAE over this chain is the VDM of the same components with T' = `timesteps`, and has T'+1
    latents of the data's shape. It computes every term of the bound, so that T' should be small; `vdm` draws
    one term for any T'.

    Args:
      statistics: of the data.
      likelihood: of the model; it may decode the denoiser's prediction.
      timesteps: T' ≥ 1.
      network, schedule, parameterization, base, output_scale: as in `vdm`.
    """
    net = denoiser(
        statistics,
        network=network,
        parameterization=parameterization,
        base=base,
        output_scale=output_scale,
    )
    schedule = build(SCHEDULES, schedule, "schedule")
    check_timesteps(timesteps, net.parameterization)
    check_ends(schedule, net.parameterization)
    if timesteps is None:
        raise ValueError("timesteps: a chain has at least 1 step, found None")

    def interval_below(params: Params, t: int) -> Interval:
        """Return the interval from z_{t−1} to z_t, where z_0 is the data and z_1 is x at time 0."""
        if t == 1:
            return data_interval(schedule.gamma(params["schedule"], jnp.zeros(())))
        times = jnp.asarray([(t - 2) / timesteps, (t - 1) / timesteps])
        return interval(schedule, params["schedule"], times[0], times[1])

    def init(key):
        check_key(key)
        network_key, schedule_key = jax.random.split(key)
        return {"network": net.init(network_key), "schedule": schedule.init(schedule_key)}

    def predict(params: Params, z: Array, t: int, keys: Keys | None) -> Array:
        # one network serves all levels: without the fold, they would share dropout masks
        keys = None if keys is None else fold_each(keys, t)
        return net.predict(params["network"], z, same_for_all(interval_below(params, t), z), keys)

    def up(params: Params, below: Array, t: int, keys: Keys | None = None) -> Gaussian:
        del keys
        return _batched(transition(below, interval_below(params, t)))

    def down(params: Params, above: Array, t: int, keys: Keys | None = None) -> Gaussian:
        interval_t = interval_below(params, t)
        if t == 1:
            x0_hat = predict(params, above, 1, keys) if likelihood.uses_prediction else None
            return _batched(observation(likelihood, above, x0_hat, interval_t.gamma_t))
        return _batched(posterior(above, predict(params, above, t, keys), interval_t))

    def given_data(params: Params, x0: Array, above: Array | None, t: int) -> Gaussian:
        if above is None:
            return _batched(marginal(x0, interval_below(params, t).gamma_t))
        return _batched(posterior(above, x0, interval_below(params, t + 1)))

    return Chain((statistics.shape,) * (timesteps + 1), init, up, down, given_data)


def _batched(normal: Gaussian) -> Gaussian:
    """Repeat the scalar log-variance of a Gaussian with mean [B, *d] for each example."""
    return normal._replace(log_var=jnp.broadcast_to(normal.log_var, normal.mean.shape[:1]))


CHAINS: dict[str, Callable[..., Chain]] = {"gaussian": gaussian, "diffusion": diffusion}
"""name -> factory of a `Chain`."""
