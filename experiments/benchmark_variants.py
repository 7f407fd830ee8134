"""What `benchmark.py` compares, and how: sizes, variants, their processes, and the statistics of pairs.

Nothing here imports JAX: the process that compares computes nothing itself, so that it disturbs no timing.
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
    """A network, the data it is run on, and its batch unless another is asked for."""

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
    """Whose complaints are one line, as a `ValueError`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def settings_parser(**options: Any) -> Parser:
    """The flags in which variants may differ."""
    parser = Parser(add_help=False, allow_abbrev=False, **options)
    add = parser.add_argument
    add("--batch", type=int, help="of each step; by default the size's own")
    add("--dtype", help="of the network's computation, as `model.network.dtype`")
    add("--steps-per-dispatch", type=int, default=1)
    add("--data", default="synthetic", help="a data set's name; by default random images")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the config by its path, or of the network by its name",
    )
    return parser


class Variant(NamedTuple):
    """One side of a comparison: settings run on a source tree (None: the installed one), or a command."""

    name: str
    settings: dict[str, Any]
    tree: str | None = None
    command: str | None = None


def parse_variant(text: str, base: argparse.Namespace, folder: Path) -> Variant:
    """Read one `--against`; the tree of a git revision is put below `folder`.

    Raises:
      ValueError: flags that are not of `settings_parser`, an empty command, an unknown revision.
    """
    plain = dict(vars(base))
    kind, _, rest = text.partition(":")
    if kind == "cmd":
        if not rest.strip():
            raise ValueError("--against cmd: expected a command after the colon")
        return Variant(text, plain, command=rest)
    if kind == "git":
        return Variant(text, plain, tree=str(source_tree(rest, folder)))
    if not text.strip().startswith("--"):
        raise ValueError(f"--against: expected flags, git:REVISION or cmd:COMMAND, found {text!r}")
    own = argparse.Namespace(**plain | {"set": list(base.set)})
    try:
        found, unknown = settings_parser().parse_known_args(shlex.split(text), own)
    except ValueError as error:
        raise ValueError(f"--against {text!r}: {error}") from error
    if unknown:
        raise ValueError(f"--against {text!r}: no flag of a variant: {' '.join(unknown)}")
    return Variant(text.strip(), vars(found))


def source_tree(revision: str, folder: Path) -> Path:
    """Unpack a revision; an archive and no worktree, so that the repository itself is not changed.

    Raises:
      ValueError: git does not know it.
    """
    root = HERE.parent
    command = ["git", "-C", str(root), "archive", revision, "--", "vdm_jax"]
    found = subprocess.run(command, capture_output=True) if revision[:1] not in ("", "-") else None
    if found is None or found.returncode:
        raise ValueError(
            f"--against git:{revision}: expected a revision of {root} that has vdm_jax"
        )
    tree = folder / f"{len(list(folder.iterdir()))}"
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree


class Worker:
    """A process that holds one size of one variant, and computes only while it is asked."""

    def __init__(
        self, asked: dict[str, Any], environment: dict[str, str], say: Callable[[str], None]
    ):
        command = [sys.executable, str(HERE / "benchmark.py"), "--worker", json.dumps(asked)]
        # several of them share a device, of which the first would take most
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(os.environ) | environment
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=shared
        )
        self.say = say

    def ask(self, *words: str) -> dict[str, Any]:
        """One command, one answer.

        Raises:
          ValueError: it refuses, or has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(" ".join(words) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said before it ended is read below
        for line in self.process.stdout:
            answer = json.loads(line)
            if "say" in answer:
                self.say(answer["say"])
            elif "error" in answer:
                raise ValueError(answer["error"])
            else:
                return answer
        status = self.process.wait()
        raise ValueError(f"the process of {words} ended with status {status}")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_command(command: str, size: str) -> dict[str, float]:
    """Seconds by name that a command prints of a size, which it finds in BENCHMARK_SIZE.

    Raises:
      ValueError: it fails, or the last line of its output is not what `--json` prints.
    """
    environment = dict(os.environ) | {"BENCHMARK_SIZE": size}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = next(iter(reversed(done.stderr.strip().splitlines())), "")
        raise ValueError(f"--against cmd:{command}: ended with status {done.returncode}: {last}")
    return seconds_of(done.stdout, size, f"--against cmd:{command}")


def seconds_of(output: str, size: str, where: str) -> dict[str, float]:
    """Read {"rows": {SIZE: {"seconds": {"train": number or numbers, ...}}}} from a last line."""
    last = next(iter(reversed(output.strip().splitlines())), "")
    expected = f'expected {{"rows": {{"{size}": {{"seconds": {{"train": ...}}}}}}}} as last line'
    try:
        found = json.loads(last)["rows"][size]["seconds"]
        medians = {
            name: statistics.median(value if isinstance(value, list) else [value])
            for name, value in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {expected}, found {last[:60]!r}") from error
    bad = [n for n, v in medians.items() if not isinstance(v, int | float) or not 0 < v < math.inf]
    if bad or not medians:
        raise ValueError(f"{where}: {expected} with positive numbers, found {last[:60]!r}")
    return medians


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and spread of the values of each round."""
    several = values if len(values) > 1 else [*values, *values]
    first, _, third = statistics.quantiles(several, n=4, method="inclusive")
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
    """Pair by pair, the other's time for each of the base's; above 1 the other is slower."""
    return {
        name: summary([b / a for a, b in zip(base[name], other[name], strict=False)])
        for name in base
        if other.get(name) and base[name]
    }
