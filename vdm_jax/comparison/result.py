"""Results of a comparison: numbers by variant, a table, files and figures."""

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
from vdm_jax.comparison.figure import Picture, overview, sample_rows
from vdm_jax.comparison.gradients import Gradients
from vdm_jax.comparison.measure import Bounds, known_mean
from vdm_jax.effective_weights import EffectiveWeights
from vdm_jax.models import Statistics
from vdm_jax.runtime.files import finite_json, to_json, write_file, write_text
from vdm_jax.training.evaluation import standard_error
from vdm_jax.typing import PyTree


class Estimate(NamedTuple):
    """A number with its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, dict[str, Any]]):
    """The result of `compare`: a mapping from variants, such as "eps_none_elbo", to their numbers.

    Arrays have the axes [V, S, ...]: variants, in the order of `names`, and seeds.

    Attributes:
      about: data, settings and versions of the comparison: JSON.
      variants: by name, the components "parameterization", "output_scale" and "weighting" of each variant.
      reference: variant that the others are compared with.
      seeds: seeds of the runs.
      edges: [K + 1], edges of the bins of γ = −log SNR.
      bounds: bounds on the test split, bits/dim.
      weights: effective weights of the training losses, by noise level.
      output_gains: [V, K], change of x̂_0 per unit of the network's output, in the middle of each bin.
      gradients, at_start: gradients after and before training, or None.
      quality: distances [V, S] of samples from data, by number of sampling steps.
      distance: name of this distance.
      real: the same distance for as many real examples.
      samples: [V, S, n, *d], by number of sampling steps.
      curve: [C, V, S], training bound in bits/dim, averaged over the steps up to each of `curve_steps`.
      curve_steps: [C], the last step of each average.
      skipped: [V, S], number of training steps whose loss or gradient was not finite.
      milliseconds: [V], time of a training step of each variant, run alone, or None.
      seconds: durations of training and measurements.
      notes: notes for the reader of the results.
      params: EMA weights, a tree of arrays [V, S, ...].
      model_state: state of learned training times, arrays [V, S, ...], or None.
      statistics: statistics of the training data that the models were built with.
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
    params: PyTree
    model_state: PyTree
    statistics: Statistics

    # ------------------------------------------------------------ numbers

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return [*self.variants]

    @property
    def log_snr(self) -> np.ndarray:
        """Log-SNR λ = −γ in the middle of each bin, falling; [K]."""
        return -(self.edges[1:] + self.edges[:-1]) / 2

    @property
    def bits_per_dim(self) -> np.ndarray:
        """Bounds of the runs, [V, S]."""
        return sum(part.mean(-1) for part in self.bounds.parts)  # type: ignore[return-value]

    def bound(self, name: str) -> Estimate:
        """Return the bound of a variant, bits/dim. Its error is over seeds, or for one seed over examples."""
        return self._estimate(self._examples(name))

    def difference(self, name: str, other: str | None = None) -> Estimate:
        """Return the bound of a variant minus that of another (`reference` by default), bits/dim.

        The variants are paired: they share data, times and noise, example by example and seed by seed.
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
        weights = self.weights[name]._asdict()
        row["weights"] = {key: np.asarray(value).tolist() for key, value in weights.items()}
        row["quality"] = {
            str(steps): {"mean": float(values[i].mean()), "seeds": values[i].tolist()}
            for steps, values in self.quality.items()
        }
        row["skipped_steps"] = int(self.skipped[i].sum())
        if self.gradients is not None:
            cosines = known_mean(self.gradients.between_bins[i], 0)
            row["gradient_cosine_between_bins"] = cosines.tolist()
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self.variants)

    def __len__(self) -> int:
        return len(self.variants)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON, except for the samples and the weights of the networks."""
        content: dict[str, Any] = {
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
            times = dict(zip(self.names, self.milliseconds.tolist(), strict=True))
            content["timing"]["milliseconds_per_step"] = times
        if self.at_start is not None:
            cosines = self.at_start.between_variants.tolist()
            content["gradient_cosine_between_variants_at_start"] = cosines
        return finite_json(content)

    # ------------------------------------------------------------ tables

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
        html = tables.as_html(self.table(timing=True)) + tables.as_html(self.bins_table())
        return f'{html}<img alt="comparison" src="data:image/png;base64,{data}"/>'

    # ------------------------------------------------------------ plots and files

    def plot(self) -> Picture:
        """Draw the comparison as a matplotlib `Figure`, which notebooks show."""
        return overview(self)

    def plot_samples(self, steps: int | None = None) -> Picture:
        """Draw samples of each variant from the same noise; by default those with the most steps."""
        return sample_rows(self, max(self.samples, default=0) if steps is None else steps)

    def save(self, folder: str | Path) -> list[Path]:
        """Write comparison.json, .csv, .md and .png, and samples.png if there are samples; return the paths.

        The .csv has a line for each variant and seed. Each file is written whole or not at all and replaces a
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
        """Return the bounds of a variant on the test examples, [S, n]."""
        i = self._index(name)
        return sum(part[i] for part in self.bounds.parts)  # type: ignore[return-value]

    def _estimate(self, values: np.ndarray) -> Estimate:
        """Return the mean of values [S, n], and its standard error over the seeds or the examples."""
        # over the seeds if possible: the examples of one seed share its weights, whose noise they do not show
        sample = values.mean(-1) if len(self.seeds) > 1 else values[0]
        return Estimate(float(values.mean()), standard_error(sample))

    def _bins(self, i: int) -> dict[str, list[float]]:
        """Return the results of a variant by bin."""
        bins = {"bits_per_dim": self.bounds.matching[i].mean(0)}
        bins["output_gain"] = self.output_gains[i]
        if self.gradients is not None:
            bins["gradient_norm"] = known_mean(self.gradients.norm[i], 0)
            bins["gradient_deviation"] = self.gradients.deviation[i].mean(0)
        return {key: np.asarray(value, float).tolist() for key, value in bins.items()}
