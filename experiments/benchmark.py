"""Times and memory of starting, training, evaluating and sampling each network, and ratios of variants.

    python experiments/benchmark.py [--sizes tiny strided mlp] [--batch N] [--dtype bfloat16]
        [--set KEY=VALUE ...] [--steps-per-dispatch N] [--data NAME] [--against VARIANT ...]
        [--rounds R] [--seconds S] [--parts train evaluate sample data start] [--compile-only]
        [--out DIR] [--json] [--quick]

Each size of each variant has its own process, and only one process computes at a time. In every round the
variants take turns, part by part, so that the two times of a ratio are measured one after the other. A variant
is

    "--steps-per-dispatch 10 --set remat=full"    other flags, in one string, with a space before each value
    git:REVISION                                  the package at a revision of the repository
    cmd:COMMAND                                   a command that prints the same as --json, {"rows": {SIZE:
                                                  {"seconds": {"train": ...}}}}; it is run once per round and
                                                  size, with the size in the variable BENCHMARK_SIZE

Times are those of one step (train), of one call of the network (evaluate, sample, and the forward pass beside
each) and of one image (data). A start is the time in which a fresh process makes the state, traces, compiles
and takes the first step, without imports and data; it is measured with an empty compilation cache, and again
with the cache that the first process filled. FLOPs are those of `benchmark_case.py`; their share is relative to
the product of two large matrices of the same type in the same round. On one device, all variants keep their
states at the same time. A batch that cannot fit is refused before compilation; --compile-only compiles it
without running. `paper` is the CIFAR-10 model of Kingma et al. 2021.

Writes results.json and table.md. --quick takes seconds, with two short rounds whatever the flags say, writes
nothing, and checks everything but timings: FLOPs, memory, one compilation for each program, donation, hits of
the persistent cache.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmark_variants import (
    PARTS,
    SIZES,
    Parser,
    Variant,
    Worker,
    parse_variant,
    ratios,
    run_command,
    settings_parser,
    summary,
)

HERE = Path(__file__).resolve().parent
TWICE = "--steps-per-dispatch 2"
TIMED = {"train": "train", "evaluate": "evaluate", "sample": "sample", "data": "image"}
"""Part -> the name of its time; starts are not here, because only some rows have them."""


def log(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return the flags of the run, and those in which variants may differ.

    Raises:
      ValueError: a mistake in the flags.
    """
    about = (__doc__ or "").splitlines()[0]
    shared = settings_parser()
    parser = Parser(description=about, parents=[shared], allow_abbrev=False)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, help="tiny strided mlp by default")
    add("--against", nargs="+", action="extend", default=[], metavar="VARIANT")
    add("--parts", nargs="+", choices=PARTS, help="all by default; none with --compile-only")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="of each part in a round; at least one step")
    add("--compile-only", action="store_true", help="run nothing")
    add("--out", type=Path, default=HERE / "results" / "benchmark")
    add("--json", action="store_true", help="print the results as the last line, write no files")
    add("--quick", action="store_true", help="seconds; its times mean nothing")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 0 < options.seconds < 3600:
        raise ValueError("--rounds and --seconds: expected at least 1, and above 0")
    options.alone = []  # sizes that are measured without the other variants
    if options.quick:
        options.rounds, options.seconds = 2, 0.02
        if not (options.against or options.sizes):
            options.against, options.sizes, options.alone = [TWICE], ["tiny", "mlp"], ["tiny"]
    options.sizes = options.sizes or ["tiny", "strided", "mlp"]
    if options.parts is None:
        options.parts = () if options.compile_only else PARTS
    if options.compile_only and set(options.parts) - {"start"}:
        raise ValueError("--compile-only: of --parts only start can be measured without running")
    names = vars(shared.parse_args([]))
    return options, argparse.Namespace(**{name: getattr(options, name) for name in names})


def environment_of(variant: Variant, options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that a variant's process needs in addition."""
    environment = {}
    if variant.tree is not None:
        paths = [variant.tree, os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if options.quick:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
    return environment


def worker(size: str, variant: Variant, options: argparse.Namespace, **environment: str) -> Worker:
    """Start the process of one size of one variant."""
    request = {name: getattr(options, name) for name in ("quick", "seconds", "compile_only")}
    request |= variant.settings | {"size": size}
    return Worker(request, environment_of(variant, options) | environment, log)


def starts(size: str, variant: Variant, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a cold and a warm start, each in a fresh process."""
    with tempfile.TemporaryDirectory() as cache:
        cache_everything = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for _ in range(2):
            with closing(worker(size, variant, options, **cache_everything)) as process:
                yield process.ask("open")


def measure(
    size: str, variants: list[Variant], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure one size; return a row for each variant."""
    rows: list[dict[str, Any]] = [{"seconds": defaultdict(list)} for _ in variants]
    shares: list[Any] = [defaultdict(list) for _ in variants]
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for i, variant in enumerate(variants):
            if variant.command is None:
                opened = stack.enter_context(closing(worker(size, variant, options)))
                rows[i] = opened.ask("open")
                workers[i] = opened
                package = rows[i].pop("package")
                if variant.tree is not None and not Path(package).is_relative_to(variant.tree):
                    raise ValueError(
                        f"{variant.name}: expected that revision's package, found {package}"
                    )
        parts = [part for part in options.parts if part != "start"]
        for part in parts:
            for process in workers.values():
                process.ask("warm", part)
        rounds = options.rounds if parts else 1
        for number in range(rounds):
            log(f"{size}: round {number + 1} of {rounds}")
            for i, variant in enumerate(variants):
                if variant.command is not None:
                    for name, value in run_command(variant.command, size).items():
                        rows[i]["seconds"][name].append(value)
            for part in parts:
                for i, process in workers.items():
                    measurement = process.ask("round", part)
                    for name, value in measurement["seconds"].items():
                        rows[i]["seconds"].setdefault(name, []).append(value)
                    for name, value in measurement["shares"].items():
                        shares[i][name].append(value)
        for i, process in workers.items():
            rows[i] |= process.ask("close")
    for i, variant in enumerate(variants):
        # --quick measures one pair of starts, because its checks do not depend on the variant
        needed = not options.quick or (i == 0 and size not in options.alone)
        if "start" in options.parts and variant.command is None and needed:
            cold, warm = starts(size, variant, options)
            rows[i]["starts"] = {}
            for name, start in {"cold": cold, "warm": warm}.items():
                rows[i]["seconds"][f"{name} start"] = start["seconds"]["start"]
                rows[i]["starts"][name] = {n: start[n] for n in ("seconds", "cache", "flops")}
            shares[i]["cold start, per warm start"] = [
                cold["seconds"]["start"][0] / warm["seconds"]["start"][0]
            ]
        rows[i]["summary"] = {name: summary(values) for name, values in shares[i].items()}
        rows[i]["summary"] |= per_second(rows[i])
        rows[i]["times"] = {name: summary(v) for name, v in rows[i]["seconds"].items() if v}
    return rows


def per_second(row: dict[str, Any]) -> dict[str, Any]:
    """Return summaries of the images per second in each round."""
    if "config" not in row:
        return {}
    batch, draws = row["config"]["train"]["batch_size"], row["config"]["evaluate"]["draws"]
    summaries = {}
    for part, images in {"train": batch, "evaluate": batch / draws, "image": 1}.items():
        if row["seconds"].get(part):
            name = "data" if part == "image" else part
            summaries[f"{name}, images per second"] = summary(
                [images / value for value in row["seconds"][part]]
            )
    return summaries


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the fields that change how a step is computed, but not its result."""
    kept = {k: v for k, v in config["model"]["network"].items() if k not in ("scan", "remat")}
    train = config["train"] | {"steps_per_dispatch": 1}
    return config | {"train": train, "model": config["model"] | {"network": kept}}


def expectations(
    row: dict[str, Any], base: dict[str, Any], parts: Sequence[str]
) -> dict[str, bool]:
    """Return the checks of a row that do not depend on the machine's speed, each with its result."""
    starts, checks, flops = row.get("starts", {}), row["checks"], row["flops"]
    counted, compiled = flops["step"] or 0, flops["compiled"] or 0
    # the compiler counts one iteration of a loop
    looped = row["config"]["model"]["network"].get("scan", False)
    waiting = row["summary"].get("share waiting for data", {}).get("median", 0)
    counts = {row["flops"]["step"], *(start["flops"]["step"] for start in starts.values())}
    if plain(row["config"]) == plain(base["config"]):
        counts.add(base["flops"]["step"])
    expected = {
        "FLOPs above 0": counted > 0,
        "the same FLOPs of the same step": len(counts) == 1,
        "the program to compute the step once": looped or 0.8 * counted < compiled < 1.6 * counted,
        "times of all parts": all(
            row["seconds"].get(TIMED[part]) for part in parts if part in TIMED
        ),
        "a share of waiting within 0 and 1": 0 <= waiting <= 1,
        "the memory of the program": all(n is not None for n in row["memory"].values()),
        "temporary memory and residuals": bool(
            row["memory"]["temp"] and row["estimate"]["residuals"]
        ),
        "the train step compiled once": checks["compilations"] == 1,
        "nothing compiled in rounds": row["compilations in rounds"] == 0,
        "the whole state donated": checks.get("donated", 1) == 1,
    }
    if starts:
        expected["an empty cache at first"] = starts["cold"]["cache"]["hits"] == 0
        warm = starts["warm"]["cache"]
        expected["every program in it then"] = warm["hits"] > 0 and warm["misses"] == 0
    return expected


def check(results: dict[str, Any], parts: Sequence[str]) -> None:
    """Check results in which these parts were measured.

    Raises:
      ValueError: with every check that fails.
    """
    problems = []
    for size, base in results["rows"].items():
        for other in [{"variant": "as given", "rows": {size: base}}, *results["against"]]:
            row = other["rows"].get(size, {})
            if "config" in row:  # rows of commands have none
                where = f"{size}, {other['variant']}: expected "
                expected = expectations(row, base, parts)
                problems += [where + name for name, holds in expected.items() if not holds]
    if problems:
        raise ValueError("; ".join(problems))


def table(results: dict[str, Any]) -> str:
    """Return a table for each size, with a column for each variant and its ratio to the first variant."""
    lines = []
    for size, base in results["rows"].items():
        others = {o["variant"]: o for o in results["against"] if size in o["rows"]}
        lines += [f"| `{size}` | {' | '.join([results['variant'], *(f'`{n}`' for n in others)])} |"]
        lines += ["|" + "---|" * (len(others) + 2)]
        rows = [base, *(other["rows"][size] for other in others.values())]
        described = [described_row(row) for row in rows]
        for name in dict.fromkeys(name for row in described for name in row):
            cells = [row.get(name, "") for row in described]
            for i, other in enumerate(others.values()):
                ratio = other["ratios"][size].get(name.removesuffix(", ms"))
                if ratio is not None:
                    cells[i + 1] += f" (× {spread(ratio)})"
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines.append(
        "Medians of rounds taken in turns (smallest to largest); × is the ratio to the first column. "
        f"{results['device']}, {results['cores']} cores; {versions}: `{results['command']}`."
    )
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Return a number with three digits, or with all digits before the point if there are more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def spread(distribution: dict[str, Any], scale: float = 1.0) -> str:
    """Return the median, and the range if there are several values."""
    low, median, high = (number(scale * distribution[name]) for name in ("min", "median", "max"))
    return median if len(distribution["values"]) == 1 else f"{median}, {low} to {high}"


def described_row(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a column."""
    cells = {f"{name}, ms": spread(value, 1e3) for name, value in row["times"].items()}
    cells |= {name: spread(value) for name, value in row["summary"].items()}
    if "config" in row:
        cells = {"batch": str(row["config"]["train"]["batch_size"])} | cells
        cells["parameters"] = f"{row['parameters']:,}"
        cells["GFLOP of a step"] = number((row["flops"]["step"] or 0) / 1e9)
        for name, value in row["memory"].items():
            cells[f"{name} memory, MiB"] = f"{(value or 0) / 2**20:.1f}"
        cells["estimated before, MiB"] = f"{row['estimate']['total'] / 2**20:.1f}"
        for name, value in row["peak"].items():
            cells[f"peak {name}, MiB"] = f"{value / 2**20:.0f}"
    return cells


def cores() -> int:
    """Return the number of cores that this process may use, without importing JAX."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def revision() -> str | None:
    """Return the revision of the repository, marked if files have changed since."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return completed.stdout.strip() or None


def benchmark(options: argparse.Namespace, settings: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark; return the contents of results.json.

    Raises:
      ValueError: a mistake in the flags, or a variant that cannot be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        others = [parse_variant(text, settings, Path(folder)) for text in options.against]
        variants = [Variant("as given", vars(settings)), *others]
        rows = {
            size: measure(size, variants[:1] if size in options.alone else variants, options)
            for size in options.sizes
        }
    first = next(iter(rows.values()))[0]
    return {
        "command": shlex.join(["python", "experiments/benchmark.py", *sys.argv[1:]]),
        "versions": first["versions"],
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": first["device"],
        "cores": cores(),
        "revision": revision(),
        "variant": variants[0].name,
        "rows": {size: each[0] for size, each in rows.items()},
        "against": [
            {
                "variant": variant.name,
                "rows": {size: each[i] for size, each in rows.items() if i < len(each)},
                "ratios": {
                    size: ratios(each[0]["seconds"], each[i]["seconds"])
                    for size, each in rows.items()
                    if i < len(each)
                },
            }
            for i, variant in enumerate(others, start=1)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    try:
        options, settings = parse(arguments)
        results = benchmark(options, settings)
        if options.quick:
            check(results, options.parts)
    except (ValueError, OSError) as error:
        log(f"error: {' '.join(str(error).split())}")
        return 2
    text = table(results)
    print(text)
    if options.json:
        print(json.dumps(results))
    elif not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (options.out / "table.md").write_text(text)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        from benchmark_case import serve

        serve(json.loads(sys.argv[2]))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the workers, too
        sys.exit(main())
