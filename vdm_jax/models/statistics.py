"""Statistics of the training split that a model may use, fitted once and saved in the folder of a run."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.bases import BASES, Base, measure_residual
from vdm_jax.checks import check_array, check_instance, check_sizes, real_number, whole_number
from vdm_jax.likelihoods import level_values
from vdm_jax.runtime.files import write_file
from vdm_jax.runtime.npz import read_npz
from vdm_jax.specs import build
from vdm_jax.typing import Spec

RESIDUAL_VALUES = 2**16
"""Number of (position, level) pairs on which the error of a base is measured. Its root mean square then has a
relative error of 1 %. Where the noise rarely moves a value to another level, the relative error is about 30 %,
but the root mean square is below 1 % of the spacing of the levels."""

RESIDUAL_GAMMAS = np.linspace(-20.0, 12.0, 65)
"""Values of γ at which the error of a base is measured."""

DTYPES = {
    "shape": np.int64,
    "levels": np.int64,
    "second_moment": np.float64,
    "log_counts": np.float32,
    "residual": np.float32,
}
"""Field of `Statistics` -> the type in which it is saved and digested."""


class Statistics(NamedTuple):
    """Statistics of the training split that a model may use.

    Attributes:
      shape: of one example.
      levels: K, or None for continuous data.
      second_moment: E[x_0²] of the encoded data.
      log_counts: float32 [*d, K], smoothed log-histogram of each position over the split (over a random sample
        of 50,000 examples if the split is larger), or None if no component takes it.
      residual: (gammas, log deviations) of the base's error, see `bases.measure_residual`, or None.
    """

    shape: tuple[int, ...]
    levels: int | None
    second_moment: float = 1 / 3
    log_counts: np.ndarray | None = None
    residual: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def dim(self) -> int:
        """Number of elements of one example."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits/dim of one nat of an example."""
        return 1 / (self.dim * math.log(2))


def check_statistics(statistics: Statistics) -> None:
    """Check the statistics that a model is built from.

    Raises:
      TypeError: they are not a `Statistics`, or the shape is not a sequence.
      ValueError: a size, the number of levels or the second moment is out of range.
    """
    check_instance(
        statistics,
        Statistics,
        "statistics",
        "vdm.Statistics(shape=(28, 28, 1), levels=256)",
    )
    check_sizes(statistics.shape, "statistics.shape")
    if statistics.levels is not None:
        whole_number(statistics.levels, "statistics.levels", 2)
    real_number(
        statistics.second_moment,
        "statistics.second_moment",
        "a positive number",
        lambda value: 0 < value < math.inf,
    )


def fit_statistics(
    counts: np.ndarray,
    *,
    shape: tuple[int, ...] | None = None,
    base: Spec | Base | None = None,
) -> Statistics:
    """Fit the statistics of K-level data.

    They are functions of the counts and do not depend on the order of the examples. The bases of `BASES` treat
    each position separately, so that the error of a base on a data set depends only on the counted (position,
    level) pairs. It is measured on about 2**16 pairs, drawn in proportion to their counts.

    Each level gets 1/K of a count at each position in addition, so that no test image has probability 0.

    Args:
      counts: int [*d, K], the counts of each level at each position of the training split, see `level_counts`;
        or [K], the counts over all positions, for a model that does not take `log_counts`.
      shape: of one example; needed for counts [K], which do not contain it.
      base: the base whose error is measured, as a name, a spec or built; None to measure no error.

    Raises:
      ValueError: counts [K] without a shape, or an unknown base.
    """
    check_array(counts, "counts")
    if counts.ndim < 2 and shape is None:
        raise ValueError("shape: expected that of one example beside counts [K], found None")
    levels = counts.shape[-1]
    values = level_values(levels)
    frequency = counts.reshape(-1, levels).sum(0) / counts.sum()
    statistics = Statistics(
        shape=tuple(counts.shape[:-1]) if shape is None else tuple(shape),
        levels=levels,
        second_moment=float(np.sum(frequency * values**2)),
        log_counts=_log_counts(counts) if counts.ndim > 1 else None,
    )
    if base is None:
        return statistics
    base_denoiser = build(BASES, base, "base", **statistics._asdict())
    if not base_denoiser.informative:  # its deviation has a closed form
        return statistics
    x0 = jnp.asarray(values[_draw_levels(counts, statistics.shape)], jnp.float32)
    residual = measure_residual(base_denoiser, x0, jax.random.key(0), RESIDUAL_GAMMAS)
    return statistics._replace(residual=residual)


def _log_counts(counts: np.ndarray) -> np.ndarray:
    """Return the log-histogram [*d, K] of each position, smoothed by 1/K of a count for each level."""
    smooth = counts + 1 / counts.shape[-1]
    smooth /= smooth.sum(
        -1, keepdims=True
    )  # in place, because for large images the array has gigabytes
    return np.log(smooth, out=smooth).astype(np.float32)


def _draw_levels(counts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Draw n examples from counts [*d, K] or [K], each position separately; return levels, int64 [n, *shape].

    n is chosen for about `RESIDUAL_VALUES` levels in all. The draws of a position are stratified: of m draws, a
    level with the share f of the position's counts gets m f ± 1.
    """
    dim, levels = math.prod(shape), counts.shape[-1]
    histograms = counts.reshape(-1, levels)  # one for each position, or a single one for all
    n = max(1, RESIDUAL_VALUES // dim)
    draws = n * dim // len(histograms)
    uniform = np.random.default_rng(0).random((draws, len(histograms)))
    strata = (np.arange(draws)[:, None] + uniform) / draws
    total = histograms.sum(-1)
    # The counts of all positions are laid end to end. A draw is an index into them, and its level is the
    # stretch that contains the index, so that one `searchsorted` serves all positions.
    first = np.cumsum(total) - total
    index = np.minimum((strata * total).astype(np.int64), total - 1) + first
    level = np.searchsorted(np.cumsum(histograms), index.ravel(), side="right") % levels
    return level.reshape(n, *shape)


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics as .npz, atomically; fields that are None are left out.

    Raises:
      OSError: the file cannot be written; a previous file is kept.
    """
    fields: dict[str, Any] = _arrays(statistics)
    write_file(path, lambda file: np.savez(file, **fields))


def load_statistics(path: Path) -> Statistics:
    """Read statistics that `save_statistics` wrote. No data are unpickled.

    Raises:
      FileNotFoundError: the file does not exist.
      OSError: the path is a link or not a regular file, or cannot be read.
      ValueError: the file is damaged, or its fields contradict each other.
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
    """Return a digest of all fields with their names, types and shapes, 16 hexadecimal digits.

    The fields are digested as they are saved, so that loading statistics does not change their digest.
    """
    digest = hashlib.sha256()
    for name, array in _arrays(statistics).items():
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _arrays(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the fields that are not None as the arrays in which they are saved."""
    fields = statistics._asdict().items()
    return {name: np.asarray(value, DTYPES[name]) for name, value in fields if value is not None}


def _fault(fields: dict[str, np.ndarray]) -> str | None:
    """Return a description of the first fault in fields that were read from a file, or None."""
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
    levels, counts = fields.get("levels"), fields.get("log_counts")
    residual = fields.get("residual")
    if shape.ndim != 1 or np.any(shape < 1):
        return f"shape is {shape.tolist()}, expected sizes of at least 1"
    if moment.ndim != 0 or moment < 0:  # 0 for data that are all 0
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
