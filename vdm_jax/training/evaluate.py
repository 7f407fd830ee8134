"""One exact pass over a split: bits per dimension with its parts and its standard error."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import whole_number
from vdm_jax.elbo import Elbo
from vdm_jax.models import Model
from vdm_jax.runtime.interrupt import check, defer_signals, is_command
from vdm_jax.runtime.processes import STALL_SECONDS, Watchdog
from vdm_jax.training.layout import Layout, jit_replicated
from vdm_jax.typing import Batch, Key, Params, as_batch


class Evaluation(NamedTuple):
    """A bound in bits per dimension, and what it is a bound of.

    Attributes:
      bits_per_dim: mean of −ELBO over the split, an upper bound on the negative log-likelihood.
      standard_error: of that mean, over the examples (their Monte Carlo noise included).
      reconstruction, matching, prior: its parts, which add up to it; None for a bound without parts.
      examples: how many were read, each once.
      estimator: how each example's −ELBO was estimated.
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
    def from_json(cls, row: Any) -> "Evaluation":
        """Read an evaluation from JSON, where numbers that are not finite are null.

        Raises:
          TypeError, ValueError: the row is none.
        """
        known = cls(**row)
        for name in ("bits_per_dim", "standard_error"):
            value = getattr(known, name)
            known = known._replace(**{name: math.nan if value is None else float(value)})
        for name in PARTS:
            if (value := getattr(known, name)) is not None:
                known = known._replace(**{name: float(value)})
        return known

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in PARTS}
        known = [f"{name} {value:.4f}" for name, value in parts.items() if value is not None]
        return (
            f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} bits/dim"
            f"{' = ' if known else ''}{' + '.join(known)}\n"
            f"  {self.estimator}; {self.data}, {self.examples} examples; EMA weights of step {self.step}"
        )


PARTS = Elbo._fields


def make_evaluator(
    model: Model, draws: int, importance_samples: int = 1, *, layout: Layout | None = None
) -> Any:
    """Jit the model's bound: (params, key, batch) -> a dictionary of arrays [B], its parts in nats.

    "index" says which examples they are of, for devices may hold them in another order.

    Args:
      model: whose bound.
      draws: estimates averaged for each example.
      importance_samples: K. 1 is the ELBO, with the parts of `Elbo`; more are the importance-weighted bound
        (Burda et al. 2015), which has no parts.
      layout: of the parameters and the batches; what is returned is whole on every device.

    Raises:
      ValueError: a model without that bound.
    """
    if model.unsupported is not None:
        raise ValueError(f"{model.components}: {model.unsupported}")
    whole_number(draws, "draws", 1)
    whole_number(importance_samples, "importance_samples", 1)

    compile = jax.jit if layout is None else partial(jit_replicated, layout)
    if importance_samples == 1:
        return compile(
            lambda params, key, batch: (
                {"index": as_batch(batch).index}
                | model.elbo(params, key, batch, draws=draws)._asdict()
            )
        )
    importance = model.importance
    if importance is None:
        raise ValueError(
            f"evaluate.importance_samples: {model.name!r} has no importance-weighted "
            f"bound, expected 1, found {importance_samples}"
        )

    def evaluator(params, key, batch):
        def one(i):
            return importance(params, jax.random.fold_in(key, i), batch, importance_samples)

        bound = jnp.mean(jax.lax.map(one, jnp.arange(draws)), 0)
        return {"index": as_batch(batch).index, "bound": bound}

    return compile(evaluator)


def evaluate(
    evaluator: Any,
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
      evaluator: of `make_evaluator`.
      params: usually the EMA weights.
      key: of the estimate; each example folds in its index, so the result does not depend on the batch size.
      batches: (batch, mask) pairs that hold each example once.
      dim: dimensions of an example.
      estimator, data, step: words for the report.

    Raises:
      Interrupted: a signal came; between two batches.
    """
    columns: dict[str, list[np.ndarray]] = {}
    with (
        defer_signals(),
        Watchdog(STALL_SECONDS, command=is_command()) as patience,
    ):  # several processes end at the same batch
        for batch, mask in batches:
            check()
            with patience.wait("evaluation"):
                parts = evaluator(params, key, batch)
                found = {name: np.asarray(part) for name, part in parts.items()}
            order = np.argsort(found.pop("index", np.arange(len(mask))))
            for name, part in found.items():
                columns.setdefault(name, []).append(part.astype(np.float64)[order][mask])
    bits = {name: np.concatenate(rows) / (dim * math.log(2)) for name, rows in columns.items()}
    total = sum(bits.values(), np.zeros(()))  # [examples]
    error = total.std(ddof=1) / math.sqrt(len(total)) if len(total) > 1 else math.nan
    parts = {name: float(bits[name].mean()) if name in bits else None for name in PARTS}
    return Evaluation(
        bits_per_dim=float(total.mean()),
        standard_error=float(error),
        **parts,
        examples=len(total),
        estimator=estimator,
        data=data,
        step=step,
    )
