"""What a comparison found: numbers by variant, as a table, as files, and drawn."""

import base64
import csv
import html
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.comparison.figure import overview, sample_rows
from vdm_jax.comparison.measure import Bounds, Gradients, known_mean
from vdm_jax.models import Statistics
from vdm_jax.objectives import EffectiveWeights
from vdm_jax.training.evaluate import PARTS


class Estimate(NamedTuple):
    """A number with its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, dict[str, Any]]):
    """The result of `compare`: a mapping from variants, such as "eps_raw_elbo", to what is known of them.

    Arrays have the axes [V, S, ...]: variants, in the order of `names`, and seeds.

    Attributes:
      about: what was compared on what, and by which versions: JSON.
      variants: by name, what each consists of: "parameterization", "head", "weighting".
      reference: the variant that differences are taken to.
      seeds: of the runs.
      edges: [K + 1], of the bins of γ = −log SNR.
      bounds: on the test split, bits/dim.
      weights: of the training loss, by noise level.
      gains: [V, K], what x̂_0 moves by for one unit of the network's output, in the middle of each bin.
      gradients, at_start: at the end and at the start of training, or None.
      quality: distances [V, S] of samples by the number of steps, and the name of the distance.
      real: the same distance of as many real examples.
      samples: [V, S, n, *d] by the number of steps.
      curve: [C, V, S], the training bound in bits/dim, each the mean of some steps; `curve_steps` [C].
      skipped: [V, S], training steps whose gradient was not finite.
      milliseconds: [V], of a training step alone, or None.
      seconds: what the parts took.
      notes: what a reader must know.
      params: the average weights, a tree of [V, S, ...].
      statistics: of the training data, which the models know.
    """

    about: dict[str, Any]
    variants: dict[str, dict[str, str]]
    reference: str
    seeds: list[int]
    edges: np.ndarray
    bounds: Bounds
    weights: dict[str, EffectiveWeights]
    gains: np.ndarray
    gradients: Gradients | None
    at_start: Gradients | None
    quality: dict[int, np.ndarray]
    distance: str
    real: float
    samples: dict[int, np.ndarray]
    curve: np.ndarray
    curve_steps: np.ndarray
    skipped: np.ndarray
    milliseconds: np.ndarray | None
    seconds: dict[str, float]
    notes: list[str]
    params: Any
    statistics: Statistics

    # ------------------------------------------------------------ numbers

    @property
    def names(self) -> list[str]:
        """Of the variants."""
        return [*self.variants]

    @property
    def log_snr(self) -> np.ndarray:
        """[K], λ = −γ in the middle of each bin, falling."""
        return -(self.edges[1:] + self.edges[:-1]) / 2

    @property
    def bits_per_dim(self) -> np.ndarray:
        """[V, S], the bound."""
        return sum(part.mean(-1) for part in self.bounds.parts)  # type: ignore[return-value]

    def bound(self, name: str) -> Estimate:
        """The bound of a variant, bits/dim; its error is over the seeds, or over the examples of one."""
        return self._estimate(self._examples(name))

    def difference(self, name: str, other: str | None = None) -> Estimate:
        """How far its bound is above another's (`reference` by default), bits/dim.

        The two are paired: they share data, times and noise, example by example and seed by seed.
        """
        return self._estimate(self._examples(name) - self._examples(other or self.reference))

    def __getitem__(self, name: str) -> dict[str, Any]:
        i = self._index(name)
        parts = {part: float(values[i].mean()) for part, values in self._parts().items()}
        row: dict[str, Any] = dict(self.variants[name])
        row |= self.bound(name)._asdict() | parts
        row["bits_per_dim"] = row.pop("mean")
        row["seeds"] = self.bits_per_dim[i].tolist()
        row["difference"] = {"to": self.reference} | self.difference(name)._asdict()
        row["bins"] = self._bins(i)
        weights = self.weights[name]
        row["weights"] = {
            key: np.asarray(value).tolist() for key, value in weights._asdict().items()
        }
        row["quality"] = {
            str(steps): {"mean": float(values[i].mean()), "seeds": values[i].tolist()}
            for steps, values in self.quality.items()
        }
        row["skipped_steps"] = int(self.skipped[i].sum())
        if self.gradients is not None:
            row["gradient_cosine_between_bins"] = known_mean(
                self.gradients.between_bins[i], 0
            ).tolist()
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self.variants)

    def __len__(self) -> int:
        return len(self.variants)

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights of networks and samples, for JSON."""
        found: dict[str, Any] = {
            "about": self.about,
            "notes": self.notes,
            "reference": self.reference,
            "log_snr": self.log_snr.tolist(),
            "log_snr_edges": (-self.edges).tolist(),
            "variants": {name: self[name] for name in self},
            "quality": {"distance": self.distance, "real": self.real},
            "training": {
                "steps": self.curve_steps.tolist(),
                "bits_per_dim": {n: self.curve[:, i].T.tolist() for i, n in enumerate(self)},
            },
            "timing": {"seconds": self.seconds},
        }
        if self.milliseconds is not None:
            found["timing"]["milliseconds_per_step"] = dict(
                zip(self.names, self.milliseconds.tolist(), strict=True)
            )
        if self.at_start is not None:
            found["gradient_cosine_between_variants_at_start"] = (
                self.at_start.between_variants.tolist()
            )
        return _finite(found)

    # ------------------------------------------------------------ words

    def table(self, timing: bool = False) -> str:
        """A Markdown table with a line for each variant, and what it says; the same for the same seeds.

        Args:
          timing: with a column of the time of a step, which is another one each time.
        """
        columns = ["variant", "test bits/dim", f"paired difference to {self.reference}", *PARTS]
        columns += (
            ["weight/bound", "gradient noise"] if self.gradients is not None else ["weight/bound"]
        )
        columns += [f"samples, {steps} steps" for steps in self.quality]
        columns += ["ms/step"] * (timing and self.milliseconds is not None)
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for i, name in enumerate(self):
            relative = np.asarray(self.weights[name].relative)
            cells = [
                name,
                str(self.bound(name)),
                "–" if name == self.reference else f"{self.difference(name)}",
            ]
            cells += [f"{values[i].mean():.4f}" for values in self._parts().values()]
            cells.append(_range(relative))
            if self.gradients is not None:
                cells.append(_noise(self.gradients, i))
            cells += [_spread(values[i]) for values in self.quality.values()]
            if timing and self.milliseconds is not None:
                cells.append(f"{self.milliseconds[i]:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", *self._explained()])

    def bins_table(self) -> str:
        """A Markdown table of the matching term's bits/dim by log-SNR; with the other parts it is the bound."""
        head = [
            f"{a:.1f} … {b:.1f}" for a, b in zip(-self.edges[:-1], -self.edges[1:], strict=True)
        ]
        lines = [f"| variant | {' | '.join(head)} | sum |", f"|{'---|' * (len(head) + 2)}"]
        for i, name in enumerate(self):
            values = self.bounds.matching[i].mean(0)
            cells = [f"{value:.4f}" for value in [*values, values.sum()]]
            lines.append(f"| {' | '.join([name, *cells])} |")
        return "\n".join([*lines, "", "Matching term in bits/dim by log-SNR, from clean to noisy."])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self)} on {self.about['data']}>"

    def _repr_markdown_(self) -> str:
        return f"{self.table(timing=True)}\n\n{self.bins_table()}"

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=90)
        data = base64.b64encode(picture.getvalue()).decode()
        tables = "".join(_html(text) for text in (self.table(timing=True), self.bins_table()))
        return f'{tables}<img alt="comparison" src="data:image/png;base64,{data}"/>'

    # ------------------------------------------------------------ pictures and files

    def plot(self) -> Any:
        """Draw the comparison: a matplotlib `Figure` that a notebook shows."""
        return overview(self)

    def plot_samples(self, steps: int | None = None) -> Any:
        """Draw samples of each variant of the first seed, from the same noise; by default of the most steps."""
        return sample_rows(self, max(self.samples, default=0) if steps is None else steps)

    def save(self, folder: str | Path) -> list[Path]:
        """Write comparison.json, .csv, .md and .png and, of images, samples.png; return where they are.

        The .csv has a line for each variant and seed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"comparison.{ending}" for ending in ("json", "csv", "md", "png")]
        paths[0].write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        with paths[1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(self._lines())
        paths[2].write_text(f"{self.table()}\n\n{self.bins_table()}\n", encoding="utf-8")
        self.plot().savefig(paths[3], dpi=150)
        if self.samples:
            paths.append(folder / "samples.png")
            self.plot_samples().savefig(paths[-1], dpi=150)
        return paths

    # ------------------------------------------------------------ pieces

    def _index(self, name: str) -> int:
        if name not in self.variants:
            raise KeyError(f"{name!r} is none of {', '.join(self.variants)}")
        return self.names.index(name)

    def _parts(self) -> dict[str, np.ndarray]:
        return {part: values.mean(-1) for part, values in self.bounds.parts._asdict().items()}

    def _examples(self, name: str) -> np.ndarray:
        i = self._index(name)
        return sum(part[i] for part in self.bounds.parts)  # type: ignore[return-value]

    def _estimate(self, values: np.ndarray) -> Estimate:
        """Of values [S, n]."""
        over = values.mean(-1) if len(self.seeds) > 1 else values[0]
        error = over.std(ddof=1) / np.sqrt(len(over)) if len(over) > 1 else np.nan
        return Estimate(float(values.mean()), float(error))

    def _bins(self, i: int) -> dict[str, list[float]]:
        found = {"bits_per_dim": self.bounds.matching[i].mean(0), "gain": self.gains[i]}
        if self.gradients is not None:
            found["gradient_norm"] = known_mean(self.gradients.norm[i], 0)
            found["gradient_deviation"] = self.gradients.deviation[i].mean(0)
        return {key: np.asarray(value, float).tolist() for key, value in found.items()}

    def _explained(self) -> list[str]:
        n = self.bounds.parts.matching.shape[-1]
        over = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else f"the {n} examples"
        lines = [
            f"± standard error over {over}; {self.about['bound']}, {self.about['draws']} draws per example; "
            f"{self.about['data']}, {n} examples; {self.about['components']}; {self.about['training']}.",
            self._warning(),
            "weight/bound: the training weight in units of the bound's, least and largest over noise levels.",
        ]
        if self.gradients is not None:
            lines.append(
                "gradient noise: standard deviation of a batch's gradient over its mean's norm."
            )
        if self.quality:
            lines.append(f"samples: {self.distance}; as many real examples: {self.real:.3g}.")
        return lines + [f"Note: {note}." for note in self.notes]

    def _warning(self) -> str:
        count, line = (
            len(self.seeds),
            "Differences are paired: example by example, same times and noise.",
        )
        if count == 1:
            return line
        rough = round(100 / np.sqrt(2 * (count - 1)))
        return f"{line} An error from {count} seeds is itself uncertain by {rough} %."

    def _lines(self) -> Iterator[list[Any]]:
        quality = [f"samples_{steps}_steps" for steps in self.quality]
        yield [
            "variant",
            *next(iter(self.variants.values())),
            "seed",
            "bits_per_dim",
            *PARTS,
            *quality,
        ]
        parts = self._parts()
        for i, (name, what) in enumerate(self.variants.items()):
            for j, seed in enumerate(self.seeds):
                own = [values[i, j] for values in (self.bits_per_dim, *parts.values())]
                own += [values[i, j] for values in self.quality.values()]
                yield [name, *what.values(), seed, *map(float, own)]


def _spread(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.3g}{error}"


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:.2g}" if np.isclose(low, high, rtol=1e-3) else f"{low:.1e} … {high:.1e}"


def _noise(gradients: Gradients, i: int) -> str:
    norm, deviation = known_mean(gradients.total_norm[i], 0), gradients.total_deviation[i].mean()
    return f"{deviation / norm:.2g}" if norm > 0 else "–"  # NaN, too


def _finite(value: Any) -> Any:
    """NaN and infinity as None, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _html(markdown: str) -> str:
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
