"""Statistics of a training split, fitted once and kept beside the run."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import BASES, measure_residual
from vdm_jax.checks import check_array
from vdm_jax.likelihoods import level_values
from vdm_jax.models.model import Statistics
from vdm_jax.runtime.files import write_file
from vdm_jax.runtime.npz import read_npz
from vdm_jax.specs import build

RESIDUAL_VALUES = 2**16
"""(position, level) pairs that the error of a base is measured on. Its root mean square is known to 1 %, and to
about 30 % at noise that hardly ever moves a value to another level, where it is below 1 % of their spacing."""

RESIDUAL_GAMMAS = np.linspace(-20.0, 12.0, 65)

DTYPES = {
    "shape": np.int64,
    "levels": np.int64,
    "second_moment": np.float64,
    "log_counts": np.float32,
    "residual": np.float32,
}
"""Fields of `Statistics` -> how they are stored and digested."""


def fit_statistics(
    counts: np.ndarray,
    *,
    shape: tuple[int, ...] | None = None,
    base: Any = None,
) -> Statistics:
    """Fit the statistics of K-level data.

    All are functions of the counts alone, so that the order in which the split is stored is none of them. The
    rows of `BASES` treat each position alone: their error on a data set is that on the (position, level) pairs
    that were counted, of which about 2**16 are drawn in proportion to their counts.

    Args:
      counts: int [*d, K], how often each level occurs at each position of the training split, or [K], in all,
        for a model that takes no `log_counts`: `level_counts`.
      shape: of one example; counts [K] do not have it.
      base: spec of the base whose error is to be measured; None measures none.

    A level never seen at a position gets 1/K of one count, so that no test image is impossible.
    """
    check_array(counts, "counts")
    levels = counts.shape[-1]
    values = level_values(levels)
    frequency = counts.reshape(-1, levels).sum(0) / counts.sum()
    fitted = Statistics(
        shape=tuple(counts.shape[:-1]) if shape is None else tuple(shape),
        levels=levels,
        second_moment=float(np.sum(frequency * values**2)),
        log_counts=_log_counts(counts) if counts.ndim > 1 else None,
    )
    if base is None:
        return fitted
    built = build(BASES, base, "base", **fitted._asdict())
    if not built.informative:  # its deviation is known in closed form
        return fitted
    x0 = jnp.asarray(values[_draw_levels(counts, fitted.shape)], jnp.float32)
    residual = measure_residual(built, x0, jax.random.key(0), RESIDUAL_GAMMAS)
    return fitted._replace(residual=residual)


def _log_counts(counts: np.ndarray) -> np.ndarray:
    smooth = counts + 1 / counts.shape[-1]
    smooth /= smooth.sum(-1, keepdims=True)  # in place: of large images this is gigabytes
    return np.log(smooth, out=smooth).astype(np.float32)


def _draw_levels(counts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Draw levels from counts [*d, K] or [K], each position alone: int64 [n, *shape], about `RESIDUAL_VALUES`.

    The draws of a position are stratified: of m draws, a level with the share f of its counts gets m f ± 1.
    """
    dim, levels = math.prod(shape), counts.shape[-1]
    rows = counts.reshape(-1, levels)
    n = max(1, RESIDUAL_VALUES // dim)
    draws = n * dim // len(rows)
    uniform = np.random.default_rng(0).random((draws, len(rows)))
    strata = (np.arange(draws)[:, None] + uniform) / draws
    total = rows.sum(-1)
    place = np.minimum((strata * total).astype(np.int64), total - 1) + np.cumsum(total) - total
    # the counts of all positions one after the other: the level is where the place falls into
    level = np.searchsorted(np.cumsum(rows), place.ravel(), side="right") % levels
    return level.reshape(n, *shape)


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write as .npz, whole or not at all; fields that are None are left out.

    Raises:
      OSError: the file cannot be written; the previous one is left.
    """
    fields: dict[str, Any] = _arrays(statistics)
    write_file(path, lambda file: np.savez(file, **fields))


def load_statistics(path: Path) -> Statistics:
    """Read what `save_statistics` wrote; nothing is unpickled.

    Raises:
      FileNotFoundError: there is no file.
      OSError: the path is a link or no regular file, or cannot be read.
      ValueError: the file is damaged, or its fields do not agree with each other.
    """
    fields = read_npz(path)
    fault = _fault(fields)
    if fault is not None:
        raise ValueError(f"{path} is damaged: {fault}")
    levels, residual = fields.get("levels"), fields.get("residual")
    return Statistics(
        shape=tuple(int(n) for n in fields["shape"]),
        levels=None if levels is None else int(levels),
        second_moment=float(fields["second_moment"]),
        log_counts=fields.get("log_counts"),
        residual=None if residual is None else (residual[0], residual[1]),
    )


def digest_of(statistics: Statistics) -> str:
    """Digest all fields with their names, types and shapes: 16 hexadecimal digits, as saved and loaded."""
    digest = hashlib.sha256()
    for name, array in _arrays(statistics).items():
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _arrays(statistics: Statistics) -> dict[str, np.ndarray]:
    fields = statistics._asdict().items()
    return {name: np.asarray(value, DTYPES[name]) for name, value in fields if value is not None}


def _fault(fields: dict[str, np.ndarray]) -> str | None:
    """Describe what is wrong with fields that were read from a file; None if nothing is."""
    for name, array in fields.items():
        if name not in DTYPES:
            return f"unknown field {name!r}"
        if array.dtype != DTYPES[name]:
            return f"{name} has type {array.dtype}, expected {np.dtype(DTYPES[name])}"
        if not np.all(np.isfinite(array)):
            return f"{name} is not finite"
    missing = {"shape", "second_moment"} - set(fields)
    if missing:
        return f"{sorted(missing)[0]} is missing"
    shape, moment = fields["shape"], fields["second_moment"]
    levels, counts, residual = (fields.get(n) for n in ("levels", "log_counts", "residual"))
    if shape.ndim != 1 or np.any(shape < 1):
        return f"shape is {shape.tolist()}, expected sizes of at least 1"
    if moment.ndim != 0 or moment < 0:  # 0 of data that are 0 throughout
        return f"second_moment is {moment}, expected a number of at least 0"
    if levels is not None and (levels.ndim != 0 or levels < 2):
        return f"levels is {levels}, expected a number of at least 2"
    if counts is not None and (levels is None or counts.shape != (*shape.tolist(), int(levels))):
        return f"log_counts has shape {counts.shape}, beside shape {shape.tolist()} and levels {levels}"
    if residual is not None and (residual.ndim != 2 or len(residual) != 2 or not residual.size):
        return f"residual has shape {residual.shape}, expected (2, n)"
    if residual is not None and np.any(np.diff(residual[0]) <= 0):
        return "residual has noise levels that do not rise"
    return None
