"""Plots of a run: samples beside real data, strips of a model's images, curves of losses and weights."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vdm_jax.effective_weights import EffectiveWeights
from vdm_jax.runtime.files import write_file
from vdm_jax.training.evaluation import Evaluation, over_seeds

GAP = 1  # pixels between images
STRIP_COLUMNS = 18  # images in a line of `strips`, unless a single row has more

Rows = list[dict[str, Any]]
"""Lines of `metrics.jsonl`."""


def tile(images: np.ndarray, levels: int, columns: int | None = None) -> np.ndarray:
    """Arrange images [n, H, W, C] of levels 0…levels−1 in a grid, floats [h, w, 3] in [0, 1].

    By default the grid is nearly square. Data of another rank [n, d, ...] are shown in grey, as d rows.
    """
    if images.ndim != 4:
        images = images.reshape(*images.shape[:2], -1, 1)
    n, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = int(np.ceil(n / columns))
    grid = np.ones((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3))
    for i, image in enumerate(np.asarray(images, np.float64) / (levels - 1)):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (width + GAP)
        grid[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]
    return grid


def _save(path: Path, figure: Figure) -> None:
    # Agg needs no display; pyplot would keep every figure in memory
    write_file(path, FigureCanvasAgg(figure).print_png)


def sample_grid(
    path: Path,
    samples: np.ndarray,
    real: np.ndarray,
    *,
    levels: int,
    samples_title: str,
    real_title: str,
) -> None:
    """Save samples beside real images, both integers below `levels`, [n, H, W, C]."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    panels = ((samples, samples_title), (real, real_title))
    for axes, (images, title) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.imshow(tile(images, levels), interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    _save(path, figure)


def strips(path: Path, rows: np.ndarray, *, levels: int, title: str) -> None:
    """Save rows of images [rows, columns, H, W, C], integers below `levels`; short rows share a line."""
    columns = rows.shape[1] * max(1, STRIP_COLUMNS // rows.shape[1])
    picture = tile(rows.reshape(-1, *rows.shape[2:]), levels, columns)
    figure = Figure(
        figsize=(10, 10 * picture.shape[0] / picture.shape[1] + 0.4), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9, wrap=True)
    axes.set_axis_off()
    _save(path, figure)


def loss_curve(path: Path, rows: Rows, *, test: Evaluation | None = None, title: str = "") -> None:
    """Save the training bound in bits/dim by step; also the loss, in its own panel, unless it is the bound.

    Args:
      path: of the PNG file.
      rows: metrics by step. Test bounds among them, "test_bits_per_dim", are drawn as a line.
      test: an evaluation to mark in the panel of the bound.
      title: title of the figure.
    """
    test_rows = [row for row in rows if "test_bits_per_dim" in row]
    # a log interval in which every step was skipped has neither number
    rows = [row for row in rows if "bits_per_dim" in row or "loss" in row]
    has_bound = all("bits_per_dim" in row for row in rows)
    same = has_bound and all(row["loss"] == row["bits_per_dim"] for row in rows if "loss" in row)
    panels = ["bits_per_dim"] * has_bound + ["loss"] * (not same)
    figure = Figure(figsize=(7 * len(panels), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        is_bound = name == "bits_per_dim"
        _curve(axes, rows, name, test if is_bound else None, test_rows if is_bound else [])
    figure.suptitle(title, fontsize=8, wrap=True)
    _save(path, figure)


def curves(
    path: Path,
    rows: Rows,
    groups: dict[str, list[str]],
    tests: dict[str, Evaluation],
    *,
    title: str = "",
) -> None:
    """Save the training bounds of the runs of a sweep, and their test bounds.

    Args:
      path: of the PNG file.
      rows: metrics by step, with "<run>/bits_per_dim".
      groups: by label, names of the runs that share a colour.
      tests: evaluation of each run.
      title: title of the axes.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    width = max(len(rows) // 40, 1)
    visible: list[float] = []
    for i, (group, names) in enumerate(groups.items()):
        for name in names:
            key = f"{name}/bits_per_dim"
            points = [(row["step"], row[key]) for row in rows if key in row]
            if len(points) < width:  # diverged early, or the run is shorter than a log interval
                continue
            step, values = np.asarray(points, float).T
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            axes.plot(step[width - 1 :], smooth, color=f"C{i}", alpha=0.8, linewidth=1)
            # only the last fifth sets the range: the first losses are far above the differences of runs
            visible += smooth[4 * len(smooth) // 5 :].tolist()
        mean, error = over_seeds([tests[name] for name in names])
        label = f"{group}: test {mean:.3f} ± {error:.3f}"
        place = tests[names[0]].step * (1.01 + 0.012 * i)  # right of the curves, beside each other
        axes.errorbar(place, mean, error, fmt="o", color=f"C{i}", label=label, capsize=3)
        visible.append(mean)
    visible = [value for value in visible if np.isfinite(value)]  # a run may have diverged
    if visible:
        span = max(visible) - min(visible) + 1e-3
        axes.set_ylim(min(visible) - 0.1 * span, max(visible) + 0.5 * span)
    smoothing = f"mean of {width} log intervals" if width > 1 else "mean of a log interval"
    axes.set(xlabel="step", ylabel=f"−ELBO, bits/dim ({smoothing})", title=title)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    _save(path, figure)


def _curve(axes: Axes, rows: Rows, name: str, test: Evaluation | None, test_rows: Rows) -> None:
    """Draw the metric `name` by step, smoothed as well, with test bounds if there are any."""
    step = np.asarray([row["step"] for row in rows])
    values = np.asarray([row[name] for row in rows], float)  # files have null for NaN
    if rows:  # a run may be shorter than a log interval
        axes.plot(
            step, values, color="C0", alpha=0.35, linewidth=1, label="training, per log interval"
        )
    if len(rows) >= 10:
        width = max(len(rows) // 40, 3)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axes.plot(
            step[width - 1 :], smooth, color="C0", label=f"training, mean of {width} intervals"
        )
    if test_rows:
        bounds = np.asarray([row["test_bits_per_dim"] for row in test_rows], float)
        axes.plot([row["step"] for row in test_rows], bounds, "C3.-", linewidth=1, label="test")
    if test is not None:
        label = f"test, {test.bits_per_dim:.3f} ± {test.standard_error:.3f}"
        axes.errorbar(
            test.step, test.bits_per_dim, test.standard_error, fmt="o", color="C3", label=label
        )
    finite = values[np.isfinite(values)]
    # the highest 2 % are cut off: the first losses and spikes would flatten the rest of the curve
    limits = [finite.min(), np.quantile(finite, 0.98)] if len(finite) else []
    limits += [test.bits_per_dim] if test is not None and np.isfinite(test.bits_per_dim) else []
    if limits:
        margin = 0.08 * (max(limits) - min(limits)) + 1e-3
        axes.set_ylim(min(limits) - margin, max(limits) + margin)
        axes.legend(frameon=False, fontsize=9)
    quantity = "−ELBO" if name == "bits_per_dim" else "loss (not a bound)"
    axes.set(xlabel="step", ylabel=f"{quantity}, bits/dim")
    axes.grid(alpha=0.25)


WEIGHT_PANELS = {
    "x0": ("‖x₀ − x̂₀‖²", lambda snr: 0.5 * snr),
    "eps": ("‖ε − ε̂‖²", lambda snr: 0.5 + 0 * snr),
    "v": ("‖v − v̂‖²", lambda snr: 0.5 * snr / (1 + snr)),
}
"""Loss space -> label of its squared error, and that error's weight in the continuous-time bound."""

DASHES = "-", (0, (5, 2.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1.5))
FEW = 30  # noise levels of a curve, such as the steps of a chain, that are marked one by one


def power_of_ten(exponent: int) -> str:
    """Format a power of ten, such as 10⁻⁵."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def weight_curves(
    path: Path | None, weights: dict[str, EffectiveWeights], title: str = ""
) -> Figure:
    """Plot the effective weights of training losses over the log-SNR, in x0-, eps- and v-space.

    Args:
      path: of the PNG file; None saves nothing.
      weights: results of `effective_weights`, by the name of the loss.
      title: title of the figure.

    Returns:
      The figure.
    """
    figure = Figure(figsize=(10.5, 4.4 + 0.2 * (len(weights) // 4)), layout="constrained")
    # curves may coincide: each is thinner than the one below it and has its own dashes, so that all are visible
    widths = np.linspace(3.6 if len(weights) > 1 else 1.8, 1.2, len(weights))
    ends = [np.asarray(curve.log_snr)[[0, -1]] for curve in weights.values()]
    log_snr = np.linspace(np.min(ends), np.max(ends), 201)
    lines: list[Any] = []
    panels = zip(figure.subplots(1, 3), WEIGHT_PANELS.items(), strict=True)
    for axes, (space, (error, bound)) in panels:
        lines = axes.plot(log_snr, bound(np.exp(log_snr)), color="0.82", linewidth=8)
        lines[0].set(label="the bound, T = ∞", solid_capstyle="butt")
        for i, (name, curve) in enumerate(weights.items()):
            lines += axes.plot(
                np.asarray(curve.log_snr),
                np.asarray(getattr(curve, space)),
                color=f"C{i % 10}",
                linestyle=DASHES[i % len(DASHES)],
                linewidth=widths[i],
                marker="o" if len(curve.log_snr) <= FEW else "",
                markersize=widths[i] + 2,
                label=name,
            )
        heights = np.concatenate([line.get_ydata() for line in lines])
        heights = heights[np.isfinite(heights) & (heights > 0)]
        low = np.floor(np.log10(heights.min() / 1.5))
        high = np.ceil(np.log10(heights.max() * 1.5))
        axes.set(yscale="log", ylim=(0.99 * 10**low, 1.01 * 10**high))  # whole decades
        # plain text: matplotlib's own format of powers needs fonts that are not installed everywhere
        axes.yaxis.set_major_formatter(lambda y, _: power_of_ten(round(np.log10(y))))
        axes.yaxis.set_minor_formatter("")
        axes.set_title(f"{space}-space: weight of {error}", fontsize=10)
        axes.set_xlabel("noise  ←  log-SNR λ  →  data")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("effective weight ω, per unit of λ")
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=min(len(lines), 4),
        frameon=False,
        fontsize=9,
        handlelength=5,
    )
    if path is not None:
        _save(path, figure)
    return figure
