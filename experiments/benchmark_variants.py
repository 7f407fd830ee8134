"""Parts of `benchmark.py`: sizes, variants, their processes, and the statistics of pairs.

This module does not import JAX: the process that compares the variants computes nothing itself, so that it does
not disturb the timings.
"""

import argparse
import io
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent


class Size(NamedTuple):
    """A network, the shape of its images and its default batch size."""

    network: dict[str, Any]
    shape: tuple[int, ...]
    batch: int


FLAT = {"name": "vdm_unet", "dropout": 0.1}
STRIDED = {"name": "unet", "channels": [64, 128, 128], "blocks": 2, "dropout": 0.1}
SIZES = {
    "tiny": Size(FLAT | {"channels": 64, "blocks": 4}, (32, 32, 3), 8),
    "paper": Size(FLAT | {"channels": 128, "blocks": 32}, (32, 32, 3), 128),
    "strided": Size(STRIDED, (32, 32, 3), 8),
    "mlp": Size({"name": "mlp"}, (28, 28, 1), 128),
}
QUICK = {
    "tiny": Size(FLAT | {"channels": 8, "blocks": 1}, (8, 8, 3), 4),
    "paper": Size(FLAT | {"channels": 8, "blocks": 2}, (8, 8, 3), 4),
    "strided": Size(STRIDED | {"channels": [8, 8], "blocks": 1}, (8, 8, 3), 4),
    "mlp": Size({"name": "mlp", "width": 16, "depth": 1}, (8, 8, 1), 4),
}
PARTS = ("train", "evaluate", "sample", "data", "start")

Rows = Mapping[str, Mapping[str, Any]]


class Parser(argparse.ArgumentParser):
    """A parser that raises a `ValueError` of one line for mistakes, instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def settings_parser(**options: Any) -> Parser:
    """Return a parser of the flags in which variants may differ."""
    parser = Parser(add_help=False, allow_abbrev=False, **options)
    add = parser.add_argument
    add("--batch", type=int, help="examples of a step; by default that of the size")
    add("--dtype", help="type of the network's computation, `model.network.dtype`")
    add("--steps-per-dispatch", type=int, default=1)
    add("--data", default="synthetic", help="name of a data set; by default random images")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the config, by its path, or of the network, by its name",
    )
    return parser


class Variant(NamedTuple):
    """One side of a comparison: settings run on a source tree (None: the installed one), or a command."""

    name: str
    settings: dict[str, Any]
    tree: str | None = None
    command: str | None = None


def parse_variant(text: str, base: argparse.Namespace, folder: Path) -> Variant:
    """Read one `--against`; unpack the tree of a git revision below `folder`.

    Raises:
      ValueError: flags that `settings_parser` does not have, an empty command, an unknown revision.
    """
    settings = dict(vars(base))
    kind, _, rest = text.partition(":")
    if kind == "cmd":
        if not rest.strip():
            raise ValueError("--against cmd: expected a command after the colon")
        return Variant(text, settings, command=rest)
    if kind == "git":
        return Variant(text, settings, tree=str(source_tree(rest, folder)))
    if not text.strip().startswith("--"):
        raise ValueError(f"--against: expected flags, git:REVISION or cmd:COMMAND, found {text!r}")
    namespace = argparse.Namespace(**settings | {"set": list(base.set)})
    try:
        parsed, unknown = settings_parser().parse_known_args(shlex.split(text), namespace)
    except ValueError as error:
        raise ValueError(f"--against {text!r}: {error}") from error
    if unknown:
        raise ValueError(f"--against {text!r}: no flag of a variant: {' '.join(unknown)}")
    return Variant(text.strip(), vars(parsed))


def source_tree(revision: str, folder: Path) -> Path:
    """Unpack a revision from an archive; a worktree would change the repository.

    Raises:
      ValueError: git does not know the revision.
    """
    root = HERE.parent
    command = ["git", "-C", str(root), "archive", revision, "--", "vdm_jax"]
    is_option = revision[:1] in ("", "-")
    archived = None if is_option else subprocess.run(command, capture_output=True)
    if archived is None or archived.returncode:
        raise ValueError(
            f"--against git:{revision}: expected a revision of {root} that has vdm_jax"
        )
    tree = folder / f"{len(list(folder.iterdir()))}"
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree


class Worker:
    """A process that holds one size of one variant, and computes only while it answers a command."""

    def __init__(
        self, request: dict[str, Any], environment: dict[str, str], log: Callable[[str], None]
    ):
        command = [sys.executable, str(HERE / "benchmark.py"), "--worker", json.dumps(request)]
        # several workers share a device; without this, the first would take most of its memory
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(os.environ) | environment
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=shared
        )
        self.log = log

    def ask(self, *command: str) -> dict[str, Any]:
        """Send a command and return its answer.

        Raises:
          ValueError: the answer is an error, or the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(" ".join(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; its last answer is read below
        for line in self.process.stdout:
            answer = json.loads(line)
            if "log" in answer:
                self.log(answer["log"])
            elif "error" in answer:
                raise ValueError(answer["error"])
            else:
                return answer
        status = self.process.wait()
        raise ValueError(f"the process of {command} ended with status {status}")

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()


def run_command(command: str, size: str) -> dict[str, float]:
    """Return the seconds that a command prints for the size in its variable BENCHMARK_SIZE, by name.

    Raises:
      ValueError: the command fails, or its last line of output does not have the format of `--json`.
    """
    environment = dict(os.environ) | {"BENCHMARK_SIZE": size}
    completed = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    if status := completed.returncode:
        last = next(iter(reversed(completed.stderr.strip().splitlines())), "")
        raise ValueError(f"--against cmd:{command}: ended with status {status}: {last}")
    return seconds_of(completed.stdout, size, f"--against cmd:{command}")


def seconds_of(output: str, size: str, where: str) -> dict[str, float]:
    """Return the seconds in a last line {"rows": {SIZE: {"seconds": {"train": number or numbers, …}}}}.

    Raises:
      ValueError: the last line has another format.
    """
    last = next(iter(reversed(output.strip().splitlines())), "")
    expected = f'expected {{"rows": {{"{size}": {{"seconds": {{"train": ...}}}}}}}} as last line'
    try:
        seconds = json.loads(last)["rows"][size]["seconds"]
        medians = {
            name: statistics.median(value if isinstance(value, list) else [value])
            for name, value in seconds.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {expected}, found {last[:60]!r}") from error
    bad = [n for n, v in medians.items() if not isinstance(v, int | float) or not 0 < v < math.inf]
    if bad or not medians:
        raise ValueError(f"{where}: {expected} with positive numbers, found {last[:60]!r}")
    return medians


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the spread of the values of all rounds."""
    at_least_two = values if len(values) > 1 else [*values, *values]  # as `quantiles` needs
    first, _, third = statistics.quantiles(at_least_two, n=4, method="inclusive")
    return {
        "median": statistics.median(values),
        "min": min(values),
        "quartiles": [first, third],
        "max": max(values),
        "values": list(values),
    }


def ratios(
    base: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Return summaries of the ratio other / base, round by round; above 1, the other is slower."""
    return {
        name: summary([b / a for a, b in zip(base[name], other[name], strict=False)])
        for name in base
        if other.get(name) and base[name]
    }
