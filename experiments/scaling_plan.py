"""Cost of a step of the paper's models on 64 devices, read from the compiled program without such devices.

    python experiments/scaling_plan.py [--quick] [--cases NAME ...] [--text DIR] [--out DIR]

Compiles the train step of configs/cifar10.py and of the ImageNet-64 model of Kingma et al. 2021 for a slice of
64 TPU v5e chips. This needs no chip: `pip install libtpu` provides the compiler. FLOPs, bytes and collectives
of one device are read from the program; expected times follow from `MACHINES`, whose numbers are assumptions
(docs/scaling.md). --cases compiles only the named cases and keeps the other programs of results.json; without a
name after it, only the times are computed again. Writes results.json and table.md. --quick compiles a tiny
model for four virtual devices of the CPU; its numbers mean nothing.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if "--quick" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
from _common import (
    CONFIGS,
    argument_parser,
    environment,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
)
from jax.experimental import topologies

from vdm_jax.config import resolve
from vdm_jax.models import Statistics
from vdm_jax.runs.sweep import Run
from vdm_jax.training.dispatch import compiled, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.typing import Batch

TOPOLOGY = "v5e:8x8"

CIFAR10 = {"shape": (32, 32, 3), "network": {}}
IMAGENET64 = {"shape": (64, 64, 3), "network": {"channels": 256, "blocks": 64}}
TINY = {"shape": (8, 8, 3), "network": {"channels": 8, "blocks": 1}}
BF16 = "bfloat16"


def case(model: dict, batch: int, *, dtype: str = "float32", fsdp: int = 1, devices: Any = None):
    """Return a case: the model of configs/cifar10.py with another network, a global batch and a layout."""
    network = model["network"] | {"dtype": dtype}
    return model | {"network": network, "batch": batch, "fsdp": fsdp, "devices": devices}


CASES = {
    "CIFAR-10, 128": case(CIFAR10, 128),
    "CIFAR-10, 128, bfloat16": case(CIFAR10, 128, dtype=BF16),
    "CIFAR-10, 128, fsdp 8": case(CIFAR10, 128, fsdp=8),
    "CIFAR-10, 1024": case(CIFAR10, 1024),
    "ImageNet-64, 128": case(IMAGENET64, 128),
}
QUICK = {
    "tiny, one device": case(TINY, 8, devices=1),
    "tiny": case(TINY, 8),
    "tiny, fsdp 2, bfloat16": case(TINY, 8, fsdp=2, dtype=BF16),
}


class Machine(NamedTuple):
    """The rates of a machine.

    Attributes:
      peak: FLOP/s of a device, by type.
      memory: bytes/s of a device's memory.
      traffic: the count of a program's bytes that pass through this memory, "hbm" or "operands".
      capacity: bytes of a device's memory.
      node: devices of a node.
      inside: bytes/s that a device sends within a node, in groups of at most eight devices and in larger ones.
      across: bytes/s that a device sends to other nodes.
      latency: seconds until a collective starts.
    """

    peak: dict[str, float]
    memory: float
    traffic: str
    capacity: float
    node: int
    inside: tuple[float, float]
    across: float
    latency: float


V5E = {"float32": 197e12, "bfloat16": 197e12}  # float32 factors are rounded to bfloat16 by default
H100 = {"float32": 494e12, "bfloat16": 989e12}  # TensorFloat-32 by default
MACHINES = {
    "v5e-64": Machine(V5E, 819e9, "hbm", 16 * 2**30, 64, (50e9, 100e9), math.inf, 10e-6),
    "64 × H100": Machine(H100, 3.35e12, "operands", 80e9, 8, (450e9, 450e9), 50e9, 20e-6),
}
ACHIEVED = {"arithmetic": 0.5, "memory": 0.8, "links": 0.8}
"""Assumed fractions of the rates above."""

ROUNDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
COLLECTIVE = re.compile(rf" (?P<kind>{'|'.join(ROUNDS)})(?P<start>-start)?\(")
CHANNEL = re.compile(r"channel_id=(\d+)")
COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>\S+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) (?P<code>[a-z][\w-]*)\(")
ARRAY = re.compile(r"\b(?:pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
MOVES = {"copy-start", "copy-done", "slice-start", "slice-done", "custom-call"}
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")


def numbers(text: str) -> list[int]:
    """Return the integers of a list that is separated by commas."""
    return [int(n) for n in text.split(",") if n]


def group(line: str, devices: int) -> list[int]:
    """Return the first group of devices of a collective, in any of the three notations of XLA."""
    ids = np.arange(devices)
    if match := MESH.search(line):
        sizes, axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1])), re.findall(r"'(\w+)'", match[2])
        ids = ids.reshape([int(n) for n in sizes.values()])
        return ids[tuple(slice(None) if name in axes else 0 for name in sizes)].ravel().tolist()
    if match := IOTA.search(line):
        ids = ids.reshape(numbers(match[2]))
        ids = ids.transpose(numbers(match[3])) if match[3] else ids
        return ids.reshape(-1, int(match[1]))[0].tolist()
    match = LIST.search(line)
    return numbers(match[1]) if match else ids.tolist()


def nbytes(types: str, *, hbm: bool = False) -> int:
    """Return the bytes of the arrays in a text; with `hbm`, without those in another memory space, S(n)."""
    return sum(
        math.prod(numbers(array["shape"])) * int(array["bits"] or 8) // 8
        for array in ARRAY.finditer(types)
        if not (hbm and "S(" in (array["layout"] or ""))
    )


def collectives(text: str, devices: int) -> list[dict]:
    """Return the kinds of collectives of a program's text: their count, bytes of whole arrays, first group.

    A collective that overlaps with other work appears several times on a TPU, in fusions with one channel.
    """
    by_channel, computation = {}, ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header["name"]
        if not (match := COLLECTIVE.search(line)):
            continue
        channel = CHANNEL.search(line)
        kind, members = match["kind"], group(line, devices)
        size = nbytes(line[: match.start()].partition(" = ")[2])
        size *= len(members) if kind == "reduce-scatter" else 1  # of the whole array
        row = {"kind": kind, "group": members, "beside": False, "bytes": size}
        row = by_channel.setdefault(channel[1] if channel else line, row)
        row["beside"] |= bool(match["start"]) or "async" in computation
    kinds = {}
    for row in by_channel.values():
        key = (row["kind"], row["beside"], *row["group"])
        total = kinds.setdefault(key, row | {"count": 0, "bytes": 0})
        total |= {"count": total["count"] + 1, "bytes": total["bytes"] + row["bytes"]}
    return list(kinds.values())


def traffic(text: str, *, hbm: bool) -> int:
    """Return the bytes that the instructions of the main computation read and write, by their types.

    With `hbm`, count the device's memory only; this needs a program that states which arrays are on the chip.
    Otherwise count all arrays, as if each instruction read and wrote memory, without the copies between memory
    and chip.
    """
    types, total, entry = {}, 0, False
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            entry = bool(header["entry"])
        if not entry or not (match := INSTRUCTION.match(line)):
            continue
        code = match["code"]
        types[match["name"]] = size = nbytes(match["type"], hbm=hbm)
        if code in FREE or (not hbm and code in MOVES):
            continue
        operands = re.findall(r"%([\w.-]+)", line[match.end() :].partition(")")[0])
        total += 0 if code.endswith("-start") else size
        if code == "slice-done":  # reads the slice, not the whole operand
            total += nbytes(match["type"])
        elif code != "slice-start" and not code.endswith("-done"):
            total += sum(types.get(name, 0) for name in operands)
    return total


def arithmetic(jaxpr: Any) -> int:
    """Return the FLOPs of the convolutions and matrix products of a traced function, by their shapes."""
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * math.prod(kernel) // features
        if name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in axes)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += arithmetic(inner) if hasattr(inner, "eqns") else 0
    return total


def program(about: dict, devices: list, text: Path | None) -> dict:
    """Compile one step; return the arithmetic, memory and communication of a device."""
    settings = resolve(read_config(CONFIGS / "cifar10.py"))
    settings.model["network"] |= about["network"]
    shape, batch = about["shape"], about["batch"]
    log_counts = np.zeros((*shape, 256), np.float32)
    job = Run(settings, Statistics(shape, 256, log_counts=log_counts))
    layout = make_layout("mesh", about["fsdp"], devices=devices[: about["devices"]])
    n = layout.mesh.size
    state = jax.eval_shape(job.start)
    like = jax.ShapeDtypeStruct
    dtypes = Batch(np.uint8, np.int32, np.float32)
    stack = Batch(*map(like, ((1, batch, *shape), (1, batch), (1, batch)), dtypes))
    step = job.step(layout)
    traced = jax.make_jaxpr(step)(state, jax.tree.map(lambda a: like(a.shape[1:], a.dtype), stack))
    places = shardings(layout, state)
    parts = jax.tree.map(lambda a, s: like(s.shard_shape(a.shape), a.dtype), state, places)
    row = {name: about[name] for name in ("batch", "fsdp", "network")} | {"devices": n}
    row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    row["state"] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts))
    row["arithmetic"] = arithmetic(traced) // n
    start = time.perf_counter()
    try:
        executable = compiled(layout, step, state).lower(state, stack, like((), np.int32)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"refused": " ".join(str(error).split())[:300]}
    row["compile_seconds"] = round(time.perf_counter() - start)
    cost, memory = executable.cost_analysis(), executable.memory_analysis()
    row |= {"flops": cost["flops"], "bytes_accessed": cost["bytes accessed"]}
    for name in ("argument", "output", "alias", "temp"):
        row[name] = getattr(memory, f"{name}_size_in_bytes")
    source = executable.as_text()
    if text is not None:
        text.write_text(source)
    row |= {"hbm": traffic(source, hbm=True), "operands": traffic(source, hbm=False)}
    return row | {"collectives": collectives(source, n)}


def wire(machine: Machine, collective: dict) -> float:
    """Return the seconds of a collective at full rate: rings inside the nodes, then between them."""
    members = collective["group"]
    nodes = len({device // machine.node for device in members})
    inside = len(members) // nodes
    share = (
        collective["bytes"] / inside
    )  # bytes that a device exchanges with its peers in other nodes
    seconds = (inside - 1) * share / machine.inside[len(members) > 8]
    seconds += (nodes - 1) / nodes * share / machine.across
    return ROUNDS[collective["kind"]] * seconds


def times(row: dict, machine: Machine) -> dict:
    """Return the milliseconds of each part of a step at full rate, and the expected time and efficiency."""
    peak = machine.peak[row["network"]["dtype"]]
    parts = {"arithmetic": row["flops"] / peak, "memory": row[machine.traffic] / machine.memory}
    sent = {
        True: 0.0,
        False: 0.0,
    }  # seconds of the collectives that overlap with work, and of the others
    for collective in row["collectives"]:
        latency = machine.latency * collective["count"]
        sent[collective["beside"]] += wire(machine, collective) / ACHIEVED["links"] + latency
    computation = max(parts[name] / ACHIEVED[name] for name in parts)
    links = sum(wire(machine, collective) for collective in row["collectives"])
    step = max(computation, sent[True]) + sent[False]
    parts |= {"links": links, "least": max(*parts.values(), links), "expected": step}
    milliseconds = {name: 1e3 * seconds for name, seconds in parts.items()}
    held = row["argument"] + row["output"] - row["alias"] + row["temp"]
    return milliseconds | {
        "efficiency": computation / step,
        "of peak": row["flops"] / peak / step,
        "examples/s": row["batch"] / step,
        "held": held,
        "fits": held < machine.capacity,
    }


def list_collectives(rows: list[dict]) -> str:
    """Return the collectives of a program as text."""
    side = {True: "beside work", False: "alone"}
    return "; ".join(
        f"{row['count']} {row['kind']} of {len(row['group'])}, {row['bytes'] / 1e6:.0f} MB, "
        f"{side[row['beside']]}"
        for row in rows
    )


PROGRAM = {
    "parameters, M": lambda r: f"{r['parameters'] / 1e6:.1f}",
    "state, MB": lambda r: f"{r['state'] / 1e6:.0f}",
    "temporaries, MB": lambda r: f"{r['temp'] / 1e6:.0f}",
    "GFLOP": lambda r: f"{r['flops'] / 1e9:.0f}",
    "of that traced": lambda r: f"{r['arithmetic'] / r['flops']:.0%}",
    "HBM, GB": lambda r: f"{r['hbm'] / 1e9:.1f}",
    "operands, GB": lambda r: f"{r['operands'] / 1e9:.1f}",
    "collectives": lambda r: list_collectives(r["collectives"]),
}
PARTS = ("arithmetic", "memory", "links", "least", "expected")
TIMES: dict[str, Callable[[dict], str]] = {
    f"{part}, ms": lambda t, part=part: f"{t[part]:.1f}" for part in PARTS
}
TIMES |= {part: lambda t, part=part: f"{t[part]:.0%}" for part in ("efficiency", "of peak")}
TIMES |= {
    "examples/s": lambda t: f"{t['examples/s']:,.0f}",
    "GB held": lambda t: f"{t['held'] / 1e9:.1f}",
}


def table(rows: dict[str, dict]) -> str:
    """Return the tables of the programs' needs and of the times that follow from the assumptions."""
    refused = [f"{name}: {row['refused']}\n" for name, row in rows.items() if "refused" in row]
    compiled_rows = {name: row for name, row in rows.items() if "refused" not in row}
    programs = [
        [name, *(show(row) for show in PROGRAM.values())] for name, row in compiled_rows.items()
    ]
    timings = [
        [name, machine, *(show(row_times) for show in TIMES.values())]
        for name, row in compiled_rows.items()
        for machine, row_times in row["times"].items()
    ]
    tables = [
        markdown_table(["program", *PROGRAM], programs),
        markdown_table(["program", "machine", *TIMES], timings),
    ]
    return "\n".join(tables + refused)


def chips() -> list:
    """Return the chips of the slice to compile for; exit if there is no compiler for it."""
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    except (RuntimeError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"scaling_plan: no TPU compiler (pip install libtpu): {reason}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--cases", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--text", type=Path, help="a folder for the compiled programs as text")
    options = parser.parse_args()
    set_up_jax(options.quick, cache=False)  # compilation is timed
    cases = QUICK if options.quick else CASES
    names = list(cases) if options.cases is None else options.cases
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"unknown cases {unknown}; known: {list(cases)}")
    out = output_folder(options, "scaling_plan")
    file = out / "results.json"
    keep = file.exists() and options.cases is not None
    rows = json.loads(file.read_text())["programs"] if keep else {}
    out.mkdir(parents=True, exist_ok=True)
    about = {"topology": TOPOLOGY} | environment("python") | {"achieved": ACHIEVED}
    devices = [] if not names else jax.devices() if options.quick else chips()
    for name in [*names, None]:  # None computes the times again without compiling
        if name is not None:
            text = options.text and options.text / f"{name}.txt"
            rows[name] = program(cases[name], devices, text) | environment("versions")
        for row in rows.values():
            if "refused" not in row:
                row["times"] = {key: times(row, machine) for key, machine in MACHINES.items()}
        rows = {name: rows[name] for name in cases if name in rows}
        file.write_text(json.dumps(about | {"programs": rows}, indent=2) + "\n")
        (out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
