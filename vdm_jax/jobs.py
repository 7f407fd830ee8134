"""What a config asks to train: one run, or many of it side by side, of which `AXES` says how they may differ.

Each of several runs is the one that a config of its own would train: those of one seed start from the same
weights and see the same batches, times and noise, and differ in the row of a table that turns the network's
output into x̂_0 or weighs its error (docs/equations.md §4). Rows, rates and keys are arrays, so that one `vmap`
of the one step trains all of them, compiled once.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import HEADS
from vdm_jax.data import Dataset, Split, train_batches
from vdm_jax.models import Model, Statistics, build_model, completed
from vdm_jax.nets.own import by_row, is_by_row
from vdm_jax.parameterizations import PARAMETERIZATIONS, selected, stacked
from vdm_jax.specs import build
from vdm_jax.trained import Trained, fresh
from vdm_jax.training.layout import Layout, gathered
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.parallel import over_runs
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Step, make_step
from vdm_jax.typing import Batch
from vdm_jax.weightings import WEIGHTINGS


class Axis(NamedTuple):
    """One way in which runs may differ.

    Attributes:
      section, field: what it sets in a config.
      word: how a value is named.
      table, select: of the values, and what makes one of several built ones by an index that may be traced.
    """

    section: str
    field: str | None
    word: str = "{}"
    table: dict[str, Any] | None = None
    select: Callable[[list[Any], Any], Any] = selected


AXES = {
    "parameterizations": Axis("model", "parameterization", table=PARAMETERIZATIONS, select=stacked),
    "heads": Axis("model", "head", table=HEADS),
    "weightings": Axis("model", "weighting", table=WEIGHTINGS),
    "learning_rates": Axis("optimizer", "learning_rate", "lr{}"),
    "seeds": Axis("seed", None, "seed{}"),
}
"""Of `config.runs`; the seeds are last, so that the runs of one variant are neighbours."""

CHOICES = [name for name, axis in AXES.items() if axis.table is not None]


class Setting(NamedTuple):
    """What distinguishes the variants, as arrays [V]: the place of each choice in its list, and the rate."""

    choices: dict[str, Any]
    learning_rate: Any


def expand(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs of the single runs, by name; one without a name if `config.runs` asks for none.

    Raises:
      ValueError: a value twice, or parameterizations of a model that has none.
    """
    asked = _asked(config)
    for axis, values in asked.items():
        if len({*map(str, values)}) < len(values):
            raise ValueError(f"config.runs.{axis}: expected each value once, found {values}")
    known = completed(config["model"])
    for name in CHOICES:
        if asked[name] and AXES[name].field not in known:
            raise ValueError(
                f"config.runs.{name}: {config['model']['name']!r} has no {AXES[name].field}"
            )
    members = {}
    for values in product(*(asked[name] or [None] for name in AXES)):
        single, words = config | {"runs": {name: [] for name in AXES}}, []
        for axis, value in zip(AXES.values(), values, strict=True):
            if value is not None:
                section = single[axis.section]
                single[axis.section] = (
                    value if axis.field is None else section | {axis.field: value}
                )
                words.append(axis.word.format(value))
        members["_".join(words)] = single
    return members


def is_many(config: dict[str, Any]) -> bool:
    """Whether a config asks for runs side by side."""
    return any(config["runs"].values())


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    """The values of every axis; of those that a config does not have, none."""
    return dict.fromkeys(AXES, ()) | config["runs"]


def _told(config: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What a step has to know of its layout and its optimizer."""
    return {"axis_name": layout.axis_name, "ema_every": config["optimizer"]["accumulate"]}


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
        self.optimizer, _ = make_optimizer(**config["optimizer"], where="config.optimizer")
        self.compiled: dict[Any, Any] = {}  # for whatever state is evaluated

    def start(self) -> TrainState:
        """The state that training starts from."""
        return fresh(self.config["seed"], self.model, self.optimizer)

    def step(self, layout: Layout, **options: Any) -> Step:
        """The step; `options` of `make_step`."""
        loss = gathered(layout, self.model.loss)
        return make_step(loss, self.optimizer, **_told(self.config, layout), **options)

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches of the split; `options` of `train_batches`."""
        return train_batches(split, seed=self.config["seed"], **options)

    def trained(
        self, state: TrainState, workdir: Path, layout: Layout, loaded: Dataset | None = None
    ) -> Trained:
        """The run with the state that training ended in, and its data if they are loaded already."""
        parts = self.model, self.statistics, state, workdir, layout, self.compiled
        return Trained(self.config, *parts, _loaded=loaded)


class Many:
    """The runs of a config that asks for several, as one state [R, ...] and one step.

    Args:
      config: as `to_dict` returns it; its model may hold built objects, and as `network` one for each
        parameterization.
      statistics: of the training split.
      own: by axis, rows that its table does not have.

    Attributes:
      names: of the runs, in the order of the state's leading axis.
      settings: of the variants [V], which is the runs without their seeds.
      seeds: of each variant.
    """

    def __init__(
        self,
        config: dict[str, Any],
        statistics: Statistics,
        own: Mapping[str, Mapping[str, Callable[[], Any]]] | None = None,
    ):
        if not is_many(config):
            raise ValueError(
                "config.runs: asks for one run, expected some values to run side by side"
            )
        config = config | {"runs": _asked(config)}
        self.members = expand(config)
        singles = list(self.members.values())
        self.config, self.statistics, self.names = config, statistics, tuple(self.members)
        self.tables = {
            name: (AXES[name].table or {}) | dict((own or {}).get(name, {})) for name in CHOICES
        }
        self.shared: dict[str, tuple[Model, dict[Any, Any]]] = {}  # and what is compiled, by config
        self.seeds = list(dict.fromkeys(single["seed"] for single in singles))
        variants = singles[:: len(self.seeds)]
        self.settings = Setting(
            choices={
                name: np.asarray(
                    [config["runs"][name].index(v["model"][AXES[name].field]) for v in variants],
                    np.int32,
                )
                for name in CHOICES
                if config["runs"][name]
            },
            learning_rate=np.asarray(
                [v["optimizer"]["learning_rate"] for v in variants], np.float32
            ),
        )

    @property
    def variants(self) -> list[Setting]:
        """The setting of each, as numbers."""
        count = len(self.names) // len(self.seeds)
        return [jax.tree.map(lambda leaf, i=i: leaf[i].item(), self.settings) for i in range(count)]

    def model_of(self, setting: Setting) -> Model:
        """Of one variant, whose setting may be traced."""
        spec = dict(self.config["model"])
        for name, index in setting.choices.items():
            axis, values = AXES[name], self.config["runs"][name]
            built = [build(self.tables[name], value, f"config.runs.{name}") for value in values]
            # of one there is nothing to choose: it is the same program as that of a single run
            spec[axis.field] = built[0] if len(built) == 1 else axis.select(built, index)
        if is_by_row(spec.get("network")):
            networks = [spec["network"][name] for name in self.config["runs"]["parameterizations"]]
            spec["network"] = by_row(networks, setting.choices["parameterizations"])
        return build_model(spec, self.statistics)

    def optimizer_of(self, setting: Setting) -> Any:
        """Of one variant, whose setting may be traced."""
        settings = self.config["optimizer"] | {"learning_rate": setting.learning_rate}
        return make_optimizer(**settings, where="config.optimizer")[0]

    def start(self) -> TrainState:
        """The state [R, ...] that training starts from."""

        def one(setting, seed):
            return fresh(seed, self.model_of(setting), self.optimizer_of(setting))

        seeds = jnp.asarray(self.seeds, jnp.uint32)
        found = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(self.settings, seeds)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def step(self, layout: Layout, **options: Any) -> Step:
        """The step of all runs; `options` of `make_step`."""
        told = _told(self.config, layout)

        def one(setting, state, batch):
            loss = gathered(layout, self.model_of(setting).loss)
            optimizer = self.optimizer_of(setting)
            return make_step(loss, optimizer, **told, **options)(state, batch)

        return over_runs(one, self.settings, len(self.seeds))

    def batches(self, split: Split, **options: Any) -> Iterator[Batch]:
        """Batches whose x is [n, b, seeds, *d]: each seed walks through the data in its own order."""
        orders = [train_batches(split, seed=seed, **options) for seed in self.seeds]
        for batches in zip(*orders, strict=True):
            yield batches[0]._replace(x=np.stack([batch.x for batch in batches], 2))

    def trained(
        self, state: TrainState, workdir: Path, layout: Layout, loaded: Dataset | None = None
    ) -> dict[str, Trained]:
        """Each run with its part of the state that training ended in, and the data if loaded already."""
        found, shared = {}, self.shared
        for i, (name, config) in enumerate(self.members.items()):
            own, spec = jax.tree.map(itemgetter(i), state), repr(config["model"])
            if spec not in shared:  # by seeds and rates, with what is compiled for them
                shared[spec] = build_model(config["model"], self.statistics), {}
            model, compiled = shared[spec]
            parts = model, self.statistics, own, workdir, layout, compiled
            found[name] = Trained(config, *parts, _loaded=loaded)
        return found
