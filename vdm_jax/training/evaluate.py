"""One exact pass over a split: bits per dimension with its terms and its standard error."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from vdm_jax.elbo import Elbo
from vdm_jax.models.likelihood import ModelEstimator
from vdm_jax.models.model import BatchLike
from vdm_jax.runtime.console import STDERR
from vdm_jax.runtime.interrupt import Interrupted, check, defer_signals, is_command
from vdm_jax.runtime.processes import STALL_SECONDS, Watchdog, is_first
from vdm_jax.training.layout import Layout, jit_replicated
from vdm_jax.training.progress import Columns
from vdm_jax.typing import Array, Batch, Key, Params, as_batch

Evaluator = Callable[..., dict[str, Array]]
"""(params, key, batch, fitted=None) -> arrays [B] of each example: "index", and in nats the terms of the bound,
or "bound" for one without terms, and "discretization"."""


class Evaluation(NamedTuple):
    """A bound in bits per dimension, with the model, data and estimator that it belongs to.

    Attributes:
      bits_per_dim: mean over the split of the negative log-likelihood, or of an upper bound on it.
      standard_error: of that mean, over the examples (their Monte Carlo noise included).
      reconstruction, matching, prior: its terms, which add up to it; None for a bound without terms.
      examples: number of examples, each read once.
      estimator: description of the estimator of −ELBO.
      data: data set, version and split.
      step: training steps of the weights.
      settings: of the estimator: its name, T, M, draws and others.
      calls: number of calls of the network for one example; None if the model does not count them.
      discretization: `bits_per_dim` minus its value on a grid of half as many steps; None without that check.
    """

    bits_per_dim: float
    standard_error: float
    reconstruction: float | None
    matching: float | None
    prior: float | None
    examples: int
    estimator: str
    data: str
    step: int
    settings: Mapping[str, Any] = MappingProxyType({})
    calls: int | None = None
    discretization: float | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Evaluation":
        """Read an evaluation from JSON, where non-finite numbers are null.

        Raises:
          TypeError, ValueError: the fields are not those of an evaluation.
        """
        evaluation = cls(**fields)
        for name in ("bits_per_dim", "standard_error"):
            value = getattr(evaluation, name)
            evaluation = evaluation._replace(**{name: math.nan if value is None else float(value)})
        for name in PARTS:  # null also stands for a bound without terms, and stays None
            if (value := getattr(evaluation, name)) is not None:
                evaluation = evaluation._replace(**{name: float(value)})
        return evaluation

    def __str__(self) -> str:
        values = {name: getattr(self, name) for name in PARTS}
        terms = [f"{name} {value:.4f}" for name, value in values.items() if value is not None]
        grid = ""
        if self.discretization is not None:
            grid = f", discretization error about {abs(self.discretization):.4f}"
        return (
            f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} bits/dim"
            f"{' = ' if terms else ''}{' + '.join(terms)}{grid}\n"
            f"  {self.estimator}; {self.data}, {self.examples} examples; EMA weights of step {self.step}"
        )


PARTS = Elbo._fields
"""Terms of the negative ELBO."""

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
    measure: Callable[[Params, Key, BatchLike], Array],
    params: Params,
    key: Key,
    batches: Iterable[tuple[Batch, np.ndarray]],
    *,
    layout: Layout,
) -> Array:
    """Return what an estimator measures on training examples: its mean over them, float32 [n].

    Args:
      measure: the `fit` of the estimator.
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


def summarize(nats: Columns, dim: int, **fields: Any) -> Evaluation:
    """Return the means of the values of all examples, in bits per dimension."""
    bits = {name: column / (dim * math.log(2)) for name, column in nats.items()}
    discretization = bits.pop("discretization", None)
    total = sum(bits.values(), np.zeros(()))  # [examples]
    error = total.std(ddof=1) / math.sqrt(len(total)) if len(total) > 1 else math.nan
    terms = {name: float(bits[name].mean()) if name in bits else None for name in PARTS}
    return Evaluation(
        bits_per_dim=float(total.mean()),
        standard_error=float(error),
        **terms,
        examples=len(total),
        discretization=None if discretization is None else float(discretization.mean()),
        **fields,
    )
