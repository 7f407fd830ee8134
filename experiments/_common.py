"""Helpers that the experiments share: command line, compiler options, facts about the machine, tables, files.

The scripts are run as `python experiments/NAME.py`, so that `from _common import …` finds this file.
`benchmark.py` does not use it, because its process must not import JAX.
"""

import argparse
import json
import platform
import runpy
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.data import Split
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.layout import Layout, shardings
from vdm_jax.training.state import TrainState
from vdm_jax.xla import cores

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RESULTS = ROOT / "experiments" / "results"

FACTS = {
    "versions": library_versions,
    "python": platform.python_version,
    "machine": platform.machine,
    "device": lambda: jax.devices()[0].device_kind,
    "cores": cores,
}
"""name -> a function that returns the fact."""


# ------------------------------------------------------------ command line


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with --quick and --out, described by the first line of a script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the results mean nothing")
    parser.add_argument("--out", type=Path, help="the folder to write to")
    return parser


def output_folder(options: argparse.Namespace, name: str) -> Path:
    """Return --out if it is given, otherwise a new temporary folder under --quick, otherwise results/NAME."""
    if options.out is not None:
        return options.out
    return Path(tempfile.mkdtemp()) if options.quick else RESULTS / name


# ------------------------------------------------------------ JAX and configs


def set_up_jax(quick: bool, cache: bool = True) -> None:
    """Enable the cache of compiled programs; under --quick, skip most optimizations to compile faster."""
    if cache:
        enable_compilation_cache()
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)


def read_config(path: Path) -> Any:
    """Return the `ConfigDict` of a config file."""
    return runpy.run_path(str(path))["get_config"]()


def shrink(config: Any) -> None:
    """Reduce the U-Net, the batch, the training steps and the draws of a config for --quick."""
    network = config.model.network
    network.channels = 8 if isinstance(network.channels, int) else (8,)
    network.blocks = 1
    config.train.batch_size, config.train.steps, config.evaluate.draws = 8, 3, 1


def initial_state(run: Run | Sweep, layout: Layout) -> TrainState:
    """Return the state that training starts from, distributed over the devices of a layout."""
    places = shardings(layout, jax.eval_shape(run.start))
    return jax.jit(run.start, out_shardings=places)()


def all_images(split: Split) -> np.ndarray:
    """Return the images of a split as one array."""
    return split.images[np.arange(len(split.images))]


# ------------------------------------------------------------ results


def environment(*names: str) -> dict[str, Any]:
    """Return facts about this process, of `FACTS`, to write beside the results."""
    return {name: FACTS[name]() for name in names}


def cpu_name() -> str:
    """Return the machine's architecture for experiments that run on a CPU, such as "x86_64 CPU"."""
    return f"{platform.machine()} CPU"


def markdown_row(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]], caption: str = "") -> str:
    """Return a Markdown table that ends with a newline, and below it the caption, if any."""
    columns = [*columns]
    lines = [markdown_row(columns), f"|{'---|' * len(columns)}", *map(markdown_row, rows)]
    lines += ["", caption] if caption else []
    return "\n".join(lines) + "\n"


def write_results(folder: Path, results: dict[str, Any], table: str, *, indent: int = 2) -> None:
    """Print a table and write it as table.md, beside results.json, into a folder that is made if missing."""
    print(table)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=indent) + "\n")
    (folder / "table.md").write_text(table)
