"""Losses of given denoisers, in one unit, on the same data, times and noise."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax.bases import BASES, Base
from vdm_jax.checks import check_array, check_key, whole_number
from vdm_jax.comparison.measure import per_noise_level
from vdm_jax.config import as_spec
from vdm_jax.elbo import Elbo
from vdm_jax.likelihoods import LIKELIHOODS, Likelihood
from vdm_jax.models import Model, Statistics, vdm
from vdm_jax.nets import Network, network_of
from vdm_jax.nets.adapters import as_network, carries_weights
from vdm_jax.nets.trial import try_params
from vdm_jax.output_scales import OutputScale
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import SCHEDULES, Schedule, check_schedule_params
from vdm_jax.specs import build, located, name_of
from vdm_jax.typing import Array, Key, Params, Spec


class Losses(NamedTuple):
    """Losses of one denoiser on n examples, averaged over the draws.

    Attributes:
      elbo: parts of −ELBO, arrays [n], nats.
      bits_per_dim: [n], sum of the parts in bits/dim, which can be compared between parameterizations.
      squared_error: [n], ‖F − target‖² of the network's output, the unweighted loss, which cannot be compared.
    """

    elbo: Elbo
    bits_per_dim: Array
    squared_error: Array


def parameterization_losses(
    denoisers_or_params: Callable[..., Any] | Mapping[str, Any],
    x: ArrayLike,
    key: Key,
    *,
    schedule: Spec | Schedule = "linear",
    schedule_params: Params = None,
    timesteps: int | None = None,
    network: object = None,
    base: Spec | Base = "zero",
    output_scale: Spec | OutputScale = "none",
    likelihood: Spec | Likelihood | None = None,
    statistics: Statistics | None = None,
    draws: int = 1,
) -> dict[str, Losses]:
    """Evaluate denoisers of several parameterizations without training; a pure function.

    Args:
      denoisers_or_params: for each parameterization a denoiser: a callable (xt, gamma_t) -> F on one example or
        on batches, or another argument of `vdm_jax.nets.as_network` that holds its weights; with `network`,
        its parameters. A single callable is evaluated as each of the parameterizations that the timesteps
        allow.
      x: [n, *d], data as stored by the likelihood.
      key: source of the times and the noise, which all denoisers share.
      schedule, schedule_params, timesteps: as in `negative_elbo`.
      network: network of the parameters: a name or spec of `NETS`, or an argument of `as_network`.
      base, output_scale: as in `MODELS["vdm"]`.
      likelihood: of `LIKELIHOODS`; by default "gaussian" for floats and "softmax" of 256 levels for integers.
      statistics: statistics of the training data, such as `Comparison.statistics`; bases of levels and the
        output scale `unit_variance` need them.
      draws: number of draws averaged for each example.

    Raises:
      ValueError: an unknown name, `mean` without timesteps, an output of another shape than the data.
      TypeError: a key that is not a typed key, data that are not an array of numbers.

    Examples:
      >>> x = jax.random.normal(jax.random.key(0), (100, 2))
      >>> best = {  # of standard normal data, E[x_0 | x_t] = α x_t
      ...     "x0": lambda xt, gamma_t: jnp.sqrt(jax.nn.sigmoid(-gamma_t)) * xt,
      ...     "eps": lambda xt, gamma_t: jnp.sqrt(jax.nn.sigmoid(gamma_t)) * xt,
      ... }
      >>> losses = vdm.parameterization_losses(best, x, jax.random.key(1), schedule="cosine", timesteps=100)
      >>> difference = losses["x0"].bits_per_dim - losses["eps"].bits_per_dim
      >>> bool(abs(difference.mean()) < 1e-4)
      True
    """
    check_key(key)
    check_array(x, "x")
    x = jnp.asarray(x)
    whole_number(draws, "draws", 1)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"x: expected examples [n, *d], found shape {x.shape}")
    if statistics is None:
        statistics, likelihood = _minimal_statistics(x, likelihood, base, output_scale)
    likelihood = likelihood or ("gaussian" if statistics.levels is None else "softmax")
    base_denoiser = build(BASES, base, "base", **statistics._asdict())
    schedule = build(SCHEDULES, schedule, "schedule")
    check_schedule_params(schedule, schedule_params)
    shared = None if network is None else network_of(as_spec(network), statistics.shape)
    losses, nets = {}, {}
    for name, denoiser in _by_row(denoisers_or_params, timesteps).items():
        with located(f"denoisers_or_params[{name!r}]"):
            if shared is not None:
                net, params = shared, denoiser
                try_params(net, params, statistics.shape, extra=base_denoiser.informative)
            else:
                # one callable for all parameterizations is traced once
                if id(denoiser) not in nets:
                    nets[id(denoiser)] = _network(denoiser, statistics.shape)
                net = nets[id(denoiser)]
                # the weights that it holds, whatever the key
                params = net.init(jax.random.key(0), x[:1], jnp.zeros((1,)), None)
        model = vdm(
            statistics,
            network=net,
            schedule=schedule,
            parameterization=name,
            base=base_denoiser,
            output_scale=output_scale,
            likelihood=likelihood,
            timesteps=timesteps,
        )
        all_params = {"network": params, "schedule": schedule_params or {}}
        elbo, squared_error = _average(model, all_params, x, key, draws)
        losses[name] = Losses(elbo, statistics.bits * elbo.total, squared_error)
    return losses


def _minimal_statistics(
    x: Array,
    likelihood: Spec | Likelihood | None,
    base: Spec | Base,
    output_scale: Spec | OutputScale,
) -> tuple[Statistics, Spec | Likelihood]:
    """Return the likelihood, and statistics with nothing but its number of levels and the shape.

    Raises:
      ValueError: components that need statistics of a training split.
    """
    # a built base has its own statistics, which a built output scale reads from the base
    for name, spec, independent in (
        ("base", base, ("zero", "input")),
        ("output_scale", output_scale, ("none",)),
    ):
        if isinstance(spec, str | Mapping) and name_of(spec) not in independent:
            raise ValueError(f"statistics: are needed for {name} {name_of(spec)!r}, found None")
    discrete = not jnp.issubdtype(x.dtype, jnp.floating)
    likelihood = likelihood or ({"name": "softmax", "levels": 256} if discrete else "gaussian")
    levels = build(LIKELIHOODS, likelihood, "likelihood").levels
    return Statistics(x.shape[1:], levels), likelihood


def _network(denoiser: object, shape: tuple[int, ...]) -> Network:
    """Return the network of an object that holds its weights."""
    if not carries_weights(denoiser):
        raise ValueError(
            "expected a callable (xt, gamma_t), or its parameters beside network=..., "
            f"found {type(denoiser).__name__}"
        )
    return as_network(denoiser, shape)


def _average(model: Model, params: Params, x: Array, key: Key, draws: int) -> tuple[Elbo, Array]:
    """Return bound and squared error of each example, averaged over draws of the times and the noise."""
    draw = per_noise_level(model).draw

    def losses_of_draw(i):
        drawn = draw(params, jax.random.fold_in(key, i), x, dropout=False)
        return drawn.bound, drawn.squared_error

    # one draw after the other: the memory does not grow with their number
    columns = jax.lax.map(losses_of_draw, jnp.arange(draws))
    elbo, error = jax.tree.map(lambda column: column.mean(0), columns)
    return elbo, error


def _by_row(
    denoisers_or_params: Callable[..., Any] | Mapping[str, Any], timesteps: int | None
) -> dict[str, Any]:
    """Return the denoisers or parameters by the name of their parameterization."""
    if isinstance(denoisers_or_params, Mapping):
        for name in denoisers_or_params:
            build(PARAMETERIZATIONS, name, "denoisers_or_params")
        return dict(denoisers_or_params)
    if not callable(denoisers_or_params):
        raise ValueError(
            "denoisers_or_params: expected {parameterization: denoiser or parameters}, or one denoiser, "
            f"found {type(denoisers_or_params).__name__}"
        )
    return {
        name: denoisers_or_params
        for name, make in PARAMETERIZATIONS.items()
        if make().continuous or timesteps is not None
    }
