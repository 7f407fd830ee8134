"""Tables of a comparison: Markdown, HTML and the rows of a .csv file."""

import html
from collections.abc import Iterator
from typing import Any

import numpy as np

from vdm_jax.comparison.gradients import Gradients
from vdm_jax.comparison.measure import known_mean
from vdm_jax.training.evaluate import PARTS


def table(comparison: Any, timing: bool = False) -> str:
    """Return a Markdown table with a line for each variant and a legend; the same for the same seeds.

    Args:
      timing: adds a column of the time of a step, which differs between measurements.
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


def bins_table(comparison: Any) -> str:
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


def csv_rows(comparison: Any) -> Iterator[list[Any]]:
    """Yield the header and a row for each variant and seed."""
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
    for i, (name, what) in enumerate(comparison.variants.items()):
        for j, seed in enumerate(comparison.seeds):
            own = [values[i, j] for values in (comparison.bits_per_dim, *parts.values())]
            own += [values[i, j] for values in comparison.quality.values()]
            yield [name, *what.values(), seed, *map(float, own)]


def _legend(comparison: Any) -> list[str]:
    """Return the lines below a table."""
    n, about = comparison.bounds.parts.matching.shape[-1], comparison.about
    over = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else f"the {n} examples"
    lines = [
        f"± standard error over {over}; {about['bound']}, {about['draws']} draws per example; "
        f"{about['data']}, {n} examples; {about['components']}; {about['training']}.",
        _warning(len(comparison.seeds)),
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


def _warning(count: int) -> str:
    line = "Differences are paired: example by example, same times and noise."
    if count == 1:
        return line
    rough = round(100 / np.sqrt(2 * (count - 1)))
    return f"{line} An error from {count} seeds is itself uncertain by {rough} %."


def _spread(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.3g}{error}"


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:.2g}" if np.isclose(low, high, rtol=1e-3) else f"{low:.1e} … {high:.1e}"


def _noise(gradients: Gradients, i: int) -> str:
    norm, deviation = known_mean(gradients.total_norm[i], 0), gradients.total_deviation[i].mean()
    return f"{deviation / norm:.2g}" if norm > 0 else "–"  # NaN, too


def as_html(markdown: str) -> str:
    """Convert a Markdown table and the lines below it to HTML."""
    rows = [
        line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")
    ]
    words = [
        html.escape(line) for line in markdown.splitlines() if line and not line.startswith("|")
    ]
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<table>{body}</table><p>{'<br>'.join(words)}</p>"
