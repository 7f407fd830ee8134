"""A trained model and its run: sample from it, evaluate it."""

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vdm_jax.checks import check_key, whole_number
from vdm_jax.data import Dataset, eval_batches, load_dataset
from vdm_jax.models import Model, Statistics
from vdm_jax.runtime.console import STDERR
from vdm_jax.settings import Settings, settings_of
from vdm_jax.specs import choose, located, nearest
from vdm_jax.training.dispatch import make_layout
from vdm_jax.training.evaluate import Evaluation, evaluate, make_evaluator
from vdm_jax.training.layout import Layout, jit_replicated, put
from vdm_jax.training.state import TrainState, init_state, step_of
from vdm_jax.typing import Array, Key

SAMPLES_PER_DEVICE = 256

STREAMS = {"params": 0, "train": 1, "evaluate": 2, "sample": 3}
"""Independent randomness of a run's parts, each folded into its seed."""


def load_data(settings: dict[str, Any]) -> Dataset:
    """Load the data that the section `data` of a config names.

    Raises:
      ValueError, OSError: those of `load_dataset`, about config.data.
    """
    with located("config.data", settings):
        return load_dataset(**settings)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its run.

    Attributes:
      config: resolved, plain dictionaries.
      model: the pure functions.
      statistics: of the training split.
      state: the last one; `state.ema_params` are what is evaluated and sampled from.
      workdir: the run's folder.
      layout: the devices that the state lies on.
      load: loads the data, given the section `data` of the config.
      check_folder: raises OSError if the folder is no longer this run's; called before its files are written.
    """

    config: dict[str, Any]
    model: Model
    statistics: Statistics
    state: TrainState
    workdir: Path
    layout: Layout = field(default_factory=make_layout)
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)
    load: Callable[[dict[str, Any]], Dataset] = field(default=load_data, repr=False)
    check_folder: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def settings(self) -> Settings:
        """The sections of the config, typed."""
        return settings_of(self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The data, loaded when first needed.

        Raises:
          ValueError: the images are not those that the run was trained on.
        """
        return self.load(vars(self.settings.data))

    @cached_property
    def weights(self) -> str:
        """A digest of the EMA weights, 16 hexadecimal digits: which weights a number is of."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.ema_params):
            if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                # other processes hold parts of it
                leaf = jit_replicated(self.layout, lambda array: array)(leaf)
            array = np.asarray(leaf)
            name = jax.tree_util.keystr(path)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def sample(self, key: Key, n: int, *, batch_size: int | None = None, **options: Any) -> Array:
        """Draw n examples [n, *d], as stored (integers for K-level data).

        Args:
          key: randomness; example i depends on the key and i alone.
          n: number of examples.
          batch_size: examples that are drawn at once, which bounds the memory; 256 for each device by default.
            The result does not depend on it.
          **options: sampler, steps; the config's by default.

        Raises:
          ValueError: numbers below 1, an unknown option, a model without samples.
          TypeError: no typed key.
        """
        check_key(key)
        n = whole_number(n, "n", 1)
        chosen = {k: v for k, v in self.settings.sample.items() if k != "count"} | options
        size = self._sample_size(n, batch_size)
        if self.model.unsupported is not None:
            raise ValueError(self.model.unsupported)
        settings = [*inspect.signature(self.model.sample).parameters][3:]
        for name in chosen:
            if name not in settings or name == "first":
                others = [*(s for s in settings if s != "first"), "batch_size"]
                raise ValueError(f"sample: no option {name!r}{nearest(name, others)}")

        def draw(params, key, first):
            return self.model.sample(params, key, size, first=first, **chosen)

        name = repr(("sample", size, chosen))
        compiled = self._compiled.setdefault(name, jit_replicated(self.layout, draw, size))
        parts = []
        bar = tqdm(total=n, disable=size >= n, desc="sample", leave=False, file=STDERR)
        with bar, located("sample", settings):
            for first in range(0, n, size):
                # fetched before the next chunk is dispatched, so that one is held at a time
                part = np.asarray(compiled(self.state.ema_params, key, np.int32(first)))
                parts.append(part[: n - first])
                bar.update(len(parts[-1]))
        return jnp.asarray(np.concatenate(parts))

    def _sample_size(self, n: int, batch_size: int | None) -> int:
        """Examples in a chunk: a multiple of the devices, of nearly equal chunks."""
        devices = self.layout.mesh.size
        most = SAMPLES_PER_DEVICE * devices if batch_size is None else batch_size
        chunks = math.ceil(n / whole_number(most, "batch_size", 1))
        return math.ceil(n / chunks / devices) * devices

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
        data, defaults = self.dataset, vars(self.settings.evaluate)
        images = choose({"train": data.train, "test": data.test}, split, "split")
        asked = {"draws": draws, "batch_size": batch_size, "importance_samples": importance_samples}
        chosen = {k: defaults[k] if value is None else value for k, value in asked.items()}
        for name, value in chosen.items():
            whole_number(value, name, 1)
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
            stream(self.settings.seed, "evaluate"),
            ((put(self.layout, batch), mask) for batch, mask in batches),
            dim=int(np.prod(data.shape)),
            estimator=f"{bound}, {n} draws per example; {self.model.components}",
            data=f"{data.name} {data.version}, split {images.name}",
            step=step_of(self.state),
        )

    def plots(self, x: Any) -> dict[str, Array]:
        """Return the model's own images of data [n, *d], by name: [rows, columns, *d], as stored."""
        return {
            name: jit_replicated(self.layout, draw)(self.state.ema_params, x)
            for name, draw in self.model.plots.items()
        }


def stream(seed: Any, name: str) -> Key:
    """The key of one part of a run."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def fresh(seed: Any, model: Model, optimizer: Any) -> TrainState:
    """Return the state that training starts from."""
    params = model.init(stream(seed, "params"))
    state = model.init_model_state(params)
    return init_state(params, optimizer, stream(seed, "train"), model_state=state)
