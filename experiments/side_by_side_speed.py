"""Speed-up of training runs side by side over training them one after the other.

    python experiments/side_by_side_speed.py [--quick] [--seeds 2] [--steps 40] [--repeats 5] [--out DIR]

Trains five parameterizations × two seeds on the digits, as one vmapped program and as ten runs (five programs,
each run for its two seeds), for an MLP and for a small U-Net. Both take turns in one process. The table has the
ratio of their times for the same steps, as the median, the smallest and the largest of the repeats, and the
ratio of their compilation times. Writes results.json and table.md. --quick measures for seconds; its numbers
mean nothing.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
from _common import (
    argument_parser,
    environment,
    initial_state,
    markdown_table,
    output_folder,
    set_up_jax,
    write_results,
)

from vdm_jax.config import default, resolve
from vdm_jax.data import load_dataset
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.settings import Settings
from vdm_jax.training.dispatch import dispatcher, make_layout

ROWS = ("mean", "x0", "eps", "v", "score")
NETWORKS = {
    "MLP, 3 × 256": {"name": "mlp", "width": 256, "depth": 3},
    "U-Net, (16, 32)": {"name": "unet", "channels": (16, 32), "blocks": 1},
}
DISPATCH = {"mlp": 20, "unet": 1}  # steps


def settings_of(network: dict[str, Any], seeds: int) -> Settings:
    """Return the settings of the sweep."""
    config = default()
    with config.model.ignore_type():
        config.model.network = network
    config.model.timesteps = 1000
    config.model.time_sampler = "uniform"  # so that all runs train at the same times
    config.sweep.parameterizations = ROWS
    config.sweep.seeds = tuple(range(seeds))
    config.train.steps_per_dispatch = DISPATCH[network["name"]]
    return resolve(config)


class Runner:
    """A run or a sweep with its compiled step, its state, and the batches that every dispatch reuses."""

    def __init__(self, job: Run | Sweep, split: Any, compiled: Any = None):
        train, layout = job.settings.train, make_layout("jit")
        stack = train.steps_per_dispatch
        self.state = initial_state(job, layout)
        options = {"batch_size": train.batch_size, "start_step": 0, "stop_step": stack}
        self.batches = next(job.batches(split, stack=stack, **options))
        start = time.perf_counter()
        self.step = compiled or dispatcher(layout, job.step(layout), self.state, stack)
        self.run(stack)
        self.compiling = time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Train; return the seconds that the steps took."""
        start = time.perf_counter()
        for _ in range(0, steps, len(self.batches.index)):
            self.state, metrics = self.step(self.state, self.batches)
        jax.block_until_ready((self.state.params, metrics))
        return time.perf_counter() - start


def measure(network: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the times of the sweep and of its runs, and their ratios."""
    dataset, settings = load_dataset("digits"), settings_of(network, options.seeds)
    statistics = statistics_of(settings.model, dataset)
    sweep = Sweep(settings, statistics)
    together = Runner(sweep, dataset.train)
    apart: dict[str, Runner] = {}
    compiled: dict[str, Any] = {}  # by parameterization, for all seeds
    for name, single in sweep.runs.items():
        parameterization = single.model["parameterization"]
        run = Run(single, statistics)
        apart[name] = Runner(run, dataset.train, compiled.get(parameterization))
        compiled[parameterization] = apart[name].step
    seconds: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(options.repeats):
        seconds["apart"].append(sum(runner.run(options.steps) for runner in apart.values()))
        seconds["together"].append(together.run(options.steps))
    return {
        "network": network,
        "runs": len(apart),
        "steps": options.steps,
        "seconds": seconds,
        "speed-up": [a / b for a, b in zip(seconds["apart"], seconds["together"], strict=True)],
        "compiling": sum(runner.compiling for runner in apart.values()) / together.compiling,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table: a row per network."""
    rows = []
    for name, row in results.items():
        ratios = np.asarray(row["speed-up"])
        cells = [name, str(row["runs"]), f"{np.median(ratios):.2f}"]
        cells += [f"{ratios.min():.2f}", f"{ratios.max():.2f}", f"{row['compiling']:.1f}"]
        rows.append(cells)
    columns = ["network", "runs", "speed-up, median", "from", "to", "compilation"]
    return markdown_table(columns, rows)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    set_up_jax(options.quick, cache=False)  # compilation is measured
    networks = NETWORKS
    if options.quick:
        options.repeats, options.seeds, options.steps = 2, 1, 20
        networks = dict(list(NETWORKS.items())[:1])
    out = output_folder(options, "side_by_side_speed")

    results = {name: measure(network, options) for name, network in networks.items()}
    about = environment("versions", "python", "machine", "device")
    write_results(out, about | {"rows": results}, table(results))


if __name__ == "__main__":
    main()
