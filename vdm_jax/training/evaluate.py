"""One exact pass over a split, in which an estimator is computed for each example once."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from vdm_jax.models.likelihood import ModelEstimator
from vdm_jax.models.model import Measure
from vdm_jax.runtime.console import STDERR
from vdm_jax.runtime.interrupt import Interrupted, check, defer_signals, is_command
from vdm_jax.runtime.processes import STALL_SECONDS, Watchdog, is_first
from vdm_jax.training.evaluation import Evaluation, summarize
from vdm_jax.training.layout import Layout, jit_replicated
from vdm_jax.training.progress import Columns
from vdm_jax.typing import Array, Batch, Key, Params, as_batch

Evaluator = Callable[..., dict[str, Array]]
"""(params, key, batch, fitted=None) -> arrays [B] of each example: "index", and in nats the terms of the bound,
or "bound" for one without terms, and "discretization"."""

SAVE_SECONDS = 10.0
"""Seconds between two saves of an unfinished evaluation."""

BAR_SECONDS = 10.0
"""Seconds after which a progress bar appears."""


def make_evaluator(estimator: ModelEstimator, *, layout: Layout | None = None) -> Evaluator:
    """Return the jitted function that estimates the negative log-likelihood of a batch.

    Its output "index" holds the indices of the examples, because devices may hold them in another order.

    Args:
      estimator: of the model to evaluate.
      layout: of the parameters and the batches; the outputs are replicated.
    """

    def estimate(
        params: Params, key: Key, batch: Batch | ArrayLike, fitted: Array | None = None
    ) -> dict[str, Array]:
        result = estimator.estimate(params, key, batch, fitted)
        columns = {"bound": -result.log_prob} if result.terms is None else result.terms._asdict()
        if result.discretization is not None:
            columns["discretization"] = result.discretization
        return {"index": as_batch(batch).index} | columns

    return jax.jit(estimate) if layout is None else jit_replicated(layout, estimate)


def fit(
    measure: Measure,
    params: Params,
    key: Key,
    batches: Iterable[tuple[Batch, np.ndarray]],
    *,
    layout: Layout,
) -> Array:
    """Return the mean of a measurement over training examples, float32 [n].

    Args:
      measure: the measurement of an estimator or of a sampler.
      params: the parameters that are evaluated.
      key: each example folds its index into it.
      batches: (batch, mask) pairs.
      layout: of the parameters and the batches.

    Raises:
      Interrupted: a signal arrived; raised between two batches.
    """

    def measure_with_index(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        return batch.index, measure(params, key, batch)

    compiled = jit_replicated(layout, measure_with_index)
    rows = []
    with (
        defer_signals(),
        Watchdog(STALL_SECONDS, command=is_command()) as watchdog,
    ):
        for batch, mask in batches:
            check()
            with watchdog.wait("evaluation"):
                index, values = map(np.asarray, compiled(params, key, batch))
            rows.append(values.astype(np.float64)[np.argsort(index)][mask])
    return jnp.asarray(np.concatenate(rows).mean(0), jnp.float32)


def evaluate(
    evaluator: Evaluator,
    params: Params,
    key: Key,
    batches: Iterable[tuple[Batch, np.ndarray]],
    *,
    dim: int,
    estimator: str,
    data: str,
    step: int,
    fitted: Array | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    calls: int | None = None,
    finished: Columns | None = None,
    save: Callable[[Columns], None] | None = None,
    examples: int | None = None,
) -> Evaluation:
    """Average the bound over batches with their masks (False where a batch is padded).

    Args:
      evaluator: made by `make_evaluator`.
      params: usually the EMA weights.
      key: each example folds its index into it, so that the result does not depend on the batch size.
      batches: (batch, mask) pairs that hold each example once, without those that are finished.
      dim: number of dimensions of an example.
      estimator, data, step, settings, calls: fields of the report.
      fitted: the result of `fit`.
      finished: values of the examples before the first batch.
      save: called with the values of the finished examples every `SAVE_SECONDS`, when a signal arrives, and at
        the end of an evaluation that took longer.
      examples: total number of examples, for the progress bar, which appears after `BAR_SECONDS`.

    Raises:
      Interrupted: a signal arrived; raised between two batches.
    """
    columns = {name: [column] for name, column in (finished or {}).items()}
    start = saved = time.monotonic()
    with (
        defer_signals(),  # all processes end after the same batch
        Watchdog(STALL_SECONDS, command=is_command()) as watchdog,
        _progress_bar(columns, examples) as bar,
    ):
        for batch, mask in batches:
            try:
                check()
            except Interrupted:
                if save is not None:
                    save(joined(columns))
                raise
            with watchdog.wait("evaluation"):
                outputs = evaluator(params, key, batch, fitted)
                values = {name: np.asarray(output) for name, output in outputs.items()}
            # the mask is in the order of the indices
            order = np.argsort(values.pop("index", np.arange(len(mask))))
            for name, value in values.items():
                columns.setdefault(name, []).append(value.astype(np.float64)[order][mask])
            bar.update(int(mask.sum()))
            if save is not None and time.monotonic() - saved > SAVE_SECONDS:
                save(joined(columns))
                saved = time.monotonic()
    if save is not None and time.monotonic() - start > SAVE_SECONDS:
        save(joined(columns))
    about = {"estimator": estimator, "data": data, "step": step}
    return summarize(joined(columns), dim, settings=dict(settings), calls=calls, **about)


def _progress_bar(columns: Mapping[str, list[np.ndarray]], examples: int | None) -> Any:
    """Return the progress bar of an evaluation that continues from the given values."""
    return tqdm(
        total=examples,
        initial=len(next(iter(columns.values()))[0]) if columns else 0,
        desc="evaluate",
        unit="example",
        leave=False,
        file=STDERR,
        delay=BAR_SECONDS,
        disable=examples is None or not is_first(),
    )


def joined(columns: Mapping[str, list[np.ndarray]]) -> Columns:
    """Return the values of all batches, one array a column."""
    return {name: np.concatenate(parts) for name, parts in columns.items()}
