"""Likelihood estimators of a variational diffusion model."""

import inspect
from collections.abc import Mapping
from typing import Any

from vdm_jax.estimators import ESTIMATORS, Estimate, Estimator
from vdm_jax.keys import key_of_each
from vdm_jax.models.likelihood import ModelEstimator
from vdm_jax.models.model import BatchLike, check_params, encoded
from vdm_jax.models.vdm.parts import VDM, process
from vdm_jax.specs import build, located, name_of
from vdm_jax.typing import Array, Key, Params, Spec


def build_estimator(model: VDM, spec: Spec | Estimator, draws: int) -> ModelEstimator:
    """Build an estimator of a diffusion model.

    Args:
      model: the model, whose `timesteps` are those of an estimator whose spec has none. A spec may have other
        `timesteps`, or None for continuous time: the network is conditioned on γ, not on the step.
      spec: an `Estimator`, or a name or spec of `ESTIMATORS`.
      draws: of an estimator that averages draws, unless the spec has them.

    Raises:
      ValueError: the model does not have the estimator, or an argument is wrong.
    """
    dequantization = None if model.likelihood.levels is None else "decoder"
    with located("estimator"):
        name = name_of(spec)
    if isinstance(spec, str | Mapping) and name in ESTIMATORS:
        fields = {"name": name} if isinstance(spec, str) else dict(spec)
        if "timesteps" in inspect.signature(ESTIMATORS[name]).parameters:
            fields = {"timesteps": model.timesteps} | fields
        spec = fields
    estimator = build(ESTIMATORS, spec, "estimator", draws=draws, dequantization=dequantization)
    with located("estimator", estimator.settings):
        check(model, estimator)
    settings = {"name": estimator.name} | dict(estimator.settings)
    if "dequantization" in settings:
        settings["dequantization"] = settings["dequantization"] or dequantization

    def parts(params: Params, key: Key, batch: BatchLike) -> tuple[Any, ...]:
        check_params(params)
        batch, x0 = encoded(batch, model.statistics, model.likelihood)
        return process(model, params), batch.x, x0, key_of_each(key, batch.index)

    def estimate(
        params: Params, key: Key, batch: BatchLike, fitted: Array | None = None
    ) -> Estimate:
        return estimator.estimate(*parts(params, key, batch), fitted)

    def fit(params: Params, key: Key, batch: BatchLike) -> Array:
        assert estimator.fit is not None
        diffusion, _, x0, keys = parts(params, key, batch)
        return estimator.fit(diffusion, x0, keys)

    return ModelEstimator(
        estimate=estimate,
        description=estimator.description,
        settings=settings,
        calls=estimator.calls(model.likelihood),
        fit=None if estimator.fit is None else fit,
    )


def check(model: VDM, estimator: Estimator) -> None:
    """Raise ValueError unless the model has an estimator."""
    parameterization = model.denoiser.parameterization
    estimator.check(parameterization, model.likelihood, tuple(model.statistics.shape))
    steps = estimator.settings.get("timesteps")
    if not parameterization.continuous and steps != model.timesteps:
        raise ValueError(
            f"timesteps: 'mean' predicts for the steps of the training chain, expected {model.timesteps}, "
            f"found {steps}"
        )
