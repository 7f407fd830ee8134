"""Tables of a comparison: Markdown, HTML and the lines of a .csv file."""

import html
from collections.abc import Iterator
from typing import Any

import numpy as np

from vdm_jax.comparison.figure import Result
from vdm_jax.comparison.gradients import Gradients
from vdm_jax.comparison.measure import known_mean
from vdm_jax.training.evaluation import PARTS, standard_error


def table(comparison: Result, timing: bool = False) -> str:
    """Return a Markdown table with a line for each variant, and a legend.

    Args:
      comparison: the results.
      timing: True to add a column with the time of a training step, the only one that is not reproducible.
    """
    columns = ["variant", "test bits/dim", f"paired difference to {comparison.reference}", *PARTS]
    columns += (
        ["weight/bound", "gradient noise"] if comparison.gradients is not None else ["weight/bound"]
    )
    columns += [f"samples, {steps} steps" for steps in comparison.quality]
    columns += ["ms/step"] * (timing and comparison.milliseconds is not None)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for i, name in enumerate(comparison):
        relative = np.asarray(comparison.weights[name].relative)
        cells = [
            name,
            str(comparison.bound(name)),
            "–" if name == comparison.reference else f"{comparison.difference(name)}",
        ]
        cells += [f"{values[i].mean():.4f}" for values in comparison.parts().values()]
        cells.append(_range(relative))
        if comparison.gradients is not None:
            cells.append(_noise(comparison.gradients, i))
        cells += [_spread(values[i]) for values in comparison.quality.values()]
        if timing and comparison.milliseconds is not None:
            cells.append(f"{comparison.milliseconds[i]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_legend(comparison)])


def bins_table(comparison: Result) -> str:
    """Return a Markdown table of the matching term by log-SNR, bits/dim."""
    head = [
        f"{a:.1f} … {b:.1f}"
        for a, b in zip(-comparison.edges[:-1], -comparison.edges[1:], strict=True)
    ]
    lines = [f"| variant | {' | '.join(head)} | sum |", f"|{'---|' * (len(head) + 2)}"]
    for i, name in enumerate(comparison):
        values = comparison.bounds.matching[i].mean(0)
        cells = [f"{value:.4f}" for value in [*values, values.sum()]]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*lines, "", "Matching term in bits/dim by log-SNR, from clean to noisy."])


def csv_rows(comparison: Result) -> Iterator[list[Any]]:
    """Yield the header, and a line for each variant and seed."""
    quality = [f"samples_{steps}_steps" for steps in comparison.quality]
    yield [
        "variant",
        *next(iter(comparison.variants.values())),
        "seed",
        "bits_per_dim",
        *PARTS,
        *quality,
    ]
    parts = comparison.parts()
    columns = [comparison.bits_per_dim, *parts.values(), *comparison.quality.values()]
    for i, (name, components) in enumerate(comparison.variants.items()):
        for j, seed in enumerate(comparison.seeds):
            yield [name, *components.values(), seed, *(float(column[i, j]) for column in columns)]


def _legend(comparison: Result) -> list[str]:
    """Return the lines below a table."""
    n, about = comparison.bounds.parts.matching.shape[-1], comparison.about
    seeds = len(comparison.seeds)
    population = f"{seeds} seeds" if seeds > 1 else f"the {n} examples"
    lines = [
        f"± standard error over {population}; {about['bound']}, {about['draws']} draws per example; "
        f"{about['data']}, {n} examples; {about['components']}; {about['training']}.",
        _warning(seeds),
        "weight/bound: the training weight in units of the bound's, least and largest over noise levels.",
    ]
    if comparison.gradients is not None:
        lines.append(
            "gradient noise: standard deviation of a batch's gradient over its mean's norm."
        )
    if comparison.quality:
        lines.append(
            f"samples: {comparison.distance}; as many real examples: {comparison.real:.3g}."
        )
    return lines + [f"Note: {note}." for note in comparison.notes]


def _warning(seeds: int) -> str:
    """Return the line about differences and the uncertainty of their errors."""
    line = "Differences are paired: example by example, same times and noise."
    if seeds == 1:
        return line
    # relative standard deviation of the sample deviation of n normal values, to leading order
    percent = round(100 / np.sqrt(2 * (seeds - 1)))
    return f"{line} With {seeds} seeds, the ± itself has a relative error of about {percent} %."


def _spread(values: np.ndarray) -> str:
    """Format the mean of values [S] with its standard error."""
    error = f" ± {standard_error(values):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.3g}{error}"


def _range(values: np.ndarray) -> str:
    """Format the smallest and the largest value, or one number if they agree."""
    low, high = values.min(), values.max()
    return f"{low:.2g}" if np.isclose(low, high, rtol=1e-3) else f"{low:.1e} … {high:.1e}"


def _noise(gradients: Gradients, i: int) -> str:
    """Format the deviation of a batch's gradient relative to the norm of its mean, for variant i."""
    norm, deviation = known_mean(gradients.total_norm[i], 0), gradients.total_deviation[i].mean()
    return f"{deviation / norm:.2g}" if norm > 0 else "–"  # also for NaN


def as_html(markdown: str) -> str:
    """Convert a Markdown table and the lines below it to HTML."""
    lines = markdown.splitlines()
    # the line of dashes below the header starts with "|-" and is left out
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    legend = [html.escape(line) for line in lines if line and not line.startswith("|")]
    body = "".join(_html_row(row, "td" if i else "th") for i, row in enumerate(rows))
    return f"<table>{body}</table><p>{'<br>'.join(legend)}</p>"


def _html_row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
