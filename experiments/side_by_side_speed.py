"""How much faster is it to train runs side by side than one after the other?

    python experiments/side_by_side_speed.py [--quick] [--steps 40] [--repeats 5] [--out DIR]

Five parameterizations × two seeds on the digits, as one vmapped program and as ten runs (five programs, each
run for its two seeds), for an MLP and for a small U-Net. Both take turns in one process; the ratio of their
times for the same steps is reported with the smallest and the largest of the repeats, and so is that of their
compilations. Writes results.json and table.md. --quick measures for seconds; its numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.config import default, to_dict
from vdm_jax.data import load_dataset
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.layout import shardings

HERE = Path(__file__).resolve().parent
ROWS = ("mean", "x0", "eps", "v", "score")
NETWORKS = {
    "MLP, 3 × 256": {"name": "mlp", "width": 256, "depth": 3},
    "U-Net, (16, 32)": {"name": "unet", "channels": (16, 32), "blocks": 1},
}
DISPATCH = {"mlp": 20, "unet": 1}  # steps


def config_of(network: dict[str, Any], seeds: int) -> dict[str, Any]:
    config = default()
    with config.model.ignore_type():
        config.model.network = network
    config.model.timesteps = 1000
    config.model.time_sampler = "uniform"  # the same ones for all rows
    config.sweep.parameterizations = ROWS
    config.sweep.seeds = tuple(range(seeds))
    config.train.steps_per_dispatch = DISPATCH[network["name"]]
    return to_dict(config)


class Runner:
    """A compiled job, its state, and a stack of batches that it is given again and again."""

    def __init__(self, job: Run | Sweep, split: Any, compiled: Any = None):
        train, layout = job.config["train"], make_layout("jit")
        stack = train["steps_per_dispatch"]
        places = shardings(layout, jax.eval_shape(job.start))
        self.state = jax.jit(job.start, out_shardings=places)()
        options = {"batch_size": train["batch_size"], "start_step": 0, "stop_step": stack}
        self.batches = next(job.batches(split, stack=stack, **options))
        began = time.perf_counter()
        self.step = compiled or dispatcher(layout, job.step(layout), self.state, stack)
        self.run(stack)
        self.compiling = time.perf_counter() - began

    def run(self, steps: int) -> float:
        """Seconds that the steps took."""
        began = time.perf_counter()
        for _ in range(0, steps, len(self.batches.index)):
            self.state, metrics = self.step(self.state, self.batches)
        jax.block_until_ready((self.state.params, metrics))
        return time.perf_counter() - began


def measure(network: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    dataset, config = load_dataset("digits"), config_of(network, options.seeds)
    statistics = statistics_of(config, dataset)
    many = Sweep(config, statistics)
    together = Runner(many, dataset.train)
    apart: dict[str, Runner] = {}
    by_row: dict[str, Any] = {}
    for name, single in many.configs.items():
        row = single["model"]["parameterization"]
        apart[name] = Runner(Run(single, statistics), dataset.train, by_row.get(row))
        by_row[row] = apart[name].step
    times = []
    for _ in range(options.repeats):
        each = sum(runner.run(options.steps) for runner in apart.values())
        times.append((together.run(options.steps), each))
    ratios = [each / all_ for all_, each in times]
    return {
        "network": network,
        "runs": len(apart),
        "steps": options.steps,
        "seconds": {"together": [t for t, _ in times], "apart": [t for _, t in times]},
        "speed-up": ratios,
        "compiling": sum(r.compiling for r in list(apart.values())) / together.compiling,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network | runs | speed-up, median | from | to | compilation |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        ratios = np.asarray(row["speed-up"])
        cells = [name, str(row["runs"]), f"{np.median(ratios):.2f}"]
        cells += [f"{ratios.min():.2f}", f"{ratios.max():.2f}", f"{row['compiling']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "side_by_side_speed")
    options = parser.parse_args()
    networks = NETWORKS
    if options.quick:
        options.out, options.repeats, options.seeds = Path(tempfile.mkdtemp()), 2, 1
        options.steps = 20
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        networks = dict(list(NETWORKS.items())[:1])

    found = {name: measure(network, options) for name, network in networks.items()}
    print(table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {"machine": platform.machine(), "device": device.device_kind}
    (options.out / "results.json").write_text(json.dumps(about | {"rows": found}, indent=2) + "\n")
    (options.out / "table.md").write_text(table(found))


if __name__ == "__main__":
    main()
