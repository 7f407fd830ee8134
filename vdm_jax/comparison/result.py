"""The results of a comparison: numbers by variant, as a table, as files and as figures."""

import base64
import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.comparison import tables
from vdm_jax.comparison.figure import overview, sample_rows
from vdm_jax.comparison.gradients import Gradients
from vdm_jax.comparison.measure import Bounds, known_mean
from vdm_jax.effective_weights import EffectiveWeights
from vdm_jax.models import Statistics
from vdm_jax.runtime.files import finite_json, to_json, write_file, write_text


class Estimate(NamedTuple):
    """A number with its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, dict[str, Any]]):
    """The result of `compare`: a mapping from variants, such as "eps_none_elbo", to what is known of them.

    Arrays have the axes [V, S, ...]: variants, in the order of `names`, and seeds.

    Attributes:
      about: what was compared on what, and by which versions: JSON.
      variants: by name, what each consists of: "parameterization", "output_scale", "weighting".
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
      model_state: of learned training times, [V, S, ...], or None.
      statistics: of the training data, which the models know.
    """

    about: dict[str, Any]
    variants: dict[str, dict[str, str]]
    reference: str
    seeds: list[int]
    edges: np.ndarray
    bounds: Bounds
    weights: dict[str, EffectiveWeights]
    output_gains: np.ndarray
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
    model_state: Any
    statistics: Statistics

    # ------------------------------------------------------------ numbers

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
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
        """Return how far the bound is above that of another variant (`reference` by default), bits/dim.

        The two are paired: they share data, times and noise, example by example and seed by seed.
        """
        return self._estimate(self._examples(name) - self._examples(other or self.reference))

    def __getitem__(self, name: str) -> dict[str, Any]:
        i = self._index(name)
        parts = {part: float(values[i].mean()) for part, values in self.parts().items()}
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
        return finite_json(found)

    # ------------------------------------------------------------ words

    def table(self, timing: bool = False) -> str:
        """Return a Markdown table with a line for each variant and a legend; see `tables.table`."""
        return tables.table(self, timing)

    def bins_table(self) -> str:
        """Return a Markdown table of the matching term's bits/dim by log-SNR."""
        return tables.bins_table(self)

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
        texts = self.table(timing=True), self.bins_table()
        html = "".join(map(tables.as_html, texts))
        return f'{html}<img alt="comparison" src="data:image/png;base64,{data}"/>'

    # ------------------------------------------------------------ plots and files

    def plot(self) -> Any:
        """Draw the comparison: a matplotlib `Figure` that a notebook shows."""
        return overview(self)

    def plot_samples(self, steps: int | None = None) -> Any:
        """Draw samples of each variant of the first seed, from the same noise; by default of the most steps."""
        return sample_rows(self, max(self.samples, default=0) if steps is None else steps)

    def save(self, folder: str | Path) -> list[Path]:
        """Write comparison.json, .csv, .md and .png and, of images, samples.png; return where they are.

        The .csv has a line for each variant and seed. Each file is written whole or not at all, in place of a
        file or a link of its name.

        Raises:
          OSError: the folder or a file cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows(tables.csv_rows(self))
        texts = {
            "comparison.json": to_json(self.to_dict()) + "\n",
            "comparison.csv": table.getvalue(),
            "comparison.md": f"{self.table()}\n\n{self.bins_table()}\n",
        }
        plots = {"comparison.png": self.plot}
        if self.samples:
            plots["samples.png"] = self.plot_samples
        for name, text in texts.items():
            write_text(folder / name, text)
        for name, draw in plots.items():
            figure = draw()
            write_file(folder / name, partial(figure.savefig, format="png", dpi=150))
        return [folder / name for name in (*texts, *plots)]

    def _index(self, name: str) -> int:
        if name not in self.variants:
            raise KeyError(f"{name!r} is none of {', '.join(self.variants)}")
        return self.names.index(name)

    def parts(self) -> dict[str, np.ndarray]:
        """Return the means of the parts of the bound over the examples, [V, S] each, by name."""
        return {part: values.mean(-1) for part, values in self.bounds.parts._asdict().items()}

    def _examples(self, name: str) -> np.ndarray:
        i = self._index(name)
        return sum(part[i] for part in self.bounds.parts)  # type: ignore[return-value]

    def _estimate(self, values: np.ndarray) -> Estimate:
        """Return the mean and the standard errors of values [S, n]."""
        over = values.mean(-1) if len(self.seeds) > 1 else values[0]
        error = over.std(ddof=1) / np.sqrt(len(over)) if len(over) > 1 else np.nan
        return Estimate(float(values.mean()), float(error))

    def _bins(self, i: int) -> dict[str, list[float]]:
        bins = {"bits_per_dim": self.bounds.matching[i].mean(0)}
        bins["output_gain"] = self.output_gains[i]
        if self.gradients is not None:
            bins["gradient_norm"] = known_mean(self.gradients.norm[i], 0)
            bins["gradient_deviation"] = self.gradients.deviation[i].mean(0)
        return {key: np.asarray(value, float).tolist() for key, value in bins.items()}
