"""Cost of bfloat16 in bits/dim: the digits trained in float32 and in bfloat16, each evaluated in both.

    python experiments/bfloat16.py [--quick] [--seeds 3] [--out=DIR]

Trains configs/eps.py. Parameters, losses, schedules, normalizations and the softmax of attention stay in
float32; only the layers of the network change their type. Evaluations of the same weights differ by rounding
alone. Trainings differ by rounding that training amplifies, as another seed would. Writes results.json and
table.md. --quick trains for seconds; its numbers mean nothing.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    argument_parser,
    environment,
    markdown_table,
    output_folder,
    set_up_jax,
    shrink,
    write_results,
)

import vdm_jax as vdm
from vdm_jax.config import default, resolve, to_dict
from vdm_jax.runs.sweep import Run

DTYPES = ("float32", "bfloat16")


def config_of(dtype: str, seed: int, quick: bool) -> Any:
    """Return the config of the network in one type."""
    config = default()
    config.seed = seed
    config.model.network.dtype = dtype
    config.sample.count, config.sample.steps = 4, 10  # the samples of the run are not used
    if quick:
        shrink(config)
    return config


def evaluate(trained: vdm.TrainedModel, dtype: str, seed: int, quick: bool) -> float:
    """Return the test bits/dim of trained weights in a network of the given type."""
    run = Run(resolve(config_of(dtype, seed, quick)), trained.statistics)
    return run.trained(trained.state, trained.workdir, trained.layout).bits_per_dim()


def table(bounds: dict[str, dict[str, list[float]]], seeds: int) -> str:
    """Return the table of bounds by the type in training and the type in evaluation."""
    rows = []
    for dtype, by_evaluation in bounds.items():
        single, half = (np.asarray(by_evaluation[name]) for name in DTYPES)
        gap = half - single
        cells = [dtype, f"{single.mean():.4f} ({single.min():.4f} to {single.max():.4f})"]
        cells += [f"{half.mean():.4f}"]
        cells += [f"{gap.mean():+.5f} (at most {np.abs(gap).max():.5f})"]
        rows.append(cells)
    columns = ["trained in", "evaluated in float32", "in bfloat16", "difference"]
    caption = f"Test bits/dim of configs/eps.py, {seeds} seeds (smallest to largest)."
    return markdown_table(columns, rows, caption)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    set_up_jax(options.quick)
    if options.quick:
        options.seeds = 1
    out = output_folder(options, "bfloat16")
    bounds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for dtype in DTYPES:
            bounds[dtype] = {name: [] for name in DTYPES}
            for seed in range(options.seeds):
                config = config_of(dtype, seed, options.quick)
                trained = vdm.train(config, Path(runs) / f"{dtype}_{seed}")
                for name in DTYPES:
                    bounds[dtype][name].append(evaluate(trained, name, seed, options.quick))
    about = environment("versions", "python", "device")
    about |= {"config": to_dict(config_of(DTYPES[0], 0, False))}
    write_results(out, about | {"bits_per_dim": bounds}, table(bounds, options.seeds), indent=1)


if __name__ == "__main__":
    main()
