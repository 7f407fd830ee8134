"""What bfloat16 costs: the digits trained and evaluated in float32 and in bfloat16, each with each.

    python experiments/bfloat16.py [--quick] [--seeds 3] [--out=DIR]

configs/eps.py; parameters, losses, schedules, normalizations and the softmax of attention are float32 in both,
only the network's layers differ. Evaluating the same weights in both is a difference of rounding alone;
training in both is one of rounding that training has amplified, as another seed would. Writes results.json and
table.md. --quick trains for seconds; its numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vdm_jax as vdm
from vdm_jax.config import default, to_dict
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16")


def config_of(dtype: str, seed: int, quick: bool) -> Any:
    config = default()
    config.seed = seed
    config.model.network.dtype = dtype
    config.sample.count, config.sample.steps = 4, 10  # the run's own picture is not used
    if quick:
        config.model.network.channels, config.model.network.blocks = (8,), 1
        config.train.batch_size, config.train.steps, config.evaluate.draws = 8, 3, 1
    return config


def evaluated(trained: vdm.TrainedModel, dtype: str, seed: int, quick: bool) -> float:
    """Test bits/dim of trained weights in a network of another precision."""
    job = Run(to_dict(config_of(dtype, seed, quick)), trained.statistics)
    return job.trained(trained.state, trained.workdir, trained.layout).bits_per_dim()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    enable_compilation_cache()
    if options.quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        options.out, options.seeds = options.out or Path(tempfile.mkdtemp()), 1
    out = options.out or HERE / "results" / "bfloat16"
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for dtype in DTYPES:
            found[dtype] = {other: [] for other in DTYPES}
            for seed in range(options.seeds):
                config = config_of(dtype, seed, options.quick)
                trained = vdm.train(config, Path(runs) / f"{dtype}_{seed}")
                for other in DTYPES:
                    found[dtype][other].append(evaluated(trained, other, seed, options.quick))
    lines = [
        "| trained in | evaluated in float32 | in bfloat16 | difference |",
        "|---|---|---|---|",
    ]
    for dtype, bounds in found.items():
        single, half = (np.asarray(bounds[other]) for other in DTYPES)
        gap = half - single
        lines.append(
            f"| {dtype} | {single.mean():.4f} ({single.min():.4f} to {single.max():.4f}) | {half.mean():.4f} | "
            f"{gap.mean():+.5f} (at most {np.abs(gap).max():.5f}) |"
        )
    lines += [
        "",
        f"Test bits/dim of configs/eps.py, {options.seeds} seeds (smallest to largest).",
        "",
    ]
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {
        "device": jax.devices()[0].device_kind,
        "config": to_dict(config_of(DTYPES[0], 0, False)),
    }
    (out / "results.json").write_text(json.dumps(about | {"bits_per_dim": found}, indent=1) + "\n")
    (out / "table.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
