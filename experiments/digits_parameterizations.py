"""Train every parameterization with both output scales on the embedded digits and tabulate their test bounds.

    python experiments/digits_parameterizations.py [--quick] [--out=DIR] [--runs=DIR]
                                                   [--output_scales unit_variance none] [--rows eps v ...]

The tables of the docs are those of `--output_scales unit_variance`, and of
`--output_scales none --rows mean score --out=experiments/results/digits_unscaled`.
Same network, base, data order and number of steps for all; `mean` with T = 1000, the others in continuous time.
Writes results.json (numbers, configs, library versions) and table.md, with what the test split costs without a
network. --quick trains each for seconds, to see that everything runs; its numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

import vdm_jax
from vdm_jax.config import default
from vdm_jax.data import level_counts, load_dataset
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions

HERE = Path(__file__).resolve().parent


def config_of(parameterization: str, output_scale: str, quick: bool):
    config = default()
    config.model.parameterization = parameterization
    config.model.output_scale = output_scale
    if parameterization == "mean":
        config.model.timesteps = 1000
    if quick:
        config.train.steps = 4
        config.train.batch_size = 8
        config.model.network.channels = (8,)
        config.model.network.blocks = 1
        config.evaluate.draws = 1
        config.sample.count = 4
        config.sample.steps = 2
    return config


def run(parameterization: str, output_scale: str, quick: bool, folder: Path) -> dict:
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
    """Test bits/dim of equally likely levels, and of each position's histogram of the training split."""
    dataset = load_dataset("digits")
    levels, images = dataset.levels or 0, dataset.test.images
    log_counts = fit_statistics(level_counts(dataset.train.images, levels)).log_counts
    index = images[np.arange(len(images))][..., None].astype(int)
    nats = -np.take_along_axis(np.asarray(log_counts)[None], index, -1).mean()
    return {"uniform": float(np.log2(levels)), "per-pixel histogram": float(nats / np.log(2))}


def table(rows: list[dict], known: dict[str, float]) -> str:
    lines = [
        "| parameterization | output scale | base | T | test bits/dim | reconstruction | matching | prior |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        test = row["test"]
        lines.append(
            f"| {row['parameterization']} | {row['output_scale']} | {row['base']} | {row['timesteps'] or '∞'} "
            f"| {test['bits_per_dim']:.3f} ± {test['standard_error']:.3f} | {test['reconstruction']:.3f} "
            f"| {test['matching']:.3f} | {test['prior']:.3f} |"
        )
    words = ", ".join(f"{name} {bits:.3f}" for name, bits in known.items())
    return "\n".join([*lines, "", f"Without a network: {words} bits/dim.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "digits_parameterizations")
    parser.add_argument(
        "--runs", type=Path, help="folder for the runs, to resume; else a temporary one"
    )
    parser.add_argument("--output_scales", nargs="+", default=["unit_variance", "none"])
    parser.add_argument(
        "--rows", nargs="+", default=list(vdm_jax.parameterizations.PARAMETERIZATIONS)
    )
    options = parser.parse_args()
    enable_compilation_cache()
    folder = options.runs or Path(tempfile.mkdtemp())
    cases = [
        (name, output_scale) for output_scale in options.output_scales for name in options.rows
    ]
    rows = [run(name, output_scale, options.quick, folder) for name, output_scale in cases]
    rows.sort(key=lambda row: (row["output_scale"] != "unit_variance", row["parameterization"]))
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {"machine": f"{platform.machine()} CPU", "quick": options.quick}
    about["without_network"] = known = without_network()
    if options.quick:
        print(table(rows, known))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
    (options.out / "table.md").write_text(table(rows, known))
    print(table(rows, known))


if __name__ == "__main__":
    main()
