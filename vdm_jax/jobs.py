"""What a config asks to train: one run, or parameterizations, learning rates and seeds of it side by side.

Each of several runs is the one that a config of its own would train: those of one seed start from the same
weights and see the same batches, times and noise, and differ in the row of the table of parameterizations
(docs/equations.md §4) that turns the network's output into x̂_0. Rows, rates and keys are arrays, so that one
`vmap` of the one step trains all of them, compiled once.
"""

from collections.abc import Iterator
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.data import Split, train_batches
from vdm_jax.models import Statistics, build_model
from vdm_jax.parameterizations import PARAMETERIZATIONS, stacked
from vdm_jax.specs import build
from vdm_jax.trained import Trained, fresh
from vdm_jax.training.layout import Layout, gathered
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.parallel import over_runs
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Step, make_step
from vdm_jax.typing import Batch

AXES = {
    "parameterizations": ("model", "parameterization", "{}"),
    "learning_rates": ("optimizer", "learning_rate", "lr{}"),
    "seeds": ("seed", None, "seed{}"),
}
"""Of `config.runs`: the field that each sets, and how it is named."""


class Setting(NamedTuple):
    """What distinguishes the runs, as arrays [R]; `data` is the place of the seed's batches among all."""

    row: Any
    learning_rate: Any
    seed: Any
    data: Any


def expand(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs of the single runs, by name; one without a name if `config.runs` asks for none.

    Raises:
      ValueError: a value twice, or parameterizations of a model that has none.
    """
    asked = config["runs"]
    for axis, values in asked.items():
        if len({*map(str, values)}) < len(values):
            raise ValueError(f"config.runs.{axis}: expected each value once, found {values}")
    if asked["parameterizations"] and "parameterization" not in config["model"]:
        raise ValueError(
            f"config.runs.parameterizations: {config['model']['name']!r} has no parameterization"
        )
    members = {}
    for values in product(*(asked[axis] or [None] for axis in AXES)):
        single, words = config | {"runs": {axis: [] for axis in AXES}}, []
        for (section, field, word), value in zip(AXES.values(), values, strict=True):
            if value is not None:
                single[section] = value if field is None else single[section] | {field: value}
                words.append(word.format(value))
        members["_".join(words)] = single
    return members


def is_many(config: dict[str, Any]) -> bool:
    """Whether a config asks for runs side by side."""
    return any(config["runs"].values())


class One:
    """The run of a config that asks for one."""

    names: tuple[str, ...] = ()

    def __init__(self, config: dict[str, Any], statistics: Statistics):
        if is_many(config):
            raise ValueError(
                "config.runs: asks for runs side by side, expected a config of one run: empty lists"
            )
        self.config, self.statistics = config, statistics
        self.model = build_model(config["model"], statistics)
        self.optimizer, _ = make_optimizer(**config["optimizer"])

    def start(self) -> TrainState:
        """The state that training starts from."""
        return fresh(self.config["seed"], self.model, self.optimizer)

    def step(self, layout: Layout, **options: Any) -> Step:
        """The step; `options` of `make_step`."""
        loss = gathered(layout, self.model.loss)
        return make_step(loss, self.optimizer, axis_name=layout.axis_name, **options)

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches of the split; `options` of `train_batches`."""
        return train_batches(split, seed=self.config["seed"], **options)

    def trained(self, state: TrainState, workdir: Path, layout: Layout) -> Trained:
        """The run with the state that training ended in."""
        return Trained(self.config, self.model, self.statistics, state, workdir, layout)


class Many:
    """The runs of a config that asks for several, as one state [R, ...] and one step.

    Attributes:
      names: of the runs, in the order of the state's leading axis.
    """

    def __init__(self, config: dict[str, Any], statistics: Statistics):
        if not is_many(config):
            raise ValueError(
                "config.runs: asks for one run, expected some values to run side by side"
            )
        self.members = expand(config)
        singles = list(self.members.values())
        self.config, self.statistics, self.names = config, statistics, tuple(self.members)
        self.rows = config["runs"]["parameterizations"]
        self.seeds = list(dict.fromkeys(single["seed"] for single in singles))
        rates = [single["optimizer"]["learning_rate"] for single in singles]
        rows = [
            self.rows.index(single["model"]["parameterization"]) if self.rows else 0
            for single in singles
        ]
        self.settings = Setting(
            row=np.asarray(rows, np.int32),
            learning_rate=np.asarray(rates, np.float32),
            seed=np.asarray([single["seed"] for single in singles], np.uint32),
            data=np.asarray([self.seeds.index(single["seed"]) for single in singles], np.int32),
        )

    def model_and_optimizer(self, setting: Setting) -> tuple[Any, Any]:
        """Of one run, whose setting may be traced."""
        spec = self.config["model"]
        if self.rows:
            rows = [build(PARAMETERIZATIONS, name, "config.runs") for name in self.rows]
            spec = spec | {"parameterization": stacked(rows, setting.row)}
        settings = self.config["optimizer"] | {"learning_rate": setting.learning_rate}
        optimizer, _ = make_optimizer(**settings)
        return build_model(spec, self.statistics), optimizer

    def start(self) -> TrainState:
        """The state [R, ...] that training starts from."""

        def one(setting):
            return fresh(setting.seed, *self.model_and_optimizer(setting))

        return jax.vmap(one)(jax.tree.map(jnp.asarray, self.settings))

    def step(self, layout: Layout, **options: Any) -> Step:
        """The step of all runs; `options` of `make_step`."""

        def one(setting, state, batch):
            model, optimizer = self.model_and_optimizer(setting)
            loss = gathered(layout, model.loss)
            step = make_step(loss, optimizer, axis_name=layout.axis_name, **options)
            return step(state, batch._replace(x=batch.x[:, setting.data]))

        return over_runs(one, jax.tree.map(jnp.asarray, self.settings))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches whose x is [n, b, seeds, *d]: each seed walks through the data in its own order."""
        orders = [train_batches(split, seed=seed, **options) for seed in self.seeds]
        for batches in zip(*orders, strict=True):
            yield batches[0]._replace(x=np.stack([batch.x for batch in batches], 2))

    def trained(self, state: TrainState, workdir: Path, layout: Layout) -> dict[str, Trained]:
        """Each run with its part of the state that training ended in."""
        found = {}
        for i, (name, config) in enumerate(self.members.items()):
            own = jax.tree.map(itemgetter(i), state)
            model = build_model(config["model"], self.statistics)
            found[name] = Trained(config, model, self.statistics, own, workdir, layout)
        return found
