"""A trained run, brought back from its folder, which holds all of it.

config.json        the resolved config
statistics.npz     what the model knows of the training split
checkpoints/       states, by step
metrics.jsonl      training metrics, also in tensorboard/
evaluation.json    the last evaluation, written when the pictures are
samples.png  loss.png, and the model's own pictures
"""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.data import Dataset, eval_batches, fingerprint, load_dataset
from vdm_jax.models import Model, Statistics
from vdm_jax.specs import choose
from vdm_jax.training.evaluate import Evaluation, evaluate, make_evaluator
from vdm_jax.training.layout import Layout, put, whole
from vdm_jax.training.parallel import make_layout
from vdm_jax.training.state import TrainState, init_state, step_of
from vdm_jax.typing import Array, Key

STREAMS = {"params": 0, "train": 1, "evaluate": 2, "sample": 3}
"""Independent randomness of a run's parts, each folded into its seed."""


@dataclass(frozen=True)
class Trained:
    """A trained model and its run.

    Attributes:
      config: resolved, plain dictionaries.
      model: the pure functions.
      statistics: of the training split.
      state: the last one; `state.ema_params` are what is evaluated and sampled from.
      workdir: the run's folder.
      layout: the devices that the state lies on.
    """

    config: dict[str, Any]
    model: Model
    statistics: Statistics
    state: TrainState
    workdir: Path
    layout: Layout = field(default_factory=make_layout)
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)
    _loaded: Dataset | None = field(default=None, repr=False)

    @cached_property
    def dataset(self) -> Dataset:
        """The data, loaded when first needed."""
        return load_dataset(**self.config["data"]) if self._loaded is None else self._loaded

    def sample(self, key: Key, n: int, **options: Any) -> Array:
        """Draw n examples [n, *d], as stored (integers for K-level data).

        Args:
          key: randomness.
          n: how many.
          **options: sampler, steps; the config's by default.
        """
        chosen = {k: v for k, v in self.config["sample"].items() if k != "count"} | options

        def draw(params, key):
            return self.model.sample(params, key, n, **chosen)

        compiled = self._compiled.setdefault(repr((n, chosen)), whole(self.layout, draw, n))
        return compiled(self.state.ema_params, key)

    def bits_per_dim(self, split: str = "test") -> float:
        """The bound of "train" or "test" in bits per dimension; `evaluate` has the error and the parts."""
        return self.evaluate(split).bits_per_dim

    def evaluate(
        self,
        split: str = "test",
        *,
        draws: int | None = None,
        batch_size: int | None = None,
        importance_samples: int | None = None,
    ) -> Evaluation:
        """Evaluate the EMA weights on a whole split, each example once; what is None is as the config says.

        Args:
          split: "train" or "test".
          draws: estimates per example.
          batch_size: the result does not depend on it.
          importance_samples: K. 1 is the ELBO; more are the importance-weighted bound, if the model has one.

        Raises:
          ValueError: another split, a number below 1, a model without that bound.
        """
        data, settings = self.dataset, self.config["evaluate"]
        images = choose({"train": data.train, "test": data.test}, split, "split")
        asked = {"draws": draws, "batch_size": batch_size, "importance_samples": importance_samples}
        chosen = {k: settings[k] if value is None else value for k, value in asked.items()}
        for name, value in chosen.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        n, k = chosen["draws"], chosen["importance_samples"]
        if (n, k) not in self._compiled:
            self._compiled[n, k] = make_evaluator(self.model, n, k, layout=self.layout)
        bound = self.model.bound
        if k > 1:
            bound = f"importance-weighted bound of {k} samples, of the {bound}"
        devices = self.layout.mesh.size
        size = math.ceil(min(chosen["batch_size"], len(images.images)) / devices) * devices
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        batches = eval_batches(images, batch_size=size, **processes)
        return evaluate(
            self._compiled[n, k],
            self.state.ema_params,
            stream(self.config["seed"], "evaluate"),
            ((put(self.layout, batch), mask) for batch, mask in batches),
            dim=int(np.prod(data.shape)),
            estimator=f"{bound}, {n} draws per example; {self.model.components}",
            data=f"{data.name} {data.version}, split {images.name}",
            step=step_of(self.state),
        )

    def pictures(self, x: Any) -> dict[str, Array]:
        """What else the model shows of data [n, *d], by name: images as stored [rows, columns, *d]."""
        return {
            name: whole(self.layout, draw)(self.state.ema_params, x)
            for name, draw in self.model.pictures.items()
        }


def about_data(dataset: Dataset, counts: np.ndarray) -> dict[str, Any]:
    """What a checkpoint says of its data; `counts` are of `level_counts` on the training split."""
    return {
        "name": dataset.name,
        "version": dataset.version,
        "split": dataset.train.name,
        "examples": len(dataset.train.images),
        "fingerprint": fingerprint(dataset, counts),
    }


def check_data(about: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Refuse to go on from a checkpoint, of which `about` tells, on other images.

    Raises:
      ValueError: with both fingerprints.
    """
    expected, found = about["data"]["fingerprint"], here["fingerprint"]
    if found != expected:
        raise ValueError(
            f"config.data: {here['name']!r} has other images than those that {folder} was trained on: "
            f"fingerprint {found}, expected {expected}"
        )


def stream(seed: Any, name: str) -> Key:
    """The key of one part of a run."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def fresh(seed: Any, model: Model, optimizer: Any) -> TrainState:
    """The state that training starts from."""
    return init_state(model.init(stream(seed, "params")), optimizer, stream(seed, "train"))


def read_json(path: Path) -> Any:
    """Read a file of a run.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all, for a run may be killed at any time."""
    whole = path.with_suffix(".json.new")
    whole.write_text(json.dumps(value, indent=2) + "\n")
    whole.replace(path)
