"""The result of an evaluation: bits per dimension with its terms and its standard error."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.elbo import Elbo
from vdm_jax.training.progress import Columns

PARTS = Elbo._fields
"""Terms of the negative ELBO."""


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


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values [n]; NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def over_seeds(results: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean of bounds that differ in their seed, and its standard error, over the seeds.

    The error of a single bound is that over its examples.
    """
    bounds = np.asarray([result.bits_per_dim for result in results])
    error = standard_error(bounds) if len(bounds) > 1 else results[0].standard_error
    return float(bounds.mean()), error


def summarize(nats: Columns, dim: int, **fields: Any) -> Evaluation:
    """Return the means of the values of all examples, in bits per dimension."""
    bits = {name: column / (dim * math.log(2)) for name, column in nats.items()}
    discretization = bits.pop("discretization", None)
    total = sum(bits.values(), np.zeros(()))  # [examples]
    terms = {name: float(bits[name].mean()) if name in bits else None for name in PARTS}
    return Evaluation(
        bits_per_dim=float(total.mean()),
        standard_error=standard_error(total),
        **terms,
        examples=len(total),
        discretization=None if discretization is None else float(discretization.mean()),
        **fields,
    )
