"""Losses of denoisers that are there already: evaluated, in one unit, on the same data, times and noise."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import BASES
from vdm_jax.checks import check_array, check_key, whole_number
from vdm_jax.config import as_spec
from vdm_jax.elbo import Elbo
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import Statistics, vdm
from vdm_jax.nets import Network, network_of
from vdm_jax.nets.adapters import as_network, carries_weights
from vdm_jax.nets.trial import try_params
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.schedules import SCHEDULES, check_schedule_params
from vdm_jax.specs import build, located
from vdm_jax.typing import Array, Key, Params


class Losses(NamedTuple):
    """Losses of one denoiser on n examples; each is an average over the draws.

    Attributes:
      elbo: the parts of −ELBO, arrays [n], nats.
      bits_per_dim: [n], their sum in bits/dim, which can be compared.
      squared_error: [n], ‖F − target‖² of the network's own output: what a run reports as its loss without a
        weight, and what cannot be compared between parameterizations.
    """

    elbo: Elbo
    bits_per_dim: Array
    squared_error: Array


def parameterization_losses(
    denoisers_or_params: Any,
    x: Any,
    key: Key,
    *,
    schedule: Any = "linear",
    schedule_params: Params = None,
    timesteps: int | None = None,
    network: Any = None,
    base: Any = "zero",
    output_scale: Any = "none",
    likelihood: Any = None,
    statistics: Statistics | None = None,
    draws: int = 1,
) -> dict[str, Losses]:
    """Evaluate denoisers of several parameterizations, without training; pure, so that `jit` and `grad` apply.

    Args:
      denoisers_or_params: by parameterization, what predicts F: a callable (xt, gamma_t) -> F, of one example
        or of batches, or what else `vdm_jax.nets.as_network` takes; with `network`, its parameters. One
        callable alone is read as each of the parameterizations that the timesteps allow.
      x: [n, *d], stored as the likelihood has it.
      key: of times and noise, the same for all.
      schedule, schedule_params, timesteps: as in `negative_elbo`.
      network: whose parameters are given: of `NETS`, or what `as_network` takes.
      base, output_scale: as in `MODELS["vdm"]`.
      likelihood: of `LIKELIHOODS`; "gaussian" for floats by default, "softmax" of 256 levels for integers.
      statistics: of the training data, such as `Comparison.statistics`; bases of levels and the output scale
        `unit_variance` need them.
      draws: averaged for each example.

    Raises:
      ValueError: unknown names, `mean` without timesteps, an output of another shape than the data.

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
    built = build(BASES, base, "base", **statistics._asdict())
    schedule = build(SCHEDULES, schedule, "schedule")
    check_schedule_params(schedule, schedule_params)
    shared = None if network is None else network_of(as_spec(network), statistics.shape)
    losses, nets = {}, {}
    for name, given in _by_row(denoisers_or_params, timesteps).items():
        with located(f"denoisers_or_params[{name!r}]"):
            if shared is not None:
                net, params = shared, given
                try_params(net, params, statistics.shape, extra=built.informative)
            else:
                if id(given) not in nets:  # one callable for all is tried once
                    nets[id(given)] = _network(given, statistics.shape)
                net = nets[id(given)]
                params = net.init(jax.random.key(0), x[:1], jnp.zeros((1,)), None)
        model = vdm(
            statistics,
            network=net,
            schedule=schedule,
            parameterization=name,
            base=built,
            output_scale=output_scale,
            likelihood=likelihood,
            timesteps=timesteps,
        )
        all_params = {"network": params, "schedule": schedule_params or {}}
        losses[name] = _average(model, all_params, x, key, draws)
    return losses


def _minimal_statistics(
    x: Array, likelihood: Any, base: Any, output_scale: Any
) -> tuple[Statistics, Any]:
    """Return statistics of examples without a training split, and their likelihood."""
    if output_scale != "none" or base not in ("zero", "input"):
        raise ValueError(
            f"statistics: are needed for base {base!r} with output_scale {output_scale!r}, found None"
        )
    discrete = not jnp.issubdtype(x.dtype, jnp.floating)
    likelihood = likelihood or ({"name": "softmax", "levels": 256} if discrete else "gaussian")
    levels = build(LIKELIHOODS, likelihood, "likelihood").levels
    return Statistics(x.shape[1:], levels), likelihood


def _network(given: Any, shape: tuple[int, ...]) -> Network:
    """Return the network of an object that holds its weights."""
    if not carries_weights(given):
        raise ValueError(
            "expected a callable (xt, gamma_t), or its parameters beside network=..., "
            f"found {type(given).__name__}"
        )
    return as_network(given, shape)


def _average(model: Any, params: Params, x: Array, key: Key, draws: int) -> Losses:
    def one(i):
        drawn = model.per_noise_level.draw(params, jax.random.fold_in(key, i), x, dropout=False)
        return drawn.bound, drawn.squared_error

    elbo, error = jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(one, jnp.arange(draws)))
    return Losses(elbo, elbo.total / (x[0].size * np.log(2)), error)


def _by_row(given: Any, timesteps: int | None) -> dict[str, Any]:
    if isinstance(given, Mapping):
        for name in given:
            build(PARAMETERIZATIONS, name, "denoisers_or_params")
        return dict(given)
    if not callable(given):
        raise ValueError(
            "denoisers_or_params: expected {parameterization: denoiser or parameters}, or one denoiser, "
            f"found {type(given).__name__}"
        )
    rows = {name: make() for name, make in PARAMETERIZATIONS.items()}
    return {name: given for name, row in rows.items() if row.continuous or timesteps is not None}
