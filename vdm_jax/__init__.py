"""vdm_jax: variational diffusion models as pure functions on JAX.

The mathematics (Gaussians, schedules, parameterizations, bounds, samplers) is imported at once and needs
only jax, numpy and jaxtyping. Training (`train`, `load`, `make_step`, `nets`, `models`, `data`) is imported
on first use. A submodule of components has a factory for each name in its table, such as
`vdm.schedules.cosine()` for "cosine" in `vdm.schedules.SCHEDULES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vdm_jax.xla import avoid_wrong_cpu_reductions

avoid_wrong_cpu_reductions()  # an XLA flag, which is read at the first computation of the process

from vdm_jax import (  # noqa: E402
    bases,
    diffusion,
    elbo,
    estimators,
    likelihoods,
    output_scales,
    parameterizations,
    samplers,
    schedules,
    time_samplers,
    weightings,
)
from vdm_jax.diffusion import Interval, marginal, posterior, transition  # noqa: E402
from vdm_jax.effective_weights import effective_weights  # noqa: E402
from vdm_jax.elbo import negative_elbo  # noqa: E402
from vdm_jax.estimators import log_likelihood  # noqa: E402
from vdm_jax.gaussian import Gaussian, kl  # noqa: E402
from vdm_jax.mixtures import Mixture  # noqa: E402
from vdm_jax.parameterizations import to_x0  # noqa: E402
from vdm_jax.samplers import generate  # noqa: E402
from vdm_jax.schedules import interval  # noqa: E402
from vdm_jax.specs import build  # noqa: E402
from vdm_jax.typing import Batch  # noqa: E402

if TYPE_CHECKING:
    from vdm_jax import data, models, nets
    from vdm_jax.comparison import compare, parameterization_losses
    from vdm_jax.models import Model, Statistics
    from vdm_jax.nets import Network
    from vdm_jax.runs.load import load, load_sweep
    from vdm_jax.runs.replay import replay
    from vdm_jax.runs.train import train, train_sweep
    from vdm_jax.training.state import init_state
    from vdm_jax.training.step import make_step

__all__ = [
    "Batch",
    "Gaussian",
    "Interval",
    "Mixture",
    "Model",
    "Network",
    "Statistics",
    "bases",
    "build",
    "compare",
    "data",
    "diffusion",
    "effective_weights",
    "elbo",
    "estimators",
    "generate",
    "init_state",
    "interval",
    "kl",
    "likelihoods",
    "load",
    "load_sweep",
    "log_likelihood",
    "make_step",
    "marginal",
    "models",
    "negative_elbo",
    "nets",
    "output_scales",
    "parameterization_losses",
    "parameterizations",
    "posterior",
    "replay",
    "samplers",
    "schedules",
    "time_samplers",
    "to_x0",
    "train",
    "train_sweep",
    "transition",
    "weightings",
]

_LATER = {
    "compare": "comparison",
    "parameterization_losses": "comparison",
    "Model": "models",
    "Statistics": "models",
    "Network": "nets",
    "load": "runs.load",
    "load_sweep": "runs.load",
    "replay": "runs.replay",
    "train": "runs.train",
    "train_sweep": "runs.train",
    "init_state": "training.state",
    "make_step": "training.step",
    # tables and types, which the API reference lists under their modules
    "BASES": "bases",
    "OUTPUT_SCALES": "output_scales",
    "FORMS": "elbo",
    "ESTIMATORS": "estimators",
    "Elbo": "elbo",
    "LIKELIHOODS": "likelihoods",
    "PARAMETERIZATIONS": "parameterizations",
    "Preconditioning": "parameterizations",
    "stacked": "parameterizations",
    "SAMPLERS": "samplers",
    "SCHEDULES": "schedules",
    "Schedule": "schedules",
    "TIME_SAMPLERS": "time_samplers",
    "WEIGHTINGS": "weightings",
    "DATASETS": "data",
    "MODELS": "models",
    "NETS": "nets",
    "Comparison": "comparison",
    "EffectiveWeights": "effective_weights",
    "TrainState": "training.state",
    "TrainedModel": "runs.trained",
}
"""Name -> module that it is imported from on first use."""


def __getattr__(name: str) -> Any:
    if name in ("data", "models", "nets"):
        return import_module(f"vdm_jax.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'vdm_jax' has no attribute {name!r}")
    return getattr(import_module(f"vdm_jax.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
