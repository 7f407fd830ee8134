"""One run of a config, or a sweep: many runs in one program, which differ along `AXES`.

Each of several runs is the one that a config of its own would train: those of one seed start from the same
weights and see the same batches, times and noise, and differ in the row of a table that turns the network's
output into x̂_0 or weighs its error (docs/equations.md §4). Rows, rates and keys are arrays, so that one `vmap`
of the one step trains all of them, compiled once.
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
from vdm_jax.runs.axes import AXES, CHOICES, expand, is_sweep, requested_values
from vdm_jax.runs.trained import TrainedModel, fresh, load_data
from vdm_jax.settings import Settings, settings_of
from vdm_jax.specs import build, located
from vdm_jax.training.dispatch import over_runs
from vdm_jax.training.layout import Layout, with_full_params
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Step, make_step
from vdm_jax.typing import Batch

Load = Callable[[dict[str, Any]], Dataset]
"""Settings of the section `data` -> the data set."""


class Variant(NamedTuple):
    """The choices of the variants, as arrays [V]: places of the choices in their lists, and learning rates."""

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


def _optimizer(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    """Make the optimizer of the section `optimizer` of a config."""
    with located("config.optimizer", settings):
        optimizer, _ = make_optimizer(**settings)
    return optimizer


class Run:
    """The run of a config that asks for one."""

    names: tuple[str, ...] = ()

    def __init__(self, config: dict[str, Any], statistics: Statistics):
        if is_sweep(config):
            raise ValueError(
                "config.sweep: asks for runs side by side, expected a config of one run: empty lists"
            )
        self.config, self.settings, self.statistics = config, settings_of(config), statistics
        self.model = build_model(self.settings.model, statistics)
        self.optimizer = _optimizer(vars(self.settings.optimizer))
        self.compiled: dict[Any, Any] = {}  # for whatever state is evaluated

    def start(self) -> TrainState:
        """The state that training starts from."""
        return fresh(self.settings.seed, self.model, self.optimizer)

    def step(self, layout: Layout) -> Step:
        """Return the train step."""
        loss = with_full_params(layout, self.model.loss)
        return make_step(loss, self.optimizer, **_step_options(self.settings, layout))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches of the split; `options` of `train_batches`."""
        return train_batches(split, seed=self.settings.seed, **options)

    def trained(
        self,
        state: TrainState,
        workdir: Path,
        layout: Layout,
        load: Load = load_data,
        **options: Any,
    ) -> TrainedModel:
        """Return the run with the state that training ended in; `load` loads its data."""
        parts = self.model, self.statistics, state, workdir, layout, self.compiled
        return TrainedModel(self.config, *parts, load=load, **options)


class Sweep:
    """The runs of a config that asks for several, as one state [R, ...] and one step.

    Args:
      config: as `to_dict` returns it; its model may hold built objects, and as `network` one for each
        parameterization.
      statistics: of the training split.
      own: by axis, rows that its table does not have.

    Attributes:
      names: of the runs, in the order of the state's leading axis.
      settings: the sections of the config, typed.
      variants: what the runs differ in beside their seeds, arrays [V].
      configs: of the single runs, by name.
      seeds: of each variant.
    """

    def __init__(
        self,
        config: dict[str, Any],
        statistics: Statistics,
        own: Mapping[str, Mapping[str, Callable[[], Any]]] | None = None,
    ):
        if not is_sweep(config):
            raise ValueError(
                "config.sweep: asks for one run, expected some values to run side by side"
            )
        config = config | {"sweep": requested_values(config)}
        self.configs = expand(config)
        singles = list(self.configs.values())
        self.config, self.settings, self.statistics = config, settings_of(config), statistics
        self.names = tuple(self.configs)
        self.tables = {
            name: (AXES[name].table or {}) | dict((own or {}).get(name, {})) for name in CHOICES
        }
        self.shared: dict[str, tuple[Model, dict[Any, Any]]] = {}  # and what is compiled, by config
        self.seeds = list(dict.fromkeys(single["seed"] for single in singles))
        variants = singles[:: len(self.seeds)]
        self.variants = Variant(
            choices={
                name: np.asarray(
                    [config["sweep"][name].index(v["model"][AXES[name].field]) for v in variants],
                    np.int32,
                )
                for name in CHOICES
                if config["sweep"][name]
            },
            learning_rate=np.asarray(
                [v["optimizer"]["learning_rate"] for v in variants], np.float32
            ),
        )

    @property
    def each_variant(self) -> list[Variant]:
        """Return the variants one by one, as numbers."""
        count = len(self.names) // len(self.seeds)
        return [jax.tree.map(lambda leaf, i=i: leaf[i].item(), self.variants) for i in range(count)]

    def model_of(self, variant: Variant) -> Model:
        """Build the model of one variant, which may be traced."""
        spec = dict(self.config["model"])
        for name, index in variant.choices.items():
            axis, values = AXES[name], self.config["sweep"][name]
            built = [build(self.tables[name], value, f"config.sweep.{name}") for value in values]
            # of one there is nothing to choose: it is the same program as that of a single run
            spec[axis.field] = built[0] if len(built) == 1 else axis.select(built, index)
        if is_by_row(spec.get("network")):
            networks = [spec["network"][name] for name in self.config["sweep"]["parameterizations"]]
            spec["network"] = by_row(networks, variant.choices["parameterizations"])
        return build_model(spec, self.statistics)

    def optimizer_of(self, variant: Variant) -> Any:
        """Build the optimizer of one variant, which may be traced."""
        settings = vars(self.settings.optimizer) | {"learning_rate": variant.learning_rate}
        return _optimizer(settings)

    def start(self) -> TrainState:
        """The state [R, ...] that training starts from."""

        def one(variant, seed):
            return fresh(seed, self.model_of(variant), self.optimizer_of(variant))

        seeds = jnp.asarray(self.seeds, jnp.uint32)
        found = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(self.variants, seeds)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def step(self, layout: Layout) -> Step:
        """Return the train step of all runs."""
        options = _step_options(self.settings, layout)

        def one(variant, state, batch):
            loss = with_full_params(layout, self.model_of(variant).loss)
            optimizer = self.optimizer_of(variant)
            return make_step(loss, optimizer, **options)(state, batch)

        return over_runs(one, self.variants, len(self.seeds))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches whose x is [n, b, seeds, *d]: each seed walks through the data in its own order."""
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
        """Return each run with its part of the state that training ended in; `load` loads the data."""
        found, shared = {}, self.shared
        for i, (name, config) in enumerate(self.configs.items()):
            own, spec = jax.tree.map(itemgetter(i), state), repr(config["model"])
            if spec not in shared:  # by seeds and rates, with what is compiled for them
                shared[spec] = build_model(config["model"], self.statistics), {}
            model, compiled = shared[spec]
            parts = model, self.statistics, own, workdir, layout, compiled
            found[name] = TrainedModel(config, *parts, load=load, **options)
        return found
