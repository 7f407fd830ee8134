"""One run of a config, or a sweep: many runs in one program, which differ along `AXES`.

Each run of a sweep is the run that its own config would train. Runs of one seed start from the same weights
and see the same batches, times and noise; they differ in the components that turn the network's output into
x̂_0 and weigh its error (docs/equations.md §4). The components are chosen by index and the learning rates and
keys are arrays, so that one `vmap` of the train step trains all runs and compiles once.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.data import Dataset, Split, train_batches
from vdm_jax.models import Model, Statistics, build_model
from vdm_jax.nets.adapters import by_row, is_by_row
from vdm_jax.runs.axes import AXES, CHOICES, expand, is_sweep
from vdm_jax.runs.start import fresh, load_data
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.settings import DataSettings, OptimizerSettings, Settings
from vdm_jax.specs import build, located
from vdm_jax.training.dispatch import over_runs
from vdm_jax.training.layout import Layout, with_full_params
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Step, make_step
from vdm_jax.typing import Batch

Load = Callable[[DataSettings], Dataset]
"""Loader of a data set, such as `load_data`."""


class Variant(NamedTuple):
    """The variants of a sweep, as arrays [V]; one variant, as numbers.

    Attributes:
      choices: by axis, indices into the axis's list of values.
      learning_rate: learning rates.
    """

    choices: dict[str, Any]
    learning_rate: Any


def _step_options(settings: Settings, layout: Layout) -> dict[str, Any]:
    """Return the options of `make_step`."""
    return {
        "axis_name": layout.axis_name,
        "ema_every": settings.optimizer.accumulate,
        "ema_decay": settings.train.ema_decay,
        "ema_warmup": settings.train.ema_warmup,
    }


def _optimizer(
    settings: OptimizerSettings, learning_rate: Any = None
) -> optax.GradientTransformation:
    """Build the optimizer of the settings, or one with another learning rate, which may be traced."""
    arguments = vars(settings)
    if learning_rate is not None:
        arguments = arguments | {"learning_rate": learning_rate}
    with located("config.optimizer", arguments):
        optimizer, _ = make_optimizer(**arguments)
    return optimizer


class Run:
    """The single run of a config without a sweep."""

    names: tuple[str, ...] = ()

    def __init__(self, settings: Settings, statistics: Statistics):
        if is_sweep(settings):
            raise ValueError(
                "config.sweep: has values, expected none for one run; use train_sweep or load_sweep"
            )
        self.settings, self.statistics = settings, statistics
        self.model = build_model(settings.model, statistics)
        self.optimizer = _optimizer(settings.optimizer)
        self.compiled: dict[Any, Any] = {}  # shared by all states of the run that are evaluated

    def start(self) -> TrainState:
        """Return the state that training starts from."""
        return fresh(self.settings.seed, self.model, self.optimizer)

    def step(self, layout: Layout) -> Step:
        """Return the train step."""
        loss = with_full_params(layout, self.model.loss)
        return make_step(loss, self.optimizer, **_step_options(self.settings, layout))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Iterate over the batches of a split, with options of `train_batches`."""
        return train_batches(split, seed=self.settings.seed, **options)

    def trained(
        self,
        state: TrainState,
        workdir: Path,
        layout: Layout,
        load: Load = load_data,
        **options: Any,
    ) -> TrainedModel:
        """Return the run with a state of it; `load` loads its data."""
        return TrainedModel(
            self.settings,
            self.model,
            self.statistics,
            state,
            workdir,
            layout,
            self.compiled,
            load=load,
            **options,
        )


class Sweep:
    """The runs of a sweep, as one state [R, ...] and one step.

    Args:
      settings: of all runs; the model may hold built objects, and as `network` a mapping from each
        parameterization to its own network.
      statistics: statistics of the training split.
      own: by axis, factories of components that the axis's table does not have.

    Attributes:
      names: names of the runs, in the order of the state's leading axis.
      variants: settings in which the runs differ, other than their seeds; arrays [V].
      runs: settings of the single runs, by name.
      seeds: seeds of each variant.
    """

    def __init__(
        self,
        settings: Settings,
        statistics: Statistics,
        own: Mapping[str, Mapping[str, Callable[[], Any]]] | None = None,
    ):
        if not is_sweep(settings):
            raise ValueError(
                "config.sweep: is empty, expected values for runs side by side; use train or load"
            )
        self.settings, self.statistics, self.runs = settings, statistics, expand(settings)
        self.names, singles = tuple(self.runs), list(self.runs.values())
        self.tables = {
            name: (AXES[name].table or {}) | dict((own or {}).get(name, {})) for name in CHOICES
        }
        # by the spec of the model: the model, and its compiled functions
        self.shared: dict[str, tuple[Model, dict[Any, Any]]] = {}
        self.seeds = list(dict.fromkeys(single.seed for single in singles))
        # the seeds are the last axis: every S-th config begins another variant
        variants = singles[:: len(self.seeds)]
        choices = {}
        for name in CHOICES:
            values, field = self._values(name), AXES[name].field
            if values:
                indices = [values.index(variant.model[field]) for variant in variants]
                choices[name] = np.asarray(indices, np.int32)
        rates = [variant.optimizer.learning_rate for variant in variants]
        self.variants = Variant(choices, np.asarray(rates, np.float32))

    def _values(self, axis: str) -> list[Any]:
        return list(getattr(self.settings.sweep, axis))

    @property
    def each_variant(self) -> list[Variant]:
        """Return a list of the variants, whose entries are numbers instead of arrays."""
        count = len(self.names) // len(self.seeds)
        return [jax.tree.map(lambda leaf, i=i: leaf[i].item(), self.variants) for i in range(count)]

    def model_of(self, variant: Variant) -> Model:
        """Build the model of a variant, whose entries may be traced."""
        spec = dict(self.settings.model)
        for name, index in variant.choices.items():
            axis, values = AXES[name], self._values(name)
            built = [build(self.tables[name], value, f"config.sweep.{name}") for value in values]
            # a single value is not selected by its index, so that the program is that of a single run
            spec[axis.field] = built[0] if len(built) == 1 else axis.select(built, index)
        if is_by_row(spec.get("network")):
            networks = [spec["network"][name] for name in self._values("parameterizations")]
            spec["network"] = by_row(networks, variant.choices["parameterizations"])
        return build_model(spec, self.statistics)

    def optimizer_of(self, variant: Variant) -> optax.GradientTransformation:
        """Build the optimizer of a variant, whose entries may be traced."""
        return _optimizer(self.settings.optimizer, variant.learning_rate)

    def start(self) -> TrainState:
        """Return the state [R, ...] that training starts from."""

        def start_run(variant, seed):
            return fresh(seed, self.model_of(variant), self.optimizer_of(variant))

        seeds = jnp.asarray(self.seeds, jnp.uint32)
        grid = jax.vmap(jax.vmap(start_run, (None, 0)), (0, None))(self.variants, seeds)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), grid)  # [V, S] -> [R]

    def step(self, layout: Layout) -> Step:
        """Return the train step of all runs."""
        options = _step_options(self.settings, layout)

        def step_run(variant, state, batch):
            loss = with_full_params(layout, self.model_of(variant).loss)
            optimizer = self.optimizer_of(variant)
            return make_step(loss, optimizer, **options)(state, batch)

        return over_runs(step_run, self.variants, len(self.seeds))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Iterate over batches whose x is [n, b, S, *d]; each seed has its own order of the data."""
        orders = [train_batches(split, seed=seed, **options) for seed in self.seeds]
        for batches in zip(*orders, strict=True):
            yield batches[0]._replace(x=np.stack([batch.x for batch in batches], 2))

    def trained(
        self,
        state: TrainState,
        workdir: Path,
        layout: Layout,
        load: Load = load_data,
        **options: Any,
    ) -> dict[str, TrainedModel]:
        """Return the runs by name, each with its part of the state; `load` loads the data."""
        runs = {}
        for i, (name, settings) in enumerate(self.runs.items()):
            spec = repr(settings.model)
            if spec not in self.shared:  # runs of other seeds and learning rates share a model
                self.shared[spec] = build_model(settings.model, self.statistics), {}
            model, compiled = self.shared[spec]
            runs[name] = TrainedModel(
                settings,
                model,
                self.statistics,
                jax.tree.map(itemgetter(i), state),
                workdir,
                layout,
                compiled,
                load=load,
                **options,
            )
        return runs
