"""A trained model with its run, for sampling and evaluation."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from vdm_jax.checks import check_key, whole_number
from vdm_jax.data import Dataset, Split, eval_batches, fingerprint
from vdm_jax.data.statistics import sample_places
from vdm_jax.estimators import Estimator
from vdm_jax.models import Model, Statistics
from vdm_jax.models.likelihood import build_estimator
from vdm_jax.models.model import Measure, sample_options
from vdm_jax.models.statistics import digest_of
from vdm_jax.runs.start import load_data, stream
from vdm_jax.runtime.console import STDERR
from vdm_jax.settings import DataSettings, Settings
from vdm_jax.specs import choose, located, nearest, text_of
from vdm_jax.training.dispatch import make_layout
from vdm_jax.training.evaluate import evaluate, fit, make_evaluator
from vdm_jax.training.evaluation import Evaluation
from vdm_jax.training.layout import Layout, jit_replicated, put
from vdm_jax.training.progress import Progress
from vdm_jax.training.state import TrainState, step_of
from vdm_jax.typing import Array, Batch, Key, Spec

UNFINISHED = "evaluation"
"""Folder of the values of evaluations whose report is not written yet."""

SAMPLES_PER_DEVICE = 256
"""Examples drawn at once, by default."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its run.

    Attributes:
      settings: resolved config, with typed sections.
      model: the pure functions of the model.
      statistics: statistics of the training split.
      state: train state; `state.ema_params` are evaluated and sampled from.
      workdir: folder of the run.
      layout: layout of the state on the devices.
      load: loads the data that `settings.data` names.
      check_folder: raises OSError if another process has taken the folder; called before a file is written.
    """

    settings: Settings
    model: Model
    statistics: Statistics
    state: TrainState
    workdir: Path
    layout: Layout = field(default_factory=make_layout)
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)
    load: Callable[[DataSettings], Dataset] = field(default=load_data, repr=False)
    check_folder: Callable[[], None] = field(default=lambda: None, repr=False)
    _measured: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """Resolved config, as plain dictionaries."""
        return self.settings.plain

    @cached_property
    def dataset(self) -> Dataset:
        """Data set, loaded on first use.

        Raises:
          ValueError: other images than those that the run was trained on.
        """
        return self.load(self.settings.data)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Values that determine the results of the weights: their digest, statistics, data, model and seed."""
        return {
            "weights": self.weights_digest,
            "statistics": digest_of(self.statistics),
            "data": fingerprint(self.dataset),
            "model": self.settings.model,
            "seed": self.settings.seed,
        }

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
        known = sample_options(self.model)
        for name in chosen:
            if name not in known:
                hint = nearest(name, [*known, "batch_size"])
                raise ValueError(f"sample: no option {name!r}{hint}")

        def draw(params, key, first, measured):
            return self.model.sample(params, key, size, first=first, **chosen, **measured)

        cache_key = repr(("sample", size, chosen))
        compiled = self._compiled.setdefault(cache_key, jit_replicated(self.layout, draw, size))
        with located("sample", known):
            measure = self.model.fit_sampler(**chosen)
        if measure is not None and cache_key not in self._measured:
            most = self.settings.evaluate.batch_size if batch_size is None else batch_size
            self._measured[cache_key] = self._fit(measure, most)
        measured = {} if measure is None else {"fitted": self._measured[cache_key]}
        chunks, bar = [], tqdm(total=n, disable=size >= n, desc="sample", leave=False, file=STDERR)
        with bar, located("sample", known):
            for first in range(0, n, size):
                # fetched before the next chunk is dispatched, so that the device holds one chunk at a time
                chunk = compiled(self.state.ema_params, key, np.int32(first), measured)
                chunks.append(np.asarray(chunk)[: n - first])  # the last has the full size as well
                bar.update(len(chunks[-1]))
        return jnp.asarray(np.concatenate(chunks))

    def _sample_size(self, n: int, batch_size: int | None) -> int:
        """Return the size of a chunk, a multiple of the number of devices; chunks are nearly equal."""
        most = SAMPLES_PER_DEVICE * self.layout.mesh.size if batch_size is None else batch_size
        chunks = math.ceil(n / whole_number(most, "batch_size", 1))
        return self._divisible(math.ceil(n / chunks))

    def bits_per_dim(self, split: str = "test") -> float:
        """Return the bound on "train" or "test" in bits/dim; `evaluate` has its error and its parts too."""
        return self.evaluate(split).bits_per_dim

    def evaluate(
        self,
        split: str = "test",
        *,
        estimator: Spec | Estimator | None = None,
        draws: int | None = None,
        batch_size: int | None = None,
        resume: bool = False,
    ) -> Evaluation:
        """Evaluate the EMA weights on a split, each example once. Settings are the config's by default.

        Args:
          split: "train" or "test".
          estimator: a name or spec of `ESTIMATORS`, such as {"name": "ode", "steps": 32}, or for a diffusion
            model an `Estimator`. A variance "fitted" is measured on training examples.
          draws: estimates per example, if the estimator averages them.
          batch_size: examples evaluated at once; the result does not depend on it.
          resume: True to save finished batches in the folder, and to continue from those saved there.

        Raises:
          ValueError: another split, a number below 1, a model without that estimator.
        """
        data, settings = self.dataset, self.settings.evaluate
        evaluated = choose({"train": data.train, "test": data.test}, split, "split")
        spec = settings.estimators[0] if estimator is None else estimator
        if draws is not None and (isinstance(spec, Estimator) or "draws" in spec):
            raise ValueError(f"draws: the estimator has its own, expected None, found {draws}")
        draws = whole_number(settings.draws if draws is None else draws, "draws", 1)
        size = whole_number(
            settings.batch_size if batch_size is None else batch_size, "batch_size", 1
        )
        built = build_estimator(self.model, spec, draws)
        text = text_of([spec, draws])
        if resume and text is None:
            raise ValueError("resume: needs an estimator of names and numbers")
        evaluator = make_evaluator(built, layout=self.layout)
        if text is not None:  # compiled once
            evaluator = self._compiled.setdefault(text, evaluator)
        fitted = self._fit(built.fit, size)
        size = self._divisible(min(size, len(evaluated.images)))
        progress, finished = None, {}
        if resume:
            about = {"of": self.identity, "split": split, "batch_size": size, "estimator": text}
            about |= {"fitted": None if fitted is None else np.asarray(fitted).tolist()}
            progress = Progress.of(self.workdir / UNFINISHED, about, self.check_folder)
            finished = progress.load(len(evaluated.images))
        first = len(next(iter(finished.values()))) if finished else 0
        return evaluate(
            evaluator,
            self.state.ema_params,
            stream(self.settings.seed, "evaluate"),
            self._batches(evaluated, size, first),
            dim=int(np.prod(data.shape)),
            estimator=f"{built.description}; {self.model.components}",
            data=f"{data.name} {data.version}, split {evaluated.name}",
            step=step_of(self.state),
            fitted=fitted,
            settings=built.settings,
            calls=built.calls,
            finished=finished,
            save=None if progress is None else progress.save,
            examples=len(evaluated.images),
        )

    def _batches(
        self, split: Split, size: int, first: int = 0
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield the batches of a split from example `first` on, in the layout of the devices."""
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        for batch, mask in eval_batches(split, batch_size=size, first=first, **processes):
            yield put(self.layout, batch), mask

    def _divisible(self, size: int) -> int:
        """Round up to a multiple of the devices, which share a batch; padding is masked."""
        devices = self.layout.mesh.size
        return math.ceil(size / devices) * devices

    def _fit(self, measure: Measure | None, size: int) -> Array | None:
        """Return the mean of a measurement over a sample of the training split; None for no measurement."""
        if measure is None:
            return None
        train, count = self.dataset.train, self.settings.evaluate.fit_examples
        images = train.images[sample_places(len(train.images), count)]
        return fit(
            measure,
            self.state.ema_params,
            stream(self.settings.seed, "fit"),
            self._batches(Split(images, train.name), self._divisible(min(size, len(images)))),
            layout=self.layout,
        )

    def plots(self, x: ArrayLike) -> dict[str, Array]:
        """Return images that the model makes of data [n, *d], by name: [rows, columns, *d], as stored."""
        return {
            name: jit_replicated(self.layout, draw)(self.state.ema_params, x)
            for name, draw in self.model.plots.items()
        }
