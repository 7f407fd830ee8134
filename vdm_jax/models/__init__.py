"""Model families: functions that build a `Model` from statistics and components."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vdm_jax.bases import BASES, Base
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models.chain import CHAINS, Chain
from vdm_jax.models.mhvae import mhvae
from vdm_jax.models.model import Model, PerNoiseLevel, with_model_state
from vdm_jax.models.statistics import Statistics
from vdm_jax.models.vae import vae
from vdm_jax.models.vdm import vdm
from vdm_jax.specs import choose, located, nearest
from vdm_jax.typing import Spec

MODELS: dict[str, Callable[..., Model]] = {"vdm": vdm, "vae": vae, "mhvae": mhvae}
"""name -> function that builds a `Model`."""

PARTS: dict[str, Mapping[str, Callable]] = {
    "base": BASES,
    "likelihood": LIKELIHOODS,
    "chain": CHAINS,
}
"""Fields of a model's spec whose components may take fields of `Statistics` -> their tables."""

__all__ = [
    "CHAINS",
    "MODELS",
    "Chain",
    "Model",
    "PerNoiseLevel",
    "Statistics",
    "base_of",
    "build_model",
    "mhvae",
    "statistics_needed",
    "vae",
    "vdm",
    "with_defaults",
    "with_model_state",
]


def base_of(spec: Mapping[str, Any]) -> Spec | Base | None:
    """Return the base, of a model or of its chain, whose error is measured before training, or None."""
    chain = spec.get("chain")
    return spec.get("base") or (chain.get("base") if isinstance(chain, Mapping) else None)


def statistics_needed(spec: object, table: Mapping[str, Callable] = MODELS) -> set[str]:
    """Return the names of the fields of `Statistics` that a model and its components take as arguments.

    Components that are already built take none. A wrong spec takes none either; `build_model` reports it.

    Args:
      spec: of a model, or of a component.
      table: name -> factory, for the name in the spec.

    Examples:
      >>> from vdm_jax.models import statistics_needed
      >>> sorted(statistics_needed({"name": "vdm", "base": "histogram"}))
      ['levels', 'log_counts', 'residual', 'second_moment']
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    # in a list: the lookup of an unhashable name in the table would raise TypeError
    if not isinstance(spec, Mapping) or spec.get("name") not in [*table]:
        return set()
    parameters = inspect.signature(table[spec["name"]]).parameters
    needed = {*parameters}.intersection(Statistics._fields)
    for name, components in PARTS.items():
        if name in parameters:
            component = spec.get(name, parameters[name].default)
            needed |= statistics_needed(component, components)
    return needed


def build_model(spec: Mapping[str, Any], statistics: Statistics) -> Model:
    """Build the model of the section `model` of a config, a spec {"name": ..., **components}.

    Raises:
      ValueError: a name or a field is unknown, or the family raises it.
    """
    family, parameters = _family(spec)
    fields = {key: value for key, value in spec.items() if key != "name"}
    for key in fields:
        if key not in parameters:
            raise ValueError(f"config.model: unknown field {key!r}{nearest(key, parameters)}")
    with located("config.model", parameters):
        return family(statistics, **fields)


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of the model's family for the fields that its spec does not set.

    Raises:
      ValueError: the name is unknown.
    """
    _, parameters = _family(spec)
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    return defaults | dict(spec)


def _family(
    spec: Mapping[str, Any],
) -> tuple[Callable[..., Model], dict[str, inspect.Parameter]]:
    """Return the family that a spec names, and its keyword-only parameters, which are the spec's fields."""
    family = choose(MODELS, spec["name"], "config.model.name")
    parameters = inspect.signature(family).parameters.items()
    fields = {
        name: parameter
        for name, parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return family, fields
