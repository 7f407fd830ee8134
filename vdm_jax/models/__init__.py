"""Model families: functions that return a `Model`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vdm_jax.bases import BASES
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models.chain import CHAINS, Chain
from vdm_jax.models.mhvae import mhvae
from vdm_jax.models.model import Model, PerNoiseLevel, Statistics, with_model_state
from vdm_jax.models.vae import vae
from vdm_jax.models.vdm import vdm
from vdm_jax.specs import choose, located, nearest

MODELS: dict[str, Callable[..., Model]] = {"vdm": vdm, "vae": vae, "mhvae": mhvae}

PARTS: dict[str, Mapping[str, Callable]] = {
    "base": BASES,
    "likelihood": LIKELIHOODS,
    "chain": CHAINS,
}
"""Fields of a spec whose factories may take fields of `Statistics` -> their tables."""

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


def base_of(spec: Mapping[str, Any]) -> Any:
    """The spec of the base whose error is to be measured before training, or None."""
    chain = spec.get("chain")
    return spec.get("base") or (chain.get("base") if isinstance(chain, Mapping) else None)


def statistics_needed(spec: Any, table: Mapping[str, Callable] = MODELS) -> set[str]:
    """Return the names of the fields of `Statistics` that the components of a model's spec take as arguments.

    Objects that are built already take none; what is wrong with a spec is left to `build_model`.

    Examples:
      >>> from vdm_jax.models import statistics_needed
      >>> sorted(statistics_needed({"name": "vdm", "base": "histogram"}))
      ['levels', 'log_counts', 'residual', 'second_moment']
    """
    given = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or given.get("name") not in [*table]:
        return set()
    known = inspect.signature(table[given["name"]]).parameters
    parts = [(given.get(name, known[name].default), PARTS[name]) for name in PARTS if name in known]
    return {*known}.intersection(Statistics._fields).union(*(statistics_needed(*p) for p in parts))


def build_model(spec: Mapping[str, Any], statistics: Statistics) -> Model:
    """Build the model of the section `model` of a config, a spec {"name": ..., **components}.

    Raises:
      ValueError: an unknown name or field, or what the family itself refuses.
    """
    family, known = _family(spec)
    fields = {key: value for key, value in spec.items() if key != "name"}
    for key in fields:
        if key not in known:
            raise ValueError(f"config.model: unknown field {key!r}{nearest(key, known)}")
    with located("config.model", known):
        return family(statistics, **fields)


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of its family to a spec, for the fields that the spec does not give.

    Raises:
      ValueError: an unknown name.
    """
    _, known = _family(spec)
    return {name: p.default for name, p in known.items() if p.default is not p.empty} | dict(spec)


def _family(
    spec: Mapping[str, Any],
) -> tuple[Callable[..., Model], dict[str, inspect.Parameter]]:
    """Return the family that a spec names, and its fields."""
    family = choose(MODELS, spec["name"], "config.model.name")
    parameters = inspect.signature(family).parameters.items()
    return family, {n: p for n, p in parameters if p.kind is p.KEYWORD_ONLY}
