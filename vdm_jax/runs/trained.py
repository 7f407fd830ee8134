"""A trained model with its run, for sampling and evaluation."""

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
import optax
from jax.typing import ArrayLike
from tqdm import tqdm

from vdm_jax.checks import check_key, whole_number
from vdm_jax.data import Dataset, eval_batches, load_dataset
from vdm_jax.models import Model, Statistics
from vdm_jax.runtime.console import STDERR
from vdm_jax.schedules import Schedule
from vdm_jax.settings import Settings, settings_of
from vdm_jax.specs import choose, located, nearest
from vdm_jax.training.dispatch import make_layout
from vdm_jax.training.evaluate import Evaluation, evaluate, make_evaluator
from vdm_jax.training.layout import Layout, jit_replicated, put
from vdm_jax.training.state import TrainState, init_state, step_of
from vdm_jax.typing import Array, Key, Params

SAMPLES_PER_DEVICE = 256
"""Examples drawn at once, by default."""

STREAMS = {"params": 0, "train": 1, "evaluate": 2, "sample": 3}
"""Numbers folded into the seed of a run, for independent randomness of its parts."""


def load_data(settings: dict[str, Any]) -> Dataset:
    """Load the data that the section `data` of a config names.

    Raises:
      ValueError, OSError: those of `load_dataset`, with the path config.data.
    """
    with located("config.data", settings):
        return load_dataset(**settings)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its run.

    Attributes:
      config: resolved config, plain dictionaries.
      model: the pure functions of the model.
      statistics: statistics of the training split.
      state: train state; `state.ema_params` are evaluated and sampled from.
      workdir: folder of the run.
      layout: layout of the state on the devices.
      load: loads the data of the section `data` of the config.
      check_folder: raises OSError if another process has taken the folder; called before a file is written.
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
        """Sections of the config, typed."""
        return settings_of(self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """Data set, loaded on first use.

        Raises:
          ValueError: other images than those that the run was trained on.
        """
        return self.load(vars(self.settings.data))

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the EMA weights, 16 hexadecimal digits, which identifies the weights of a result."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.ema_params):
            if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                # parts are on devices of other processes: gather them
                leaf = jit_replicated(self.layout, lambda array: array)(leaf)
            array = np.asarray(leaf)
            name = jax.tree_util.keystr(path)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def sample(self, key: Key, n: int, *, batch_size: int | None = None, **options: Any) -> Array:
        """Draw n examples [n, *d], as stored (integers for K-level data).

        Args:
          key: source of randomness; example i depends on the key and on i alone.
          n: number of examples.
          batch_size: examples that are drawn at once, which bounds the memory; 256 for each device by default.
            The result does not depend on it.
          **options: options of the model's `sample`, such as sampler and steps; the config's by default.

        Raises:
          ValueError: numbers below 1, an unknown option, a model that cannot be sampled.
          TypeError: a key that is not a typed key.
        """
        check_key(key)
        n = whole_number(n, "n", 1)
        chosen = {k: v for k, v in self.settings.sample.items() if k != "count"} | options
        size = self._sample_size(n, batch_size)
        if self.model.unsupported is not None:
            raise ValueError(self.model.unsupported)
        settings = [*inspect.signature(self.model.sample).parameters][3:]  # after params, key, n
        for name in chosen:
            if name not in settings or name == "first":
                others = [*(s for s in settings if s != "first"), "batch_size"]
                raise ValueError(f"sample: no option {name!r}{nearest(name, others)}")

        def draw(params, key, first):
            return self.model.sample(params, key, size, first=first, **chosen)

        cache_key = repr(("sample", size, chosen))
        compiled = self._compiled.setdefault(cache_key, jit_replicated(self.layout, draw, size))
        chunks = []
        bar = tqdm(total=n, disable=size >= n, desc="sample", leave=False, file=STDERR)
        with bar, located("sample", settings):
            for first in range(0, n, size):
                # fetched before the next chunk is dispatched, so that the device holds one chunk at a time
                chunk = np.asarray(compiled(self.state.ema_params, key, np.int32(first)))
                chunks.append(chunk[: n - first])  # the last chunk has the full size as well
                bar.update(len(chunks[-1]))
        return jnp.asarray(np.concatenate(chunks))

    def _sample_size(self, n: int, batch_size: int | None) -> int:
        """Return the size of a chunk, a multiple of the number of devices; chunks are nearly equal."""
        devices = self.layout.mesh.size
        most = SAMPLES_PER_DEVICE * devices if batch_size is None else batch_size
        chunks = math.ceil(n / whole_number(most, "batch_size", 1))
        return math.ceil(n / chunks / devices) * devices

    def bits_per_dim(self, split: str = "test") -> float:
        """Return the bound on "train" or "test" in bits/dim; `evaluate` has its error and its parts too."""
        return self.evaluate(split).bits_per_dim

    def evaluate(
        self,
        split: str = "test",
        *,
        draws: int | None = None,
        batch_size: int | None = None,
        importance_samples: int | None = None,
    ) -> Evaluation:
        """Evaluate the EMA weights on a split, each example once. Settings are the config's by default.

        Args:
          split: "train" or "test".
          draws: estimates per example.
          batch_size: examples evaluated at once; the result does not depend on it.
          importance_samples: K. 1 is the ELBO; more are the importance-weighted bound, if the model has one.

        Raises:
          ValueError: another split, a number below 1, a model without that bound.
        """
        data, defaults = self.dataset, vars(self.settings.evaluate)
        evaluated = choose({"train": data.train, "test": data.test}, split, "split")
        options = {
            "draws": draws,
            "batch_size": batch_size,
            "importance_samples": importance_samples,
        }
        chosen = {k: defaults[k] if value is None else value for k, value in options.items()}
        for name, value in chosen.items():
            whole_number(value, name, 1)
        n, k = chosen["draws"], chosen["importance_samples"]
        if (n, k) not in self._compiled:
            self._compiled[n, k] = make_evaluator(self.model, n, k, layout=self.layout)
        bound = self.model.bound
        if k > 1:
            bound = f"importance-weighted bound of {k} samples, of the {bound}"
        devices = self.layout.mesh.size
        # rounded up to a multiple of the devices, which share a batch; padding is masked
        size = math.ceil(min(chosen["batch_size"], len(evaluated.images)) / devices) * devices
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        batches = eval_batches(evaluated, batch_size=size, **processes)
        return evaluate(
            self._compiled[n, k],
            self.state.ema_params,
            stream(self.settings.seed, "evaluate"),
            ((put(self.layout, batch), mask) for batch, mask in batches),
            dim=int(np.prod(data.shape)),
            estimator=f"{bound}, {n} draws per example; {self.model.components}",
            data=f"{data.name} {data.version}, split {evaluated.name}",
            step=step_of(self.state),
        )

    def plots(self, x: ArrayLike) -> dict[str, Array]:
        """Return images that the model makes of data [n, *d], by name: [rows, columns, *d], as stored."""
        return {
            name: jit_replicated(self.layout, draw)(self.state.ema_params, x)
            for name, draw in self.model.plots.items()
        }


def stream(seed: int | Array, name: str) -> Key:
    """Return the key of one of the `STREAMS` of a run; the seed may be traced."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def initial_schedule_params(seed: int, schedule: Schedule) -> Params:
    """Return the params of the schedule of a diffusion model in the state that training starts from."""
    _, key = jax.random.split(stream(seed, "params"))
    return schedule.init(key)


def fresh(seed: int | Array, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state that training starts from; the seed may be traced."""
    params = model.init(stream(seed, "params"))
    state = model.init_model_state(params)
    return init_state(params, optimizer, stream(seed, "train"), model_state=state)
