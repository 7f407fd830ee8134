"""Test bounds of every parameterization with both output scales on the embedded digits.

    python experiments/digits_parameterizations.py [--quick] [--out=DIR] [--runs=DIR]
                                                   [--output_scales unit_variance none] [--rows eps v ...]

The tables of the docs are those of `--output_scales unit_variance` and of `--output_scales none --rows mean
score --out=experiments/results/digits_unscaled`. All runs share the network, the base, the order of the data
and the number of steps; `mean` has T = 1000, the others continuous time. Writes results.json (numbers, configs,
library versions) and table.md, with the bits/dim of the test split without a network. --quick trains each run
for seconds, to test that everything works; it writes nothing, and its numbers mean nothing.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    all_images,
    argument_parser,
    cpu_name,
    environment,
    markdown_table,
    output_folder,
    set_up_jax,
    shrink,
    write_results,
)

import vdm_jax
from vdm_jax.config import default
from vdm_jax.data import level_counts, load_dataset
from vdm_jax.models.statistics import fit_statistics


def config_of(parameterization: str, output_scale: str, quick: bool) -> Any:
    """Return the config of one row."""
    config = default()
    config.model.parameterization = parameterization
    config.model.output_scale = output_scale
    if parameterization == "mean":
        config.model.timesteps = 1000
    if quick:
        shrink(config)
        config.sample.count = 4
        config.sample.steps = 2
    return config


def run(parameterization: str, output_scale: str, quick: bool, folder: Path) -> dict[str, Any]:
    """Train and evaluate one row."""
    start = time.time()
    config = config_of(parameterization, output_scale, quick)
    workdir = folder / f"{parameterization}_{output_scale}"
    trained = vdm_jax.train(config, workdir)
    test = json.loads((workdir / "evaluation.json").read_text())["test"]
    return {
        "parameterization": parameterization,
        "output_scale": output_scale,
        "base": config.model.base,
        "timesteps": config.model.timesteps,
        "seconds": round(time.time() - start),
        "test": test,
        "config": trained.config,
    }


def without_network() -> dict[str, float]:
    """Return the test bits/dim of uniform levels and of the per-pixel histogram of the training split."""
    dataset = load_dataset("digits")
    levels = dataset.levels or 0
    log_counts = fit_statistics(level_counts(dataset.train.images, levels)).log_counts
    index = all_images(dataset.test)[..., None].astype(int)
    nats = -np.take_along_axis(np.asarray(log_counts)[None], index, -1).mean()
    return {"uniform": float(np.log2(levels)), "per-pixel histogram": float(nats / np.log(2))}


def table(rows: list[dict[str, Any]], references: dict[str, float]) -> str:
    """Return the table of test bounds, with the bits/dim of the references below."""
    columns = ["parameterization", "output scale", "base", "T"]
    columns += ["test bits/dim", "reconstruction", "matching", "prior"]
    lines = []
    for row in rows:
        test = row["test"]
        cells = [row["parameterization"], row["output_scale"], row["base"]]
        cells += [str(row["timesteps"] or "∞")]
        cells += [f"{test['bits_per_dim']:.3f} ± {test['standard_error']:.3f}"]
        cells += [f"{test[part]:.3f}" for part in ("reconstruction", "matching", "prior")]
        lines.append(cells)
    listed = ", ".join(f"{name} {bits:.3f}" for name, bits in references.items())
    return markdown_table(columns, lines, f"Without a network: {listed} bits/dim.")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs, to resume them; a temporary one by default"
    )
    parser.add_argument("--output_scales", nargs="+", default=["unit_variance", "none"])
    parser.add_argument(
        "--rows", nargs="+", default=list(vdm_jax.parameterizations.PARAMETERIZATIONS)
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    folder = options.runs or Path(tempfile.mkdtemp())
    cases = [
        (name, output_scale) for output_scale in options.output_scales for name in options.rows
    ]
    rows = [run(name, output_scale, options.quick, folder) for name, output_scale in cases]
    rows.sort(key=lambda row: (row["output_scale"] != "unit_variance", row["parameterization"]))
    references = without_network()
    text = table(rows, references)
    if options.quick:
        print(text)
        return
    about = environment("versions", "python") | {"machine": cpu_name(), "quick": options.quick}
    about |= {"without_network": references, "rows": rows}
    write_results(output_folder(options, "digits_parameterizations"), about, text)


if __name__ == "__main__":
    main()
