"""Figures of a `Comparison`: colours show parameterizations, lines weightings, markers output scales."""

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vdm_jax.comparison.measure import known_mean
from vdm_jax.runs.plots import tile

Result = Any
"""A `Comparison`; its module imports this one."""


class Picture(Figure):
    """A figure that notebooks show, without pyplot."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        FigureCanvasAgg(self).print_png(data)
        return data.getvalue()


LINES = ("-", "--", ":", "-.")
WIDTHS = (2.0, 1.0, 0.6)
MARKERS = ("o", "s", "^", "D")
SHOWN = 12  # samples of a variant


def overview(result: Result) -> Picture:
    """Plot the bounds, the results by log-SNR, and the distance of samples by sampling steps."""
    figure = Picture(figsize=(19, 8.6), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    _bounds(axes[0], result)
    matching = result.bounds.matching.mean(1)
    _by_bin(axes[1], result, matching, "matching term, bits/dim a bin")
    _weights(axes[2], result)
    _by_bin(axes[3], result, result.output_gains, "gain |∂x̂₀ / ∂output|")
    gradients = result.gradients
    if gradients is not None:
        norm = known_mean(gradients.norm, 1)  # over the seeds
        _by_bin(axes[4], result, norm, "norm of the bin's gradient")
        noise = gradients.deviation.mean(1) / norm
        _by_bin(axes[5], result, noise, "noise of a batch's gradient / its norm")
        _by_bin(axes[6], result, _agreement(gradients.between_bins), AGREEMENT, log=False)
    for unused in axes[4:7] if gradients is None else []:
        unused.set_axis_off()
    _quality(axes[7], result)
    figure.legend(handles=list(_legend(result)), loc="outside lower center", ncols=9, frameon=False)
    about = result.about
    figure.suptitle(f"{about['data']}; {about['components']}; {about['training']}", fontsize=9)
    return figure


AGREEMENT = "mean cosine with the other bins' gradients"


def _agreement(cosines: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each bin with the others [V, K], from cosines [V, S, K, K]."""
    diagonal = np.eye(cosines.shape[-1], dtype=bool)
    return known_mean(known_mean(np.where(diagonal, np.nan, cosines), -1), 1)


def sample_rows(result: Result, steps: int) -> Picture:
    """Plot samples of the first seed of each variant, from the same noise.

    Images are in a row for each variant; other data are points in the plane of their first two dimensions.

    Raises:
      ValueError: no samples were drawn with this number of steps.
    """
    if steps not in result.samples:
        raise ValueError(f"steps: samples were drawn with {[*result.samples]}, found {steps}")
    samples = result.samples[steps][:, 0]
    height = len(result)
    if samples.ndim == 5 and result.about["levels"]:  # [V, n, H, W, C]
        rows = samples[:, :SHOWN]
        image = tile(rows.reshape(-1, *rows.shape[2:]), result.about["levels"], rows.shape[1])
        figure = Picture(
            figsize=(9, 6.4 * image.shape[0] / image.shape[1] + 0.5), layout="constrained"
        )
        axes = figure.subplots()
        axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
        middle = (np.arange(height) + 0.5) * image.shape[0] / height
        axes.set_yticks(middle, result.names, fontsize=8)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    else:
        lines, columns = math.ceil(height / 4), min(height, 4)
        figure = Picture(figsize=(2.6 * columns, 2.8 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[height:]:
            axes.set_axis_off()
        for axes, name, x in zip(grid.flat, result, samples, strict=False):
            flat = x.reshape(len(x), -1)
            axes.plot(flat[:, 0], flat[:, min(1, flat.shape[1] - 1)], ".", markersize=3)
            axes.set_title(name, fontsize=9)
    figure.suptitle(
        f"{steps} steps, seed {result.seeds[0]}, the same noise; {result.about['training']}",
        fontsize=9,
    )
    return figure


def _styles(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the colour, line style and marker of each variant."""
    for name, components in result.variants.items():
        parameterization, output_scale, weighting = (
            _values(result, field).index(value) for field, value in components.items()
        )
        yield (
            name,
            {
                "color": f"C{parameterization % 10}",
                "linestyle": LINES[weighting % len(LINES)],
                "linewidth": WIDTHS[output_scale % len(WIDTHS)],
                "marker": MARKERS[output_scale % len(MARKERS)],
                "markersize": 4,
                "alpha": 0.85,
            },
        )


def _values(result: Result, field: str) -> list[str]:
    """Return the names of the components that the variants have in a field, each once."""
    return list(dict.fromkeys(components[field] for components in result.variants.values()))


def _legend(result: Result) -> Iterator[Line2D]:
    for i, name in enumerate(_values(result, "parameterization")):
        yield Line2D([], [], color=f"C{i % 10}", linewidth=4, label=name)
    for i, name in enumerate(_values(result, "weighting")):
        yield Line2D([], [], color="0.3", linestyle=LINES[i % len(LINES)], label=f"{name} weight")
    for i, name in enumerate(_values(result, "output_scale")):
        style = {"linewidth": WIDTHS[i % len(WIDTHS)], "marker": MARKERS[i % len(MARKERS)]}
        yield Line2D([], [], color="0.3", label=f"output scale {name}", markersize=4, **style)


def _bounds(axes: Axes, result: Result) -> None:
    for i, (name, style) in enumerate(_styles(result)):
        bound = result.bound(name)
        error = np.nan_to_num(bound.standard_error)  # unknown for a single example
        marker = {key: style[key] for key in ("color", "marker", "markersize")}
        axes.errorbar(bound.mean, i, xerr=error, capsize=3, **marker)
        axes.plot(
            result.bits_per_dim[i],
            [i + 0.25] * len(result.seeds),
            "|",
            color=style["color"],
            alpha=0.5,
        )
    axes.set_yticks(range(len(result)), result.names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="−ELBO, test bits/dim (± standard error; | single seeds)")
    axes.grid(alpha=0.25, axis="x")
    _without_outliers(axes, result)


def _without_outliers(axes: Axes, result: Result) -> None:
    """Limit the axis to the better half of the bounds, and print bounds far beyond it at its edge.

    A single variant that diverged would otherwise hide the differences between all others.
    """
    values = result.bits_per_dim.mean(1)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    best, median = finite.min(), np.sort(finite)[(len(finite) - 1) // 2]
    high = best + 4 * (median - best) + 0.02 * abs(best)
    if np.all(values <= high):
        return
    errors = [np.nan_to_num(result.bound(name).standard_error) for name in result]
    low = min(v - 1.2 * e for v, e in zip(values, errors, strict=True) if v <= high)
    low = min(low, result.bits_per_dim[values <= high].min())
    axes.set_xlim(low - 0.05 * (high - low), high)
    for i, value in enumerate(values):
        if not value <= high:  # also for NaN
            axes.annotate(f"{value:.2f} →", (high, i), ha="right", va="center", fontsize=8)


def _by_bin(
    axes: Axes, result: Result, values: np.ndarray, label: str, *, log: bool = True
) -> None:
    """Plot values [V, K] by log-SNR."""
    for (_, style), heights in zip(_styles(result), values, strict=True):
        shown = np.where(heights > 0, heights, np.nan) if log else heights
        axes.plot(result.log_snr, shown, **style)
    if log:
        axes.set_yscale("log")
    axes.set(xlabel="log-SNR (noise ← → data)", ylabel=label)
    axes.grid(alpha=0.25)


def _weights(axes: Axes, result: Result) -> None:
    for name, style in _styles(result):
        weights = result.weights[name]
        line: dict[str, Any] = style | {
            "marker": None
        }  # a marker at each of many noise levels would hide it
        axes.plot(np.asarray(weights.log_snr), np.asarray(weights.eps), **line)
    axes.set_yscale("log")
    axes.set(xlabel="log-SNR (noise ← → data)", ylabel="weight of ‖ε − ε̂‖² per unit of log-SNR")
    axes.grid(alpha=0.25)


def _quality(axes: Axes, result: Result) -> None:
    if not result.quality:
        axes.set_axis_off()
        return
    steps = [*result.quality]
    for i, (_, style) in enumerate(_styles(result)):
        axes.plot(steps, [values[i].mean() for values in result.quality.values()], **style)
    axes.axhline(result.real, color="0.5", linewidth=1)
    axes.annotate(
        "as many real examples",
        (steps[0], result.real),
        (0, -3),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
        va="top",
    )
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.minorticks_off()
    axes.set(xlabel="sampling steps", ylabel=result.distance)
    axes.grid(alpha=0.25)
