"""Likelihood estimators of a model: those of its own bound, and those of its diffusion process."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from vdm_jax.checks import whole_number
from vdm_jax.elbo import mean_of_draws
from vdm_jax.estimators import ESTIMATORS, Estimate, Estimator
from vdm_jax.estimators.bounds import plural
from vdm_jax.models.model import BatchLike, Measure, Model
from vdm_jax.specs import build, located, name_of
from vdm_jax.typing import Array, Key, Params, Spec


class ModelEstimator(NamedTuple):
    """An estimator of the log-likelihood of a model's examples.

    Attributes:
      estimate: (params, key, batch, fitted=None) -> `Estimate` of arrays [B].
      description: the estimator in words, for reports.
      settings: name -> value, for reports; "name" is that of the estimator.
      calls: number of calls of the network for one example; None if the model does not count them.
      fit: the `Measure` whose mean is the argument `fitted` of `estimate`; None if the estimator needs none.
    """

    estimate: Callable[..., Estimate]
    description: str
    settings: Mapping[str, Any]
    calls: int | None = None
    fit: Measure | None = None


def build_estimator(model: Model, spec: Spec | Estimator, draws: int = 1) -> ModelEstimator:
    """Build an estimator of a model.

    Args:
      model: the model.
      spec: a name or spec of `ESTIMATORS`; for a diffusion model also an `Estimator`.
      draws: of an estimator that averages draws, unless the spec has them.

    Raises:
      ValueError: the model does not have the estimator, or an argument is wrong.
      TypeError: an argument is of another type.
    """
    if model.unsupported is not None:
        raise ValueError(f"{model.components}: {model.unsupported}")
    whole_number(draws, "draws", 1)
    if model.estimator is not None:
        return model.estimator(spec, draws)
    table: dict[str, Callable[..., ModelEstimator]] = {"elbo": partial(elbo, model)}
    if model.importance is not None:
        table["importance"] = partial(importance, model)
    with located("estimator"):
        name = name_of(spec)
    if name in ESTIMATORS and name not in table:
        raise ValueError(
            f"estimator: {name!r} needs a diffusion process, which {model.name!r} does not have; choices: "
            f"{', '.join(table)}"
        )
    return build(table, spec, "estimator", draws=draws)


def elbo(model: Model, *, draws: int = 1) -> ModelEstimator:
    """Return the estimator of a model's own bound."""
    whole_number(draws, "draws", 1)

    def estimate(
        params: Params, key: Key, batch: BatchLike, fitted: Array | None = None
    ) -> Estimate:
        del fitted
        bound = model.elbo(params, key, batch, draws=draws)
        return Estimate(-bound.total, bound)

    settings = {"name": "elbo", "draws": draws}
    return ModelEstimator(estimate, f"{model.bound}, {plural(draws, 'draw')} per example", settings)


def importance(model: Model, *, samples: int = 10, draws: int = 1) -> ModelEstimator:
    """Return the estimator of a model's importance-weighted bound (Burda et al. 2015)."""
    whole_number(samples, "samples", 1)
    whole_number(draws, "draws", 1)
    negative_bound = model.importance
    assert negative_bound is not None

    def estimate(
        params: Params, key: Key, batch: BatchLike, fitted: Array | None = None
    ) -> Estimate:
        del fitted

        def draw(i: Array) -> Array:
            return negative_bound(params, jax.random.fold_in(key, i), batch, samples)

        # one after the other, so that the memory does not grow with the number of draws
        return Estimate(-mean_of_draws(draw, draws))

    settings = {"name": "importance", "samples": samples, "draws": draws}
    words = f"importance-weighted bound of {samples} samples, of the {model.bound}"
    return ModelEstimator(estimate, f"{words}, {plural(draws, 'draw')} per example", settings)
