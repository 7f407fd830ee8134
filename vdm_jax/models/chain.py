"""Markov chains of latents over the data, both ways: learned, or the fixed chain of a diffusion.

    q(z_1…z_T | x) = q(z_1|x) Π_{t≥2} q(z_t|z_{t−1}),   p(x, z) = p(z_T) p(x|z_1) Π_{t≥2} p(z_{t−1}|z_t)   (3)

with p(z_T) = N(0, I). All Gaussians are of whole batches; z_0 stands for the encoded data. With one latent the
learned chain is that of a VAE, eq. (2); the diffusion's is the one whose restrictions make a hierarchy a VDM.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.checks import check_key, check_sizes
from vdm_jax.diffusion import data_interval, marginal, posterior, transition
from vdm_jax.elbo import check_ends, check_timesteps
from vdm_jax.gaussian import Gaussian
from vdm_jax.likelihoods import Likelihood, observation
from vdm_jax.models.denoiser import denoiser, same_for_all
from vdm_jax.models.keys import fold_each
from vdm_jax.models.model import Statistics
from vdm_jax.nets import NETS, Network
from vdm_jax.nets.adapters import as_map
from vdm_jax.schedules import SCHEDULES, interval
from vdm_jax.specs import build, located
from vdm_jax.typing import Array, Key, Params


class Chain(NamedTuple):
    """T latents z_1 … z_T; levels t count from 1.

    Attributes:
      shapes: of z_1 … z_T, of one example.
      init: key -> params.
      up: (params, below, t, keys=None) -> q(z_t | z_{t−1}); `keys` [B] are those of dropout.
      down: (params, above, t, keys=None) -> p(z_{t−1} | z_t); for t = 1 the observation of the data that
        the likelihood decodes from.
      given_data: (params, x0, above, t) -> q(z_t | z_{t+1}, x_0), and q(z_T | x_0) at the top, where
        `above` is None; None if these are not known.
    """

    shapes: tuple[tuple[int, ...], ...]
    init: Callable[[Key], Params]
    up: Callable[..., Gaussian]
    down: Callable[..., Gaussian]
    given_data: Callable[..., Gaussian] | None


KEEP = 0.5**0.5  # κ of `_corrected`: half the variance of a latent is that of the one below


def gaussian(
    *,
    statistics: Statistics,
    latents: Any,
    encoder: Any = "mlp",
    decoder: Any = "mlp",
    level: Any = "mlp",
) -> Chain:
    """Learned conditionals: networks of the latent below and of the one above.

    Between latents the networks correct a fixed pair of conditionals that is the reversal of itself under
    N(0, I), so that at the start the levels above the first change neither the model nor its bound: training
    begins at the VAE of the first latent.

    Args:
      statistics: of the data.
      latents: dimensions of z_1 … z_T.
      encoder, decoder: of `NETS`, a Linen module, called as module(x), or (init, apply), called as
        apply(params, x), between the data and z_1.
      level: the same, one for each conditional between two latents.

    Raises:
      ValueError: no latent, a dimension below 1, a network that cannot map between these shapes.
    """
    if not isinstance(latents, Sequence) or isinstance(latents, str) or len(latents) < 1:
        raise ValueError(
            f"latents: expected the dimensions of T ≥ 1 latents such as [16], found {latents!r}"
        )
    sizes = check_sizes(latents, "latents")
    data = statistics.shape

    def network(spec, name, inputs, outputs, zero):
        if isinstance(spec, str | Mapping):
            spec = build(NETS, spec, name, outputs=outputs, zero=zero)
        with located(name):
            net = as_map(spec)
            _check_map(net, inputs, outputs)
        return net

    nets = {
        "encoder": network(encoder, "encoder", data, (2, sizes[0]), False),
        "decoder": network(decoder, "decoder", (sizes[0],), (*data, 2), False),
    }
    inputs = {"encoder": data, "decoder": (sizes[0],)}
    for t, (below, above) in enumerate(itertools.pairwise(sizes), start=2):
        nets[f"up_{t}"] = network(level, "level", (below,), (2, above), True)
        nets[f"down_{t}"] = network(level, "level", (above,), (2, below), True)
        inputs |= {f"up_{t}": (below,), f"down_{t}": (above,)}

    def init(key):
        check_key(key)
        keys = jax.random.split(key, len(nets))
        return {
            name: net.init(k, jnp.zeros((1, *inputs[name])))
            for k, (name, net) in zip(keys, nets.items(), strict=True)
        }

    def apply(params, name, x, keys):
        # masks of their own for every network
        if keys is not None:
            keys = fold_each(keys, list(nets).index(name))
        return nets[name].apply(params[name], x, keys=keys)

    def up(params, below, t, keys=None):
        if t == 1:
            out = apply(params, "encoder", below, keys)
            return Gaussian(out[:, 0], out[:, 1])
        return _corrected(below, apply(params, f"up_{t}", below, keys))

    def down(params, above, t, keys=None):
        if t == 1:
            out = apply(params, "decoder", above, keys)
            return Gaussian(out[..., 0], out[..., 1])
        return _corrected(above, apply(params, f"down_{t}", above, keys))

    return Chain(tuple((d,) for d in sizes), init, up, down, None)


def _corrected(z: Array, change: Array) -> Gaussian:
    """The reversible conditional given z [B, d], with mean and log-variance moved by `change` [B, 2, e].

    The coordinates that both latents have keep κ·z at variance 1−κ²; the others are N(0, 1).
    """
    size = change.shape[-1]
    shared = min(size, z.shape[-1])
    pad = ((0, 0), (0, size - shared))
    mean = jnp.pad(KEEP * z[:, :shared], pad)
    log_var = jnp.pad(jnp.full((shared,), math.log(1 - KEEP**2), z.dtype), pad[1:])
    return Gaussian(mean + change[:, 0], log_var[None, :] + change[:, 1])


def _check_map(net: Network, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """Raise ValueError if a network is none from `inputs` to `outputs` (shapes of one example)."""
    x, key = jax.ShapeDtypeStruct((1, *inputs), jnp.float32), jax.random.key(0)

    def run(key, x):  # as the training loss does, which drops, and as the bound, which does not
        params = net.init(key, x)
        return net.apply(params, x, keys=key[None]), net.apply(params, x)

    try:
        _, output = jax.eval_shape(run, key, x)
        found = output.shape[1:]
    except Exception as error:  # of any network library
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot map {inputs} to {outputs}: {line}") from error
    if found != outputs:
        raise ValueError(f"expected a map from {inputs} to {outputs}, found one to {found}")


def diffusion(
    *,
    statistics: Statistics,
    likelihood: Likelihood,
    timesteps: Any,
    network: Any = "mlp",
    schedule: Any = "linear",
    parameterization: Any = "eps",
    base: Any = "zero",
    output_scale: Any = "none",
) -> Chain:
    """The fixed linear-Gaussian chain of eq. (7) at the times 0, 1/T', …, 1, and p = q given x̂_0.

    The hierarchy over it is the VDM of the same parts with `timesteps` = T' matching terms: T'+1 latents of the
    data's shape. Every level is written out, so that T' is small; `vdm` draws one term of any number.

    Args:
      statistics: of the data.
      likelihood: of the model; some decode from the denoiser's prediction.
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

    def step(params, t):
        """The interval from z_{t−1} to z_t; the data are z_0."""
        if t == 1:
            return data_interval(schedule.gamma(params["schedule"], jnp.zeros(())))
        times = jnp.asarray([(t - 2) / timesteps, (t - 1) / timesteps])
        return interval(schedule, params["schedule"], times[0], times[1])

    def init(key):
        check_key(key)
        network_key, schedule_key = jax.random.split(key)
        return {"network": net.init(network_key), "schedule": schedule.init(schedule_key)}

    def predict(params, z, t, keys):
        keys = None if keys is None else fold_each(keys, t)
        return net.predict(params["network"], z, same_for_all(step(params, t), z), keys)

    def up(params, below, t, keys=None):
        del keys
        return _batched(transition(below, step(params, t)))

    def down(params, above, t, keys=None):
        at = step(params, t)
        if t == 1:
            x0_hat = predict(params, above, 1, keys) if likelihood.uses_prediction else None
            return _batched(observation(likelihood, above, x0_hat, at.gamma_t))
        return _batched(posterior(above, predict(params, above, t, keys), at))

    def given_data(params, x0, above, t):
        if above is None:
            return _batched(marginal(x0, step(params, t).gamma_t))
        return _batched(posterior(above, x0, step(params, t + 1)))

    return Chain((statistics.shape,) * (timesteps + 1), init, up, down, given_data)


def _batched(normal: Gaussian) -> Gaussian:
    """A Gaussian of a batch [B, *d] whose log-variance is one number: one for each example."""
    return normal._replace(log_var=jnp.broadcast_to(normal.log_var, normal.mean.shape[:1]))


CHAINS: dict[str, Callable[..., Chain]] = {"gaussian": gaussian, "diffusion": diffusion}
