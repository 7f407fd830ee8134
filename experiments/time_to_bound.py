"""How long until a test bound? The shipped default, the paper's settings, and each ingredient on its own.

    python experiments/time_to_bound.py [--quick] [--data mnist] [--variants ...] [--seeds 3] [--minutes 20]
                                        [--out DIR]

`paper` is Kingma et al. 2021 at a size for small images: flat U-Net, Fourier features, the input as base,
unscaled output, uniform times, learned linear γ, their optimizer and average of the weights, which forgets the
initial ones in some 10,000 steps: a second curve is of the last weights instead. `paper, shipped optimizer`
is the same model under the shipped optimizer and average. Every other row is the shipped config with what its
name says replaced (another optimizer has a rate of its own). `paper` trains for --minutes (12.44 in the
committed curves of MNIST), the others for as many steps as the config says; on MNIST all but `shipped` take a
tenth of them (and of its decay), beside a row of the shipped config that does the same.

First all variants take turns, a few steps each, in one process after the other, for one program twice in one
process may differ by more than ten per cent as long as it lives. The median over all turns of all processes is
the time of a step. Then each (variant, seed) is trained by itself and evaluated on the test split with the
averaged weights along the way. Seconds are steps times the time of a step, so that a busy machine stretches no
curve; compilation and evaluation are not counted. Runs that are there already are not repeated. Writes
steps.json, curves/VARIANT_SEED.json, table.md and curves.png. --quick trains for seconds; its numbers mean
nothing.
"""

import argparse
import json
import multiprocessing
import platform
import runpy
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from ml_collections import ConfigDict

from vdm_jax.config import default, difference, to_dict
from vdm_jax.data import Dataset, Split, load_dataset
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.xla import cores

HERE = Path(__file__).resolve().parent
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
Row = dict[str, Any]  # fields of a config by their path
Configs = dict[str, dict[str, Any]]  # by variant
PAPER: Row = INPUT | UNIFORM | LEARNED | {"model.network": FLAT}
WHOLE: dict[str, Row] = {"shipped": {}, "paper": PAPER | AVERAGE | OPTIMIZER}
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
OF_DIGITS: dict[str, Row] = {
    "uniform times": UNIFORM,
    "Muon, rate 0.01": {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2},
}
SHORT, TENTH = "shipped, 400 steps", {"train.steps": 400, "optimizer.decay_steps": 400}
OF_MNIST: dict[str, Row] = {
    "times of the digits": BOUND | {"model.time_sampler": "learned"},
    "AdamW, rate 0.005": {"optimizer.name": "adamw", "optimizer.learning_rate": 5e-3},
    "flat network": {"model.network": FLAT | {"dropout": 0.0}},  # as the shipped one
}
VARIANTS: dict[str, dict[str, Row]] = {
    "digits": WHOLE | INGREDIENTS | OF_DIGITS,
    "mnist": WHOLE
    | {name: row | TENTH for name, row in ({SHORT: {}} | INGREDIENTS | OF_MNIST).items()},
}
LAST = "paper, last weights"  # of the same runs
# of the test split the first so many, with one draw each; else all of it
EXAMPLES = {"mnist": 2000}
GROWTH = 1.3  # of the steps between two evaluations
PROCESSES, TURNS, STEPS_OF_A_TURN = 5, 3, 5
TICKS = (1.1, 1.15, 1.2, 1.3, 1.5, 1.74, 1.76, 1.8, 1.9, 2, 2.2, 2.5, 3, 4, 6, 10, 14)


def config_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The shipped config of the data with what a variant replaces."""
    shipped = HERE.parent / "configs" / f"{options.data}.py"
    config = runpy.run_path(str(shipped))["get_config"]() if shipped.exists() else default()
    with config.ignore_type(), config.unlocked():
        for path, value in VARIANTS[options.data][name].items():
            *above, field = path.split(".")
            section = config
            for part in above:
                section = section[part]
            section[field] = ConfigDict(value) if isinstance(value, dict) else value
        if options.data in EXAMPLES:
            config.evaluate.draws = 1
        if options.quick:
            config.model.network.channels = 8 if config.model.network.name == FLAT["name"] else (8,)
            config.model.network.blocks = 1
            config.train.batch_size, config.train.steps, config.evaluate.draws = 8, 3, 1
    return to_dict(config)


class Runner:
    """The compiled step of a variant, its state, and where it is."""

    def __init__(self, config: dict[str, Any], dataset: Dataset):
        self.job = Run(config, statistics_of(config, dataset))
        self.dataset, self.layout = dataset, make_layout("jit")
        train = config["train"]
        places = shardings(self.layout, jax.eval_shape(self.job.start))
        self.state = jax.jit(self.job.start, out_shardings=places)()
        self.run = dispatcher(self.layout, self.job.step(self.layout), self.state, 1)
        self.step, self.batch_size = 0, train["batch_size"]

    def train(self, stop: int) -> float:
        """Seconds of the steps up to `stop`."""
        batches = self.job.batches(
            self.dataset.train, batch_size=self.batch_size, start_step=self.step, stop_step=stop
        )
        sent: list[Any] = []
        began = time.perf_counter()
        for stack in batches:
            self.state, metrics = self.run(self.state, stack)
            sent.append(metrics["loss"])
            if len(sent) > 1:  # as the loop does, which looks at every step one dispatch late
                float(sent.pop(0)[-1])
        jax.block_until_ready(self.state)
        self.step = stop
        return time.perf_counter() - began

    def bound(self, weights: Any = None) -> float:
        """Test bits/dim of the averaged weights, or of these."""
        state = self.state if weights is None else self.state._replace(ema_params=weights)
        parts = state, Path(), self.layout, lambda settings: self.dataset
        return self.job.trained(*parts).bits_per_dim("test")


def start(quick: bool) -> None:
    """What a process does first."""
    enable_compilation_cache()
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster


def take_turns(configs: Configs) -> dict[str, list[float]]:
    """Seconds of a step of each, one for each turn."""
    dataset = load_dataset(**next(iter(configs.values()))["data"])
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    runners = {name: Runner(config, dataset) for name, config in configs.items()}
    for runner in runners.values():
        runner.train(1)  # compiles
    for _ in range(TURNS):
        for name, runner in runners.items():
            seconds[name].append(runner.train(runner.step + STEPS_OF_A_TURN) / STEPS_OF_A_TURN)
    return seconds


def processes(configs: Configs, quick: bool) -> dict[str, list[list[float]]]:
    """Seconds of a step of each: the turns of each process, which starts at another variant."""
    names, found = [*configs], {name: [] for name in configs}
    for i in range(1 if quick else PROCESSES):
        first = i * len(names) // PROCESSES
        order = names[first:] + names[:first]
        with multiprocessing.get_context("spawn").Pool(1, start, (quick,)) as pool:
            turns = pool.apply(take_turns, ({name: configs[name] for name in order},))
        for name in names:
            found[name].append(turns[name])
    return found


def timed(path: Path, names: set[str], configs: Configs, quick: bool) -> dict[str, Any]:
    """Seconds of a step of these variants at least, as they are there or measured with all that are there."""
    measured = json.loads(path.read_text())["seconds"] if path.exists() else {}
    if names <= set(measured):
        return measured
    measured = processes({n: c for n, c in configs.items() if n in names | set(measured)}, quick)
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {"device": jax.devices()[0].device_kind, "cores": cores(), "seconds": measured}
    path.write_text(json.dumps(about) + "\n")
    return measured


def marks(stop: int) -> list[int]:
    """Steps to evaluate at: nearly evenly spaced in their logarithm, and the last."""
    found, step = [], 25.0
    while step < stop:
        found.append(round(step))
        step *= GROWTH
    return [*found, stop]


def curves_of(name: str, runner: Runner, stop: int) -> dict[str, dict[str, Any]]:
    """Test bounds of a run along the way, by name."""
    bounds: dict[str, list[float]] = {name: []} | ({LAST: []} if name == "paper" else {})
    for step in marks(stop):
        runner.train(step)
        bounds[name].append(runner.bound())
        if LAST in bounds:
            bounds[LAST].append(runner.bound(runner.state.params))
        print(f"  step {step}: {[round(values[-1], 4) for values in bounds.values()]}", flush=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(runner.state.params))
    shared = {"steps": marks(stop), "parameters": parameters}
    return {key: shared | {"bits_per_dim": values} for key, values in bounds.items()}


Curves = dict[str, dict[int, dict[str, Any]]]  # by variant and seed


def same(name: str) -> str:
    """The variant whose steps a curve took."""
    return "paper" if name == LAST else name


def medians(measured: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step of each curve."""
    found = {name: float(np.median(turns)) for name, turns in measured.items()}
    return found | {LAST: found["paper"]} if "paper" in found else found


def looks(curves: Curves, name: str) -> list[int]:
    """The steps at which the runs of a variant were evaluated."""
    return next(iter(curves[name].values()))["steps"]


def reached(curves: Curves, name: str, seeds: Iterable[int]) -> np.ndarray:
    """Mean over seeds of the bound at each evaluation of a variant."""
    return np.mean([curves[name][seed]["bits_per_dim"] for seed in seeds], 0)


def seconds_to(
    curves: Curves, name: str, to: str, more: float, seconds: dict[str, float]
) -> float | None:
    """Until the mean bound is at most that of another variant's end, and more; of the seeds that both have.

    Interpolated in log time; inf if never, None without a common seed.
    """
    seeds = sorted({*curves[name]} & {*curves[to]})
    if not seeds:
        return None
    bound = reached(curves, to, seeds)[-1] + more
    values, steps = reached(curves, name, seeds), np.asarray(looks(curves, name), float)
    below = np.flatnonzero(values <= bound)
    if not len(below):
        return float("inf")
    i = below[0]
    if i > 0:
        part = (values[i - 1] - bound) / (values[i - 1] - values[i])
        steps[i] = np.exp(np.interp(part, (0, 1), np.log(steps[i - 1 : i + 1])))
    return float(steps[i] * seconds[name])


def table(curves: Curves, measured: dict[str, Any], data: str) -> str:
    seconds = medians(measured)
    columns = [
        "variant",
        "parameters",
        "step, relative",
        "steps",
        "seeds",
        "test bits/dim at the end",
    ]
    whole = SHORT if SHORT in curves else "shipped"
    columns += ["until paper's end", "until its last weights' end", f"until {whole}'s end + 0.02"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    ends = {"paper": 0.0, LAST: 0.0, whole: 0.02}
    for name, runs in curves.items():
        last = [run["bits_per_dim"][-1] for run in runs.values()]
        shipped, mine = (np.median(measured[of], 1) for of in ("shipped", same(name)))
        ratios = mine / shipped
        cells = [name, f"{next(iter(runs.values()))['parameters']:,}"]
        cells += [
            f"{seconds[name] / seconds['shipped']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{looks(curves, name)[-1]:,}",
            f"{len(runs)}",
            f"{np.mean(last):.3f} ({min(last):.3f} to {max(last):.3f})",
        ]
        for to, more in ends.items():
            took = seconds_to(curves, name, to, more, seconds) if to in curves else None
            if took is None:
                cells.append("")
                continue
            took /= looks(curves, to)[-1] * seconds[to]
            cells.append("never" if np.isinf(took) else f"× {took:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{data}; mean over the seeds (smallest to largest); averaged weights. "
            "The last columns are the time of training until the mean bound is that of another row's end, "
            "in units of that row's time, of the seeds that both have. It is of training alone: steps times "
            "their median time, measured in turns within each of "
            f"{len(measured['shipped'])} processes (the ratio of the processes' medians, "
            "smallest to largest).",
            "",
        ]
    )


def figure(curves: Curves, seconds: dict[str, float]) -> Figure:
    picture = Figure(figsize=(13, 4.4), layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    for i, (name, runs) in enumerate(curves.items()):
        bounds = np.asarray([run["bits_per_dim"] for run in runs.values()])
        steps, batch_size = np.asarray(looks(curves, name)), next(iter(runs.values()))["batch_size"]
        wide = 2.2 if name in ("shipped", SHORT, "paper") else 1.1
        color, line = f"C{i % 10}", "--" if i >= 10 else "-"
        for axes, x in zip(panels, (steps * seconds[name], steps * batch_size), strict=True):
            axes.plot(x, bounds.mean(0), line, color=color, linewidth=wide, label=name)
            axes.fill_between(x, bounds.min(0), bounds.max(0), color=color, alpha=0.15, linewidth=0)
    for axes, words in zip(panels, ("seconds of training", "examples seen"), strict=True):
        axes.set(xscale="log", xlabel=words)
        axes.grid(alpha=0.25)
    bounds = [run["bits_per_dim"] for runs in curves.values() for run in runs.values()]
    lowest, highest = min(map(min, bounds)), max(map(max, bounds))
    floor = lowest - 0.02  # hundredths near the best and whole bits far from it, in one picture

    def up(y):
        return np.log(np.maximum(y - floor, 1e-3))

    panels[0].set_yscale("function", functions=(up, lambda z: np.exp(z) + floor))
    ticks, apart = [], (up(highest) - up(lowest)) / 25
    for tick in TICKS:  # as many as can be told apart
        if lowest <= tick <= highest and (not ticks or up(tick) - up(ticks[-1]) > apart):
            ticks.append(tick)
    panels[0].set(ylabel="test bits/dim", ylim=(lowest - 0.005, 1.1 * highest))
    panels[0].set_yticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    panels[0].yaxis.set_minor_locator(NullLocator())
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return picture


def read(options: argparse.Namespace, measured: dict[str, Any]) -> Curves:
    """The runs that are there, of all variants whose steps were timed.

    Raises:
      SystemExit: those of a variant were evaluated at other steps.
    """
    found: Curves = {}
    for name in (*VARIANTS[options.data], LAST):
        paths = {seed: path_of(options, name, seed) for seed in range(options.seeds)}
        runs = {seed: json.loads(p.read_text()) for seed, p in paths.items() if p.exists()}
        if len({json.dumps(run["steps"]) for run in runs.values()}) > 1:
            stops = {f"seed {seed}": run["steps"][-1] for seed, run in runs.items()}
            raise SystemExit(
                f"error: {name}: expected runs of one length, found {stops}; remove some"
            )
        if runs and same(name) in measured:
            found[name] = runs
    return found


def there(path: Path, config: dict[str, Any], stop: int = 0) -> bool:
    """Whether a run of so many steps is there already.

    Raises:
      SystemExit: what is there is of another config, or shorter by more than a tenth.
    """
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    steps = found["steps"][-1]
    if difference(found["config"], config, free=()) or steps < 0.9 * stop:
        raise SystemExit(
            f"error: {path}: expected this config and {stop} steps or more, found another or {steps} steps; "
            "remove it"
        )
    return True


def path_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.out / "curves" / f"{name.replace(' ', '_').replace(',', '')}_{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--data", default="digits", choices=[*VARIANTS])
    parser.add_argument("--variants", nargs="+", help="rows of the table; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = VARIANTS[options.data]
    default_rows = ["shipped", "paper", [*rows][-1]] if options.quick else [*rows]
    options.variants = options.variants or default_rows
    if unknown := sorted({*options.variants} - {*rows}):
        parser.error(f"--variants: expected rows of {options.data}, {[*rows]}, found {unknown}")
    start(options.quick)
    if options.quick:
        options.out, options.seeds = Path(tempfile.mkdtemp()), 1
    out = options.out = options.out or HERE / "results" / "time_to_bound" / options.data
    (out / "curves").mkdir(parents=True, exist_ok=True)
    configs = {name: config_of(name, options) for name in rows}
    dataset = load_dataset(**configs["shipped"]["data"])
    if options.data in EXAMPLES:
        few = dataset.test.images[np.arange(EXAMPLES[options.data])]
        dataset = dataset._replace(test=Split(few, f"{dataset.test.name}[:{len(few)}]"))

    wanted: list[tuple[str, int, dict[str, Any]]] = [
        (name, seed, configs[name] | {"seed": seed})
        for seed in range(options.seeds)
        for name in options.variants
    ]
    for name, seed, config in wanted:
        there(path_of(options, name, seed), config)  # another's, before anything is measured
    measured = timed(out / "steps.json", {"shipped", *options.variants}, configs, options.quick)
    seconds = medians(measured)

    for name, seed, config in wanted:
        stop = config["train"]["steps"]
        if name == "paper" and not options.quick:
            stop = round(60 * options.minutes / seconds[name])
        if there(path_of(options, name, seed), config, stop):
            continue
        print(f"{name}, seed {seed}", flush=True)
        found = curves_of(name, Runner(config, dataset), stop)
        for key, one in found.items():
            one |= {"batch_size": config["train"]["batch_size"], "config": config}
            path_of(options, key, seed).write_text(json.dumps(one) + "\n")
    curves = read(options, measured)
    name = f"{dataset.name} {dataset.version}, split {dataset.test.name}"
    (out / "table.md").write_text(table(curves, measured, name))
    figure(curves, seconds).savefig(out / "curves.png", dpi=150)
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
