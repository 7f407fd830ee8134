"""Training time to a test bound: the shipped config, the settings of the paper, and single replacements.

    python experiments/time_to_bound.py [--quick] [--data mnist] [--variants ...] [--seeds 3] [--minutes 20]
                                        [--out DIR]

`paper` has the settings of Kingma et al. 2021 at a size for small images: flat U-Net, Fourier features, base
`input`, unscaled output, uniform times, learned linear γ, and their optimizer and weight average. The average
takes some 10,000 steps to forget the initial weights; a second curve therefore shows the last weights. `paper,
shipped optimizer` is the same model with the shipped optimizer and average. Every other variant is the shipped
config with the replacement that its name states (another optimizer has its own learning rate). `paper` trains
for --minutes (12.44 in the committed curves of MNIST), the others for the number of steps in the config. On
MNIST, all but `shipped` take a tenth of the steps, with a decay of that length; `shipped, 400 steps` is the
shipped config at that length.

The time of a step is measured first. Each of several processes times all variants, a few steps each in turn,
because a program can be more than ten per cent slower for the lifetime of its process; the result is the median
over all turns of all processes. Then each (variant, seed) is trained alone, and its averaged weights are
evaluated on the test split along the way. Seconds are steps times the time of a step, so that a busy machine
does not distort the curves; compilation and evaluation are not counted.

Writes steps.json, curves.jsonl (one line per variant and seed), table.md and curves.png. Runs that are in
curves.jsonl are not repeated. --quick trains for seconds; its numbers mean nothing.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _common import (
    CONFIGS,
    argument_parser,
    environment,
    initial_state,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
    shrink,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from ml_collections import ConfigDict

from vdm_jax.config import default, difference, resolve, to_dict
from vdm_jax.data import Dataset, Split, load_dataset
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.files import write_text
from vdm_jax.training.dispatch import dispatcher, make_layout

FLAT = {"name": "vdm_unet", "channels": 48, "blocks": 4, "dropout": 0.1, "fourier": (7, 8)}
INPUT = {"model.base": "input", "model.output_scale": "none"}
UNIFORM = {"model.time_sampler": "uniform"}
AVERAGE = {"train.ema_decay": 0.9999, "train.ema_warmup": False}
OPTIMIZER = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 2e-4,
    "optimizer.decay_steps": None,
    "optimizer.clip_norm": None,
}
BOUND = {"model.train_schedule": None, "model.weighting": {"name": "elbo"}}
LEARNED = BOUND | {"model.schedule": {"name": "learned_linear"}}
Row = dict[str, Any]  # replaced fields of a config, by path
Configs = dict[str, dict[str, Any]]  # by variant
Curve = dict[str, Any]  # steps, bits_per_dim at each of them, and how they came about
Curves = dict[str, dict[int, Curve]]  # by variant and seed
PAPER: Row = INPUT | UNIFORM | LEARNED | {"model.network": FLAT}
SYSTEMS: dict[str, Row] = {"shipped": {}, "paper": PAPER | AVERAGE | OPTIMIZER}
INGREDIENTS: dict[str, Row] = {
    "paper, shipped optimizer": PAPER,
    "base input, unscaled output": INPUT,
    "base levels": {"model.base": "levels"},
    "unscaled output": {"model.output_scale": "none"},
    "learned linear": LEARNED,
    "learned monotone": BOUND | {"model.schedule": {"name": "learned_monotone"}},
    "analytic times": {"model.time_sampler": "analytic"},
    "base levels, analytic times": {"model.base": "levels", "model.time_sampler": "analytic"},
    "flat network": {"model.network": FLAT},
    "no EMA warm-up": AVERAGE,
}
DIGITS_ROWS: dict[str, Row] = {
    "uniform times": UNIFORM,
    "Muon, rate 0.01": {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2},
}
SHORT, TENTH = "shipped, 400 steps", {"train.steps": 400, "optimizer.decay_steps": 400}
MNIST_ROWS: dict[str, Row] = {
    "times of the digits": BOUND | {"model.time_sampler": "learned"},
    "AdamW, rate 0.005": {"optimizer.name": "adamw", "optimizer.learning_rate": 5e-3},
    "flat network": {"model.network": FLAT | {"dropout": 0.0}},  # the shipped config has no dropout
}
VARIANTS: dict[str, dict[str, Row]] = {
    "digits": SYSTEMS | INGREDIENTS | DIGITS_ROWS,
    "mnist": SYSTEMS
    | {name: row | TENTH for name, row in ({SHORT: {}} | INGREDIENTS | MNIST_ROWS).items()},
}
LAST = "paper, last weights"  # a second curve of the same runs
EXAMPLES = {"mnist": 2000}  # test examples, with one draw each; on other data all of them
GROWTH = 1.3  # ratio of the steps of successive evaluations
PROCESSES, TURNS, STEPS_OF_A_TURN = 5, 3, 5
TICKS = (1.1, 1.15, 1.2, 1.3, 1.5, 1.74, 1.76, 1.8, 1.9, 2, 2.2, 2.5, 3, 4, 6, 10, 14)


def config_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the shipped config of the data set with the replacements of a variant."""
    path = CONFIGS / f"{options.data}.py"
    config = read_config(path) if path.exists() else default()
    with config.ignore_type(), config.unlocked():
        for field_path, value in VARIANTS[options.data][name].items():
            *sections, field = field_path.split(".")
            section = config
            for section_name in sections:
                section = section[section_name]
            section[field] = ConfigDict(value) if isinstance(value, dict) else value
        if options.data in EXAMPLES:
            config.evaluate.draws = 1
        if options.quick:
            shrink(config)
    return to_dict(config)


class Runner:
    """A run with its compiled step, its state and the number of steps taken."""

    def __init__(self, config: dict[str, Any], dataset: Dataset):
        settings = resolve(config)
        self.job = Run(settings, statistics_of(settings.model, dataset))
        self.dataset, self.layout = dataset, make_layout("jit")
        self.state = initial_state(self.job, self.layout)
        self.run = dispatcher(self.layout, self.job.step(self.layout), self.state, 1)
        self.step, self.batch_size = 0, settings.train.batch_size

    def train(self, stop: int) -> float:
        """Train up to step `stop`; return the seconds that it took."""
        batches = self.job.batches(
            self.dataset.train, batch_size=self.batch_size, start_step=self.step, stop_step=stop
        )
        pending: list[Any] = []
        start = time.perf_counter()
        for stack in batches:
            self.state, metrics = self.run(self.state, stack)
            pending.append(metrics["loss"])
            if len(pending) > 1:  # fetch losses one dispatch late, as the training loop does
                float(pending.pop(0)[-1])
        jax.block_until_ready(self.state)
        self.step = stop
        return time.perf_counter() - start

    def bound(self, weights: Any = None) -> float:
        """Return the test bits/dim of the averaged weights, or of the given ones."""
        state = self.state if weights is None else self.state._replace(ema_params=weights)
        model = self.job.trained(state, Path(), self.layout, lambda settings: self.dataset)
        return model.bits_per_dim("test")


# ------------------------------------------------------------ the time of a step


def time_in_turns(configs: Configs) -> dict[str, list[float]]:
    """Return the seconds of a step of each variant, once per turn."""
    dataset = load_dataset(**next(iter(configs.values()))["data"])
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    runners = {name: Runner(config, dataset) for name, config in configs.items()}
    for runner in runners.values():
        runner.train(1)  # compiles
    for _ in range(TURNS):
        for name, runner in runners.items():
            seconds[name].append(runner.train(runner.step + STEPS_OF_A_TURN) / STEPS_OF_A_TURN)
    return seconds


def time_in_processes(configs: Configs, quick: bool) -> dict[str, list[list[float]]]:
    """Return the seconds of a step of each variant, by process and turn.

    Each process starts with another variant.
    """
    names = [*configs]
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for i in range(1 if quick else PROCESSES):
        first = i * len(names) // PROCESSES
        order = names[first:] + names[:first]
        with multiprocessing.get_context("spawn").Pool(1, set_up_jax, (quick,)) as pool:
            turns = pool.apply(time_in_turns, ({name: configs[name] for name in order},))
        for name in names:
            seconds[name].append(turns[name])
    return seconds


def step_seconds(path: Path, names: set[str], configs: Configs, quick: bool) -> dict[str, Any]:
    """Return the seconds of a step, of these variants at least.

    If one of them is not in the file yet, all variants of the file are timed again together with the new ones.
    """
    measured = json.loads(path.read_text())["seconds"] if path.exists() else {}
    if names <= set(measured):
        return measured
    names = names | set(measured)
    measured = time_in_processes({n: c for n, c in configs.items() if n in names}, quick)
    about = environment("versions", "python", "device", "cores")
    path.write_text(json.dumps(about | {"seconds": measured}) + "\n")
    return measured


# ------------------------------------------------------------ the curves


def evaluation_steps(stop: int) -> list[int]:
    """Return the steps to evaluate at: nearly evenly spaced in their logarithm, and the last step."""
    steps, step = [], 25.0
    while step < stop:
        steps.append(round(step))
        step *= GROWTH
    return [*steps, stop]


def curve_names(variant: str) -> tuple[str, ...]:
    """Return the names of the curves that one run of a variant gives."""
    return (variant, LAST) if variant == "paper" else (variant,)


def variant_of(curve_name: str) -> str:
    """Return the variant whose run gave a curve."""
    return "paper" if curve_name == LAST else curve_name


def train_curves(name: str, runner: Runner, stop: int) -> dict[str, Curve]:
    """Train a run up to step `stop` and evaluate it along the way; return its curves by name."""
    bounds: dict[str, list[float]] = {curve_name: [] for curve_name in curve_names(name)}
    for step in evaluation_steps(stop):
        runner.train(step)
        bounds[name].append(runner.bound())
        if LAST in bounds:
            bounds[LAST].append(runner.bound(runner.state.params))
        print(f"  step {step}: {[round(values[-1], 4) for values in bounds.values()]}", flush=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(runner.state.params))
    shared = {"steps": evaluation_steps(stop), "parameters": parameters}
    return {curve_name: shared | {"bits_per_dim": values} for curve_name, values in bounds.items()}


def read_curves(path: Path) -> Curves:
    """Read the stored curves; ignore a last line that is cut off, so that its run is repeated.

    Raises:
      SystemExit: another line is damaged.
    """
    curves: Curves = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            curve = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise SystemExit(f"error: {path}, line {number}: {error}; remove it") from error
            print(f"{path}: ignored the last line, which is cut off", file=sys.stderr)
            break
        curves.setdefault(curve.pop("variant"), {})[curve.pop("seed")] = curve
    return curves


def store_curves(path: Path, seed: int, curves: dict[str, Curve]) -> None:
    """Add the curves of one run to the file, sorted by variant and seed.

    The file is read again first, because another process may have added runs of its own, and is replaced as a
    whole, so that a kill leaves the previous file.
    """
    stored = read_curves(path)
    for name, curve in curves.items():
        stored.setdefault(name, {})[seed] = curve
    lines = [
        json.dumps({"variant": name, "seed": seed} | curve) + "\n"
        for name, runs in sorted(stored.items())
        for seed, curve in sorted(runs.items())
    ]
    write_text(path, "".join(lines))


def is_stored(path: Path, name: str, seed: int, config: dict[str, Any], stop: int = 0) -> bool:
    """Return True if the file has all curves of a run of at least about `stop` steps.

    Raises:
      SystemExit: the stored run has another config, or is shorter by more than a tenth.
    """
    stored = read_curves(path)
    curves = [stored.get(curve_name, {}).get(seed) for curve_name in curve_names(name)]
    for curve in curves:
        if curve is None:
            continue
        steps = curve["steps"][-1]
        if difference(curve["config"], config, free=()) or steps < 0.9 * stop:
            raise SystemExit(
                f"error: {path}: {name}, seed {seed}: expected this config and {stop} steps or more, "
                f"found another or {steps} steps; remove it"
            )
    return None not in curves


def shown_curves(stored: Curves, options: argparse.Namespace, measured: dict[str, Any]) -> Curves:
    """Return the stored curves of --seeds whose steps were timed, in the order of the table.

    Raises:
      SystemExit: the runs of a variant were evaluated at different steps.
    """
    curves: Curves = {}
    for name in (*VARIANTS[options.data], LAST):
        runs = {seed: run for seed, run in stored.get(name, {}).items() if seed < options.seeds}
        if len({json.dumps(run["steps"]) for run in runs.values()}) > 1:
            stops = {f"seed {seed}": run["steps"][-1] for seed, run in runs.items()}
            raise SystemExit(
                f"error: {name}: expected runs of one length, found {stops}; remove some"
            )
        if runs and variant_of(name) in measured:
            curves[name] = runs
    return curves


# ------------------------------------------------------------ table and figure


def medians(measured: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a step of each curve."""
    seconds = {name: float(np.median(turns)) for name, turns in measured.items()}
    return seconds | {LAST: seconds["paper"]} if "paper" in seconds else seconds


def steps_of(curves: Curves, name: str) -> list[int]:
    """Return the steps at which the runs of a variant were evaluated."""
    return next(iter(curves[name].values()))["steps"]


def mean_bounds(curves: Curves, name: str, seeds: Iterable[int]) -> np.ndarray:
    """Return the bound at each evaluation of a variant, as the mean over seeds."""
    return np.mean([curves[name][seed]["bits_per_dim"] for seed in seeds], 0)


def seconds_to(
    curves: Curves, name: str, reference: str, margin: float, seconds: dict[str, float]
) -> float | None:
    """Return the training time until the mean bound is within `margin` of the reference's last bound.

    The means are over the seeds that both variants have, and the time is interpolated in its logarithm. It is
    infinite if the bound is never reached, and None without a common seed.
    """
    seeds = sorted({*curves[name]} & {*curves[reference]})
    if not seeds:
        return None
    target = mean_bounds(curves, reference, seeds)[-1] + margin
    bounds, steps = mean_bounds(curves, name, seeds), np.asarray(steps_of(curves, name), float)
    reached = np.flatnonzero(bounds <= target)
    if not len(reached):
        return float("inf")
    i = reached[0]
    if i > 0:
        fraction = (bounds[i - 1] - target) / (bounds[i - 1] - bounds[i])
        steps[i] = np.exp(np.interp(fraction, (0, 1), np.log(steps[i - 1 : i + 1])))
    return float(steps[i] * seconds[name])


def table(curves: Curves, measured: dict[str, Any], data: str) -> str:
    """Return the table: a row per curve, with its time until the last bounds of the reference curves."""
    seconds = medians(measured)
    shipped = SHORT if SHORT in curves else "shipped"
    margins = {"paper": 0.0, LAST: 0.0, shipped: 0.02}
    columns = ["variant", "parameters", "step, relative", "steps", "seeds"]
    columns += ["test bits/dim at the end"]
    columns += ["until paper's end", "until its last weights' end", f"until {shipped}'s end + 0.02"]
    rows = []
    for name, runs in curves.items():
        last = [run["bits_per_dim"][-1] for run in runs.values()]
        process_medians = np.median(measured[variant_of(name)], 1)
        ratios = process_medians / np.median(measured["shipped"], 1)
        cells = [
            name,
            f"{next(iter(runs.values()))['parameters']:,}",
            f"{seconds[name] / seconds['shipped']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{steps_of(curves, name)[-1]:,}",
            f"{len(runs)}",
            f"{np.mean(last):.3f} ({min(last):.3f} to {max(last):.3f})",
        ]
        for reference, margin in margins.items():
            known = reference in curves
            needed = seconds_to(curves, name, reference, margin, seconds) if known else None
            if needed is None:
                cells.append("")
                continue
            needed /= steps_of(curves, reference)[-1] * seconds[reference]
            cells.append("never" if np.isinf(needed) else f"× {needed:.2g}")
        rows.append(cells)
    caption = (
        f"{data}; mean over the seeds (smallest to largest); averaged weights. "
        "The last columns are the time of training until the mean bound is that of another row's end, "
        "in units of that row's time, of the seeds that both have. It is of training alone: steps times "
        "their median time, measured in turns within each of "
        f"{len(measured['shipped'])} processes (the ratio of the processes' medians, "
        "smallest to largest)."
    )
    return markdown_table(columns, rows, caption)


def figure(curves: Curves, seconds: dict[str, float]) -> Figure:
    """Draw the mean bound of each curve over seconds and over examples, with the range over its seeds."""
    drawing = Figure(figsize=(13, 4.4), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    for i, (name, runs) in enumerate(curves.items()):
        bounds = np.asarray([run["bits_per_dim"] for run in runs.values()])
        steps = np.asarray(steps_of(curves, name))
        batch_size = next(iter(runs.values()))["batch_size"]
        width = 2.2 if name in ("shipped", SHORT, "paper") else 1.1
        color, style = f"C{i % 10}", "--" if i >= 10 else "-"
        for axes, x in zip(panels, (steps * seconds[name], steps * batch_size), strict=True):
            axes.plot(x, bounds.mean(0), style, color=color, linewidth=width, label=name)
            axes.fill_between(x, bounds.min(0), bounds.max(0), color=color, alpha=0.15, linewidth=0)
    for axes, label in zip(panels, ("seconds of training", "examples seen"), strict=True):
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.25)
    values = [run["bits_per_dim"] for runs in curves.values() for run in runs.values()]
    lowest, highest = min(map(min, values)), max(map(max, values))
    floor = lowest - 0.02  # shows hundredths near the best bound and whole bits far from it

    def to_axis(y):
        return np.log(np.maximum(y - floor, 1e-3))

    panels[0].set_yscale("function", functions=(to_axis, lambda z: np.exp(z) + floor))
    ticks, distance = [], (to_axis(highest) - to_axis(lowest)) / 25
    for tick in TICKS:  # skip ticks whose labels would overlap
        apart = not ticks or to_axis(tick) - to_axis(ticks[-1]) > distance
        if lowest <= tick <= highest and apart:
            ticks.append(tick)
    panels[0].set(ylabel="test bits/dim", ylim=(lowest - 0.005, 1.1 * highest))
    panels[0].set_yticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    panels[0].yaxis.set_minor_locator(NullLocator())
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return drawing


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", default="digits", choices=[*VARIANTS])
    parser.add_argument("--variants", nargs="+", help="rows of the table; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of `paper`")
    options = parser.parse_args()
    variants = VARIANTS[options.data]
    default_variants = [*variants]
    if options.quick:
        options.seeds, default_variants = 1, ["shipped", "paper", default_variants[-1]]
    options.variants = options.variants or default_variants
    if unknown := sorted({*options.variants} - {*variants}):
        parser.error(f"--variants: expected rows of {options.data}, {[*variants]}, found {unknown}")
    set_up_jax(options.quick)
    out = output_folder(options, f"time_to_bound/{options.data}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "curves.jsonl"
    configs = {name: config_of(name, options) for name in variants}
    dataset = load_dataset(**configs["shipped"]["data"])
    if options.data in EXAMPLES:
        images = dataset.test.images[np.arange(EXAMPLES[options.data])]
        dataset = dataset._replace(test=Split(images, f"{dataset.test.name}[:{len(images)}]"))

    runs: list[tuple[str, int, dict[str, Any]]] = [
        (name, seed, configs[name] | {"seed": seed})
        for seed in range(options.seeds)
        for name in options.variants
    ]
    for name, seed, config in runs:
        is_stored(path, name, seed, config)  # fails early if the stored config differs
    measured = step_seconds(
        out / "steps.json", {"shipped", *options.variants}, configs, options.quick
    )
    seconds = medians(measured)

    for name, seed, config in runs:
        stop = config["train"]["steps"]
        if name == "paper" and not options.quick:
            stop = round(60 * options.minutes / seconds[name])
        if is_stored(path, name, seed, config, stop):
            continue
        print(f"{name}, seed {seed}", flush=True)
        about = {"batch_size": config["train"]["batch_size"], "config": config}
        curves = train_curves(name, Runner(config, dataset), stop)
        store_curves(path, seed, {key: curve | about for key, curve in curves.items()})

    curves = shown_curves(read_curves(path), options, measured)
    data = f"{dataset.name} {dataset.version}, split {dataset.test.name}"
    text = table(curves, measured, data)
    (out / "table.md").write_text(text)
    figure(curves, seconds).savefig(out / "curves.png", dpi=150)
    print(text)


if __name__ == "__main__":
    main()
