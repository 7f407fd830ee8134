"""Plots of a run: samples beside real data, strips of a model's own images, curves of loss and weights."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vdm_jax.effective_weights import EffectiveWeights
from vdm_jax.runtime.files import write_file

GAP = 1  # pixels between images
STRIP_COLUMNS = 18


def tile(images: np.ndarray, levels: int, columns: int | None = None) -> np.ndarray:
    """Lay [n, H, W, C] images of 0…levels−1 out in a grid, near-square by default: floats [h, w, 3] in [0, 1].

    Data of another rank [n, d, ...] are shown in grey, as d rows.
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
    """Save samples next to as many real images, both [n, H, W, C] integers below `levels`."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    panels = ((samples, samples_title), (real, real_title))
    for axes, (images, title) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.imshow(tile(images, levels), interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    _save(path, figure)


def strips(path: Path, rows: np.ndarray, *, levels: int, title: str) -> None:
    """Save rows of images [rows, columns, H, W, C], integers below `levels`; short rows stand side by side."""
    columns = rows.shape[1] * max(1, STRIP_COLUMNS // rows.shape[1])
    picture = tile(rows.reshape(-1, *rows.shape[2:]), levels, columns)
    figure = Figure(
        figsize=(10, 10 * picture.shape[0] / picture.shape[1] + 0.4), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    _save(path, figure)


def loss_curve(
    path: Path, rows: list[dict[str, Any]], *, test: Any = None, title: str = ""
) -> None:
    """Save the training bound in bits/dim against steps, and the loss beside it where it is another number.

    `test` is an `Evaluation` to mark on the bound. Rows with "test_bits_per_dim" are a line of their own; an
    interval in which every step was skipped has nothing to show.
    """
    tests = [row for row in rows if "test_bits_per_dim" in row]
    rows = [row for row in rows if "bits_per_dim" in row or "loss" in row]
    bounded = all("bits_per_dim" in row for row in rows)
    same = bounded and all(row["loss"] == row["bits_per_dim"] for row in rows if "loss" in row)
    panels = ["bits_per_dim"] * bounded + ["loss"] * (not same)
    figure = Figure(figsize=(7 * len(panels), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        of_test = (test, tests) if name == "bits_per_dim" else (None, [])
        _curve(axes, rows, name, *of_test)
    figure.suptitle(title, fontsize=8)
    _save(path, figure)


def curves(
    path: Path,
    rows: list[dict[str, Any]],
    groups: dict[str, list[str]],
    tests: dict[str, Any],
    *,
    title: str = "",
) -> None:
    """Save the training bounds of runs side by side, and their test bounds.

    Args:
      path: of the picture.
      rows: metrics "run/bits_per_dim" by step.
      groups: names of the runs that share a colour.
      tests: `Evaluation` of each run.
      title: above it.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    width = max(len(rows) // 40, 1)
    seen: list[float] = []
    for i, (group, names) in enumerate(groups.items()):
        for name in names:
            key = f"{name}/bits_per_dim"
            shown = [(row["step"], row[key]) for row in rows if key in row]
            if len(shown) < width:  # lost early, or the run is shorter than a log interval
                continue
            step, values = np.asarray(shown, float).T
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            axes.plot(step[width - 1 :], smooth, color=f"C{i}", alpha=0.8, linewidth=1)
            seen += smooth[4 * len(smooth) // 5 :].tolist()  # a start far above hides the rest
        bounds = np.asarray([tests[name].bits_per_dim for name in names])
        error = tests[names[0]].standard_error
        if len(bounds) > 1:
            error = bounds.std(ddof=1) / np.sqrt(len(bounds))
        text = f"{group}: test {bounds.mean():.3f} ± {error:.3f}"
        at = tests[names[0]].step * (1.01 + 0.012 * i)  # beside each other
        axes.errorbar(at, bounds.mean(), error, fmt="o", color=f"C{i}", label=text, capsize=3)
        seen.append(float(bounds.mean()))
    seen = [value for value in seen if np.isfinite(value)]  # a run may be lost
    if seen:
        room = max(seen) - min(seen) + 1e-3
        axes.set_ylim(min(seen) - 0.1 * room, max(seen) + 0.5 * room)
    words = f"mean of {width} log intervals" if width > 1 else "mean of a log interval"
    axes.set(xlabel="step", ylabel=f"−ELBO, bits/dim ({words})", title=title)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    _save(path, figure)


def _curve(
    axes: Any, rows: list[dict[str, Any]], name: str, test: Any, tests: list[dict[str, Any]]
) -> None:
    step = np.asarray([row["step"] for row in rows])
    values = np.asarray([row[name] for row in rows], float)  # None is what files have for NaN
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
    if tests:
        bounds = np.asarray([row["test_bits_per_dim"] for row in tests], float)
        axes.plot([row["step"] for row in tests], bounds, "C3.-", linewidth=1, label="test")
    if test is not None:
        text = f"test, {test.bits_per_dim:.3f} ± {test.standard_error:.3f}"
        axes.errorbar(
            test.step, test.bits_per_dim, test.standard_error, fmt="o", color="C3", label=text
        )
    known = values[np.isfinite(values)]
    reach = [known.min(), np.quantile(known, 0.98)] if len(known) else []
    reach += [test.bits_per_dim] if test is not None and np.isfinite(test.bits_per_dim) else []
    if reach:
        margin = 0.08 * (max(reach) - min(reach)) + 1e-3
        axes.set_ylim(min(reach) - margin, max(reach) + margin)
        axes.legend(frameon=False, fontsize=9)
    what = "−ELBO" if name == "bits_per_dim" else "loss (not a bound)"
    axes.set(xlabel="step", ylabel=f"{what}, bits/dim")
    axes.grid(alpha=0.25)


WEIGHT_PANELS = {
    "x0": ("‖x₀ − x̂₀‖²", lambda snr: 0.5 * snr),
    "eps": ("‖ε − ε̂‖²", lambda snr: 0.5 + 0 * snr),
    "v": ("‖v − v̂‖²", lambda snr: 0.5 * snr / (1 + snr)),
}
"""Space -> its squared error, and the weight of that in the bound in continuous time."""

DASHES = "-", (0, (5, 2.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1.5))
FEW = 30  # steps of a chain, of which each is a point


def power_of_ten(exponent: int) -> str:
    """Format a power of ten, such as 10⁻⁵."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def weight_curves(
    path: Path | None, weights: dict[str, EffectiveWeights], title: str = ""
) -> Figure:
    """Draw the effective weights of training losses over the log-SNR, in x0-, eps- and v-space.

    Curves that coincide stay apart: each is thinner than the one below it, and broken in another way.

    Args:
      path: where to save it as PNG; None saves nothing.
      weights: by the name of the loss, of `effective_weights`.
      title: above it.

    Returns:
      The figure.
    """
    figure = Figure(figsize=(10.5, 4.4 + 0.2 * (len(weights) // 4)), layout="constrained")
    widths = np.linspace(3.6 if len(weights) > 1 else 1.8, 1.2, len(weights))
    ends = [np.asarray(found.log_snr)[[0, -1]] for found in weights.values()]
    reach = np.linspace(np.min(ends), np.max(ends), 201)
    lines: list[Any] = []
    panels = zip(figure.subplots(1, 3), WEIGHT_PANELS.items(), strict=True)
    for axes, (space, (error, bound)) in panels:
        lines = axes.plot(reach, bound(np.exp(reach)), color="0.82", linewidth=8)
        lines[0].set(label="the bound, T = ∞", solid_capstyle="butt")
        for i, (name, found) in enumerate(weights.items()):
            lines += axes.plot(
                np.asarray(found.log_snr),
                np.asarray(getattr(found, space)),
                color=f"C{i % 10}",
                linestyle=DASHES[i % len(DASHES)],
                linewidth=widths[i],
                marker="o" if len(found.log_snr) <= FEW else "",
                markersize=widths[i] + 2,
                label=name,
            )
        shown = np.concatenate([line.get_ydata() for line in lines])
        shown = shown[np.isfinite(shown) & (shown > 0)]
        low, high = np.floor(np.log10(shown.min() / 1.5)), np.ceil(np.log10(shown.max() * 1.5))
        axes.set(yscale="log", ylim=(0.99 * 10**low, 1.01 * 10**high))  # whole decades
        # plain text: for its own powers matplotlib wants fonts that are not everywhere
        axes.yaxis.set_major_formatter(lambda y, _: power_of_ten(round(np.log10(y))))
        axes.yaxis.set_minor_formatter("")
        axes.set_title(f"{space}-space: weight of {error}", fontsize=10)
        axes.set_xlabel("noise  ←  log-SNR λ  →  data")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("effective weight ω, per unit of λ")
    figure.suptitle(title, fontsize=9)
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
