"""One checkpoint, several numbers: the likelihood estimators on models of the embedded digits.

    python experiments/likelihood.py [--quick] [--seeds 3] [--configs eps] [--out DIR] [--runs DIR]

Trains the configs with each seed and evaluates each checkpoint on the test split with every estimator below.
Writes results.json (settings, numbers and seconds of all evaluations, library versions) and table.md, which has
means over the seeds ± the standard error over the seeds. --quick trains for seconds; its numbers mean nothing.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    CONFIGS,
    argument_parser,
    cpu_name,
    environment,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
    shrink,
    write_results,
)

import vdm_jax as vdm
from vdm_jax.runs.estimates import estimate

COMMAND = "python experiments/likelihood.py"

ESTIMATORS: list[dict[str, Any]] = [
    {"name": "elbo", "timesteps": None},
    {"name": "elbo", "timesteps": 1000},
    {"name": "elbo", "timesteps": 100},
    {"name": "tuned", "timesteps": 100},
    {"name": "importance", "timesteps": 100, "samples": 1},
    {"name": "importance", "timesteps": 100, "samples": 10},
    {"name": "importance", "timesteps": 100, "samples": 10, "variance": "fitted"},
    {"name": "elbo", "timesteps": 10},
    {"name": "tuned", "timesteps": 10},
    {"name": "importance", "timesteps": 10, "samples": 10, "variance": "fitted"},
    {"name": "ode", "steps": 64, "check_steps": True},
    {"name": "ode", "steps": 64, "samples": 4},
    {"name": "ode", "steps": 64, "dequantization": "truncated_normal"},
    {"name": "ode", "steps": 64, "dequantization": "uniform"},
]
QUICK = [
    {"name": "tuned", "timesteps": 4},
    {"name": "importance", "timesteps": 2, "samples": 2},
    {"name": "ode", "steps": 2, "check_steps": True},
]


def words(spec: dict[str, Any]) -> str:
    """Return a spec in words, for the table."""
    if spec["name"] == "ode":
        samples = spec.get("samples", 1)
        return f"ode, {spec.get('dequantization', 'decoder')}" + (
            f", M = {samples}" if samples > 1 else ""
        )
    steps = "∞" if spec["timesteps"] is None else spec["timesteps"]
    samples = f", M = {spec['samples']}" if "samples" in spec else ""
    tuned = ", tuned variance" if spec.get("variance") == "fitted" else ""
    return f"{spec['name']}, T = {steps}{samples}{tuned}"


def table(rows: list[dict[str, Any]], names: list[str], specs: list[dict[str, Any]]) -> str:
    """Return the bounds of all estimators, a column for each config."""
    lines = []
    for i, spec in enumerate(specs):
        cells = [words(spec)]
        for name in names:
            results = [row["estimates"][i] for row in rows if row["config"] == name]
            values = np.asarray([result["bits_per_dim"] for result in results])
            # over the seeds, or for a single seed over the examples
            error = results[0]["standard_error"]
            if len(values) > 1:
                error = values.std(ddof=1) / np.sqrt(len(values))
            cells.append(f"{values.mean():.3f} ± {error:.3f}")
        first = next(row["estimates"][i] for row in rows if row["config"] == names[0])
        cells += [str(first["calls"]), f"{first['seconds']:.0f}"]
        lines.append(cells)
    return markdown_table(
        ["estimator", *(f"{n}, bits/dim" for n in names), "calls", "seconds"], lines
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--configs", nargs="+", default=["eps"])
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs, to resume them; a temporary one by default"
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "likelihood")
    specs = ESTIMATORS
    if options.quick:
        options.seeds, options.configs, specs = 1, ["eps"], QUICK
    folder = options.runs or Path(tempfile.mkdtemp())

    rows = []
    for seed in range(options.seeds):
        for name in options.configs:
            config = read_config(CONFIGS / f"{name}.py")
            if options.quick:
                shrink(config)
            config.seed = seed
            config.evaluate.estimators = tuple(specs)
            config.sample.count = 4  # the samples of the run are not used
            workdir = folder / f"{name}_seed{seed}"
            # the run itself is evaluated by the first estimator only
            trained = vdm.train(config, workdir, log=lambda _: None)
            estimates = estimate(trained, lambda line: print(line.split("\n")[0], flush=True))
            rows.append({"config": name, "seed": seed, "estimates": estimates})
    about = {"command": COMMAND} | environment("versions", "python") | {"machine": cpu_name()}
    write_results(out, about | {"rows": rows}, table(rows, options.configs, specs))


if __name__ == "__main__":
    main()
