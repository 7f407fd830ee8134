"""One exact pass over a split: bits per dimension with its parts and its standard error."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.models import Model
from vdm_jax.typing import Array, Batch, Key, Params


class Evaluation(NamedTuple):
    """A bound in bits per dimension, and what it is a bound of.

    Attributes:
      bits_per_dim: mean of −ELBO over the split, an upper bound on the negative log-likelihood.
      standard_error: of that mean, over the examples (their Monte Carlo noise included).
      reconstruction, matching, prior: its parts, which add up to it.
      examples: how many were read, each once.
      estimator: how each example's −ELBO was estimated.
      data: data set, version and split.
      step: training steps of the weights.
    """

    bits_per_dim: float
    standard_error: float
    reconstruction: float
    matching: float
    prior: float
    examples: int
    estimator: str
    data: str
    step: int

    def __str__(self) -> str:
        return (
            f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} bits/dim"
            f" = reconstruction {self.reconstruction:.4f} + matching {self.matching:.4f}"
            f" + prior {self.prior:.4f}\n"
            f"  {self.estimator}; {self.data}, {self.examples} examples; EMA weights of step {self.step}"
        )


def make_evaluator(model: Model, draws: int) -> Any:
    """Jit the model's bound: (params, key, batch) -> `Elbo` of arrays [B]."""
    return jax.jit(lambda params, key, batch: model.elbo(params, key, batch, draws=draws))


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
    """
    rows = []
    for batch, mask in batches:
        parts: tuple[Array, ...] = evaluator(params, key, batch)
        rows.append(np.stack([np.asarray(part, np.float64) for part in parts], -1)[mask])
    bits = np.concatenate(rows) / (dim * math.log(2))  # [examples, 3]
    total = bits.sum(-1)
    error = total.std(ddof=1) / math.sqrt(len(total)) if len(total) > 1 else math.nan
    reconstruction, matching, prior = bits.mean(0).tolist()
    return Evaluation(
        bits_per_dim=float(total.mean()),
        standard_error=float(error),
        reconstruction=reconstruction,
        matching=matching,
        prior=prior,
        examples=len(total),
        estimator=estimator,
        data=data,
        step=step,
    )
