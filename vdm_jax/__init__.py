"""vdm_jax: variational diffusion models as pure functions on JAX.

The mathematics (Gaussians, schedules, parameterizations, bounds, samplers) is imported at once and needs
only jax, numpy and jaxtyping. What trains (`train`, `load`, `make_step` and the tables `NETS`, `MODELS`,
`DATASETS`) is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vdm_jax.xla import avoid_wrong_cpu_reductions

avoid_wrong_cpu_reductions()  # before anything can start a computation

from vdm_jax.bases import BASES, HEADS  # noqa: E402
from vdm_jax.diffusion import Interval, marginal, posterior, transition  # noqa: E402
from vdm_jax.elbo import FORMS, Elbo, negative_elbo  # noqa: E402
from vdm_jax.gaussian import Gaussian, kl  # noqa: E402
from vdm_jax.likelihoods import LIKELIHOODS  # noqa: E402
from vdm_jax.mixtures import Mixture  # noqa: E402
from vdm_jax.objectives import EffectiveWeights, effective_weights  # noqa: E402
from vdm_jax.parameterizations import PARAMETERIZATIONS, Mix, stacked, to_x0  # noqa: E402
from vdm_jax.samplers import SAMPLERS, generate  # noqa: E402
from vdm_jax.schedules import SCHEDULES, Schedule, interval  # noqa: E402
from vdm_jax.specs import build  # noqa: E402
from vdm_jax.times import TIMES  # noqa: E402
from vdm_jax.typing import Batch  # noqa: E402
from vdm_jax.weightings import WEIGHTINGS  # noqa: E402

if TYPE_CHECKING:
    from vdm_jax.comparison import Comparison, compare, parameterization_losses
    from vdm_jax.data import DATASETS
    from vdm_jax.models import MODELS, Model, Statistics
    from vdm_jax.nets import NETS, Network
    from vdm_jax.rerun import replay
    from vdm_jax.run import load, load_side_by_side, train, train_side_by_side
    from vdm_jax.trained import Trained
    from vdm_jax.training.state import TrainState, init_state
    from vdm_jax.training.step import make_step

_LATER = {
    "Comparison": "vdm_jax.comparison",
    "compare": "vdm_jax.comparison",
    "parameterization_losses": "vdm_jax.comparison",
    "DATASETS": "vdm_jax.data",
    "MODELS": "vdm_jax.models",
    "Model": "vdm_jax.models",
    "Statistics": "vdm_jax.models",
    "NETS": "vdm_jax.nets",
    "Network": "vdm_jax.nets",
    "Trained": "vdm_jax.trained",
    "replay": "vdm_jax.rerun",
    "load": "vdm_jax.run",
    "load_side_by_side": "vdm_jax.run",
    "train_side_by_side": "vdm_jax.run",
    "train": "vdm_jax.run",
    "TrainState": "vdm_jax.training.state",
    "init_state": "vdm_jax.training.state",
    "make_step": "vdm_jax.training.step",
}

__all__ = [
    "BASES",
    "DATASETS",
    "FORMS",
    "HEADS",
    "LIKELIHOODS",
    "MODELS",
    "NETS",
    "PARAMETERIZATIONS",
    "SAMPLERS",
    "SCHEDULES",
    "TIMES",
    "WEIGHTINGS",
    "Batch",
    "Comparison",
    "EffectiveWeights",
    "Elbo",
    "Gaussian",
    "Interval",
    "Mix",
    "Mixture",
    "Model",
    "Network",
    "Schedule",
    "Statistics",
    "TrainState",
    "Trained",
    "build",
    "compare",
    "effective_weights",
    "generate",
    "init_state",
    "interval",
    "kl",
    "load",
    "load_side_by_side",
    "make_step",
    "marginal",
    "negative_elbo",
    "parameterization_losses",
    "posterior",
    "replay",
    "stacked",
    "to_x0",
    "train",
    "train_side_by_side",
    "transition",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'vdm_jax' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
