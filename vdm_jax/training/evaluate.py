"""One exact pass over a split: bits per dimension with its terms and its standard error."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax.checks import whole_number
from vdm_jax.elbo import Elbo
from vdm_jax.models import Model
from vdm_jax.runtime.interrupt import check, defer_signals, is_command
from vdm_jax.runtime.processes import STALL_SECONDS, Watchdog
from vdm_jax.training.layout import Layout, jit_replicated
from vdm_jax.typing import Array, Batch, Key, Params, as_batch

Evaluator = Callable[[Params, Key, Batch | ArrayLike], dict[str, Array]]
"""(params, key, batch) -> the bound of each example: its terms in nats, arrays [B], and "index" [B]."""


class Evaluation(NamedTuple):
    """A bound in bits per dimension, with the model, data and estimator that it belongs to.

    Attributes:
      bits_per_dim: mean of −ELBO over the split, an upper bound on the negative log-likelihood.
      standard_error: of that mean, over the examples (their Monte Carlo noise included).
      reconstruction, matching, prior: its terms, which add up to it; None for a bound without terms.
      examples: number of examples, each read once.
      estimator: description of the estimator of −ELBO.
      data: data set, version and split.
      step: training steps of the weights.
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
        return (
            f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} bits/dim"
            f"{' = ' if terms else ''}{' + '.join(terms)}\n"
            f"  {self.estimator}; {self.data}, {self.examples} examples; EMA weights of step {self.step}"
        )


PARTS = Elbo._fields
"""Terms of the negative ELBO."""


def make_evaluator(
    model: Model, draws: int, importance_samples: int = 1, *, layout: Layout | None = None
) -> Evaluator:
    """Return the jitted function that estimates a model's bound on a batch.

    Its output "index" holds the indices of the examples, because devices may hold them in another order.

    Args:
      model: the model to evaluate.
      draws: number of estimates averaged for each example.
      importance_samples: K. 1 is the ELBO, with the terms of `Elbo`; K > 1 is the importance-weighted bound
        (Burda et al. 2015), which has no terms.
      layout: of the parameters and the batches; the outputs are replicated.

    Raises:
      ValueError: the model does not have that bound.
    """
    if model.unsupported is not None:
        raise ValueError(f"{model.components}: {model.unsupported}")
    whole_number(draws, "draws", 1)
    whole_number(importance_samples, "importance_samples", 1)

    jit = jax.jit if layout is None else partial(jit_replicated, layout)
    if importance_samples == 1:

        def estimate_elbo(params: Params, key: Key, batch: Batch | ArrayLike) -> dict[str, Array]:
            elbo = model.elbo(params, key, batch, draws=draws)
            return {"index": as_batch(batch).index} | elbo._asdict()

        return jit(estimate_elbo)

    importance = model.importance
    if importance is None:
        raise ValueError(
            f"importance_samples: {model.name!r} has no importance-weighted "
            f"bound, expected 1, found {importance_samples}"
        )

    def estimate_importance_bound(
        params: Params, key: Key, batch: Batch | ArrayLike
    ) -> dict[str, Array]:
        def draw(i: Array) -> Array:
            return importance(params, jax.random.fold_in(key, i), batch, importance_samples)

        # sequential, so that the memory does not grow with the number of draws
        bound = jnp.mean(jax.lax.map(draw, jnp.arange(draws)), 0)
        return {"index": as_batch(batch).index, "bound": bound}

    return jit(estimate_importance_bound)


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
) -> Evaluation:
    """Average the bound over batches with their masks (False where a batch is padded).

    Args:
      evaluator: made by `make_evaluator`.
      params: usually the EMA weights.
      key: each example folds its index into it, so that the result does not depend on the batch size.
      batches: (batch, mask) pairs that hold each example once.
      dim: number of dimensions of an example.
      estimator, data, step: fields of the report.

    Raises:
      Interrupted: a signal arrived; raised between two batches.
    """
    columns: dict[str, list[np.ndarray]] = {}
    with (
        defer_signals(),  # all processes end after the same batch
        Watchdog(STALL_SECONDS, command=is_command()) as watchdog,
    ):
        for batch, mask in batches:
            check()
            with watchdog.wait("evaluation"):
                outputs = evaluator(params, key, batch)
                values = {name: np.asarray(output) for name, output in outputs.items()}
            # the mask is in the order of the indices
            order = np.argsort(values.pop("index", np.arange(len(mask))))
            for name, value in values.items():
                columns.setdefault(name, []).append(value.astype(np.float64)[order][mask])
    nats_per_bit = math.log(2)
    bits = {name: np.concatenate(column) / (dim * nats_per_bit) for name, column in columns.items()}
    total = sum(bits.values(), np.zeros(()))  # [examples]
    error = total.std(ddof=1) / math.sqrt(len(total)) if len(total) > 1 else math.nan
    terms = {name: float(bits[name].mean()) if name in bits else None for name in PARTS}
    return Evaluation(
        bits_per_dim=float(total.mean()),
        standard_error=float(error),
        **terms,
        examples=len(total),
        estimator=estimator,
        data=data,
        step=step,
    )
