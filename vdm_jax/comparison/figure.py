"""Figures of a `Comparison`: colours are parameterizations, lines weightings, markers output scales."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vdm_jax.comparison.measure import known_mean
from vdm_jax.runs.plots import tile


class Picture(Figure):
    """A figure that a notebook shows by itself, whether pyplot is there or not."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        FigureCanvasAgg(self).print_png(data)
        return data.getvalue()


LINES = ("-", "--", ":", "-.")
WIDTHS = (2.0, 1.0, 0.6)
MARKERS = ("o", "s", "^", "D")
SHOWN = 12  # samples in a row


def overview(result: Any) -> Picture:
    """Bounds; bits/dim, weights, gains and gradients by log-SNR; the samples' distance by steps."""
    figure = Picture(figsize=(19, 8.6), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    _bounds(axes[0], result)
    matching = result.bounds.matching.mean(1)
    _by_bin(axes[1], result, matching, "matching term, bits/dim a bin")
    _weights(axes[2], result)
    _by_bin(axes[3], result, result.output_gains, "gain |∂x̂₀ / ∂output|")
    gradients = result.gradients
    if gradients is not None:
        norm = known_mean(gradients.norm, 1)
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
    """[V, K], of cosines [V, S, K, K]."""
    own = np.eye(cosines.shape[-1], dtype=bool)
    return known_mean(known_mean(np.where(own, np.nan, cosines), -1), 1)


def sample_rows(result: Any, steps: int) -> Picture:
    """Samples of each variant's first seed from the same noise: a row of images each, or points in the plane.

    Raises:
      ValueError: no samples were drawn with so many steps.
    """
    if steps not in result.samples:
        raise ValueError(f"steps: samples were drawn with {[*result.samples]}, found {steps}")
    drawn = result.samples[steps][:, 0]
    if drawn.ndim == 5 and result.about["levels"]:
        rows = drawn[:, :SHOWN]
        image = tile(rows.reshape(-1, *rows.shape[2:]), result.about["levels"], rows.shape[1])
        height = len(result)
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
        figure = Picture(
            figsize=(2.6 * min(len(result), 4), 2.8 * -(-len(result) // 4)), layout="constrained"
        )
        grid = figure.subplots(
            -(-len(result) // 4), min(len(result), 4), squeeze=False, sharex=True, sharey=True
        )
        for axes in grid.flat[len(result) :]:
            axes.set_axis_off()
        for axes, name, x in zip(grid.flat, result, drawn, strict=False):
            flat = x.reshape(len(x), -1)
            axes.plot(flat[:, 0], flat[:, min(1, flat.shape[1] - 1)], ".", markersize=3)
            axes.set_title(name, fontsize=9)
    figure.suptitle(
        f"{steps} steps, seed {result.seeds[0]}, the same noise; {result.about['training']}",
        fontsize=9,
    )
    return figure


def _styles(result: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the color and line style of each variant."""
    for name, what in result.variants.items():
        row, output_scale, weighting = (_place(result, axis, value) for axis, value in what.items())
        yield (
            name,
            {
                "color": f"C{row % 10}",
                "linestyle": LINES[weighting % len(LINES)],
                "linewidth": WIDTHS[output_scale % len(WIDTHS)],
                "marker": MARKERS[output_scale % len(MARKERS)],
                "markersize": 4,
                "alpha": 0.85,
            },
        )


def _values(result: Any, axis: str) -> list[str]:
    return list(dict.fromkeys(what[axis] for what in result.variants.values()))


def _place(result: Any, axis: str, value: str) -> int:
    return _values(result, axis).index(value)


def _legend(result: Any) -> Iterator[Line2D]:
    for i, name in enumerate(_values(result, "parameterization")):
        yield Line2D([], [], color=f"C{i % 10}", linewidth=4, label=name)
    for i, name in enumerate(_values(result, "weighting")):
        yield Line2D([], [], color="0.3", linestyle=LINES[i % len(LINES)], label=f"{name} weight")
    for i, name in enumerate(_values(result, "output_scale")):
        style = {"linewidth": WIDTHS[i % len(WIDTHS)], "marker": MARKERS[i % len(MARKERS)]}
        yield Line2D([], [], color="0.3", label=f"output scale {name}", markersize=4, **style)


def _bounds(axes: Any, result: Any) -> None:
    for i, (name, style) in enumerate(_styles(result)):
        at = result.bound(name)
        error = np.nan_to_num(at.standard_error)
        look = {key: style[key] for key in ("color", "marker", "markersize")}
        axes.errorbar(at.mean, i, xerr=error, capsize=3, **look)
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


def _without_outliers(axes: Any, result: Any) -> None:
    """Show the better half in full, and say at the edge where what is far from it is."""
    values = result.bits_per_dim.mean(1)
    known = values[np.isfinite(values)]
    if not len(known):
        return
    best, common = known.min(), np.sort(known)[(len(known) - 1) // 2]
    reach = best + 4 * (common - best) + 0.02 * abs(best)
    if np.all(values <= reach):
        return
    errors = [np.nan_to_num(result.bound(name).standard_error) for name in result]
    low = min(v - 1.2 * e for v, e in zip(values, errors, strict=True) if v <= reach)
    low = min(low, result.bits_per_dim[values <= reach].min())
    axes.set_xlim(low - 0.05 * (reach - low), reach)
    for i, value in enumerate(values):
        if not value <= reach:  # NaN too
            axes.annotate(f"{value:.2f} →", (reach, i), ha="right", va="center", fontsize=8)


def _by_bin(axes: Any, result: Any, values: np.ndarray, what: str, *, log: bool = True) -> None:
    for (_, style), row in zip(_styles(result), values, strict=True):
        axes.plot(result.log_snr, np.where(row > 0, row, np.nan) if log else row, **style)
    if log:
        axes.set_yscale("log")
    axes.set(xlabel="log-SNR (noise ← → data)", ylabel=what)
    axes.grid(alpha=0.25)


def _weights(axes: Any, result: Any) -> None:
    for name, style in _styles(result):
        weights = result.weights[name]
        look = style | {"marker": None}
        axes.plot(np.asarray(weights.log_snr), np.asarray(weights.eps), **look)
    axes.set_yscale("log")
    axes.set(xlabel="log-SNR (noise ← → data)", ylabel="weight of ‖ε − ε̂‖² per unit of log-SNR")
    axes.grid(alpha=0.25)


def _quality(axes: Any, result: Any) -> None:
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
