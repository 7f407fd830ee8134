"""What a model may know of its training split before training: fitted once, kept beside the run."""

import math
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import BASES, measure_residual
from vdm_jax.likelihoods import level_values
from vdm_jax.models.model import Statistics
from vdm_jax.specs import build

RESIDUAL_VALUES = 2**16  # pixels whose error is measured: 1 % of its root mean square
RESIDUAL_GAMMAS = np.linspace(-20.0, 12.0, 65)


def fit_statistics(
    counts: np.ndarray,
    sample: np.ndarray | None = None,
    *,
    base: Any = None,
    where: str = "config.model.base",
) -> Statistics:
    """Fit the statistics of K-level data.

    Args:
      counts: int [*d, K], how often each level occurs at each position of the training split.
      sample: integers [n, *d] of the training split, to measure the error of the base on.
      base: spec of the base whose error is to be measured; None, or no sample, measures none.
      where: path of the base, for messages.

    A level never seen at a position gets 1/K of one count, so that no test image is impossible.
    """
    levels = counts.shape[-1]
    smooth = counts + 1 / levels
    log_counts = np.log(smooth / smooth.sum(-1, keepdims=True)).astype(np.float32)
    values = level_values(levels)
    frequency = counts.reshape(-1, levels).sum(0) / counts.sum()
    fitted = Statistics(
        shape=tuple(counts.shape[:-1]),
        levels=levels,
        second_moment=float(np.sum(frequency * values**2)),
        log_counts=log_counts,
    )
    if base is None or sample is None:
        return fitted
    built = build(BASES, base, where, **fitted._asdict())
    if not built.informative:  # its deviation is known in closed form
        return fitted
    few = sample[: max(1, RESIDUAL_VALUES // math.prod(fitted.shape))]
    x0 = jnp.asarray(values[few.astype(np.int64)], jnp.float32)
    residual = measure_residual(built, x0, jax.random.key(0), RESIDUAL_GAMMAS)
    return fitted._replace(residual=residual)


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write as .npz, whole or not at all; fields that are None are left out."""
    fields = {name: value for name, value in statistics._asdict().items() if value is not None}
    arrays: Any = {name: np.asarray(value) for name, value in fields.items()}
    whole = path.with_suffix(".new.npz")
    np.savez(whole, **arrays)
    whole.replace(path)


def load_statistics(path: Path) -> Statistics:
    """Read what `save_statistics` wrote; nothing is unpickled.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields: dict[str, Any] = {name: file[name] for name in file.files}
        return _from_fields(fields)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _from_fields(fields: dict[str, Any]) -> Statistics:
    levels, residual = fields.get("levels"), fields.get("residual")
    return Statistics(
        shape=tuple(int(n) for n in fields["shape"]),
        levels=None if levels is None else int(levels),
        second_moment=float(fields["second_moment"]),
        log_counts=fields.get("log_counts"),
        residual=None if residual is None else (residual[0], residual[1]),
    )
