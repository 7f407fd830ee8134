"""What a step of the paper's models costs on 64 devices: read from the compiled program, before there are any.

    python experiments/scaling_plan.py [--quick] [--cases NAME ...] [--out DIR]

Compiles the train step of configs/cifar10.py and of the ImageNet-64 model of Kingma et al. 2021 for a slice
of 64 TPU v5e chips. No such chip is needed: `pip install libtpu` brings the compiler. FLOPs, bytes and
collectives of one device are read from the program; expected times follow from `MACHINES`, whose numbers are
assumptions (docs/scaling.md). --cases compiles those alone and keeps the other programs of results.json; with
no name after it, only the times are computed again. Writes results.json and table.md. --quick compiles a
tiny model for four virtual devices of the CPU; its numbers mean nothing.
"""

import argparse
import json
import math
import os
import platform
import re
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if "--quick" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
from jax.experimental import topologies

from vdm_jax.config import to_dict
from vdm_jax.models import Statistics
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.dispatch import compiled, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.typing import Batch

HERE = Path(__file__).resolve().parent
TOPOLOGY = "v5e:8x8"

CIFAR10 = {"shape": (32, 32, 3), "network": {}}
IMAGENET64 = {"shape": (64, 64, 3), "network": {"channels": 256, "blocks": 64}}
TINY = {"shape": (8, 8, 3), "network": {"channels": 8, "blocks": 1}}
BF16 = "bfloat16"


def case(model: dict, batch: int, *, dtype: str = "float32", fsdp: int = 1, devices: Any = None):
    """A model of configs/cifar10.py with another network, a global batch, and a layout."""
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
    """Of a device: FLOP/s by type, bytes/s of its memory, what of a program goes through it, bytes it holds;
    devices of a node, bytes/s that one sends inside a small or large group and to other nodes, seconds of a
    collective's start."""

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
"""Of the rates above, by assumption."""

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
    return [int(n) for n in text.split(",") if n]


def group(line: str, devices: int) -> list[int]:
    """The first group of devices of a collective, in any of the three ways in which XLA writes it."""
    ids = np.arange(devices)
    if found := MESH.search(line):
        sizes, axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1])), re.findall(r"'(\w+)'", found[2])
        ids = ids.reshape([int(n) for n in sizes.values()])
        return ids[tuple(slice(None) if name in axes else 0 for name in sizes)].ravel().tolist()
    if found := IOTA.search(line):
        ids = ids.reshape(numbers(found[2]))
        ids = ids.transpose(numbers(found[3])) if found[3] else ids
        return ids.reshape(-1, int(found[1]))[0].tolist()
    found = LIST.search(line)
    return numbers(found[1]) if found else ids.tolist()


def nbytes(types: str, *, hbm: bool = False) -> int:
    """Of the arrays that a text names; `hbm`: without those that lie in another memory space, S(n)."""
    return sum(
        math.prod(numbers(array["shape"])) * int(array["bits"] or 8) // 8
        for array in ARRAY.finditer(types)
        if not (hbm and "S(" in (array["layout"] or ""))
    )


def collectives(text: str, devices: int) -> list[dict]:
    """Kinds of collective of a program's text: how many, bytes of the whole arrays, first group.

    On a TPU one that runs beside other work is written several times with one channel, in fusions.
    """
    each, computation = {}, ""
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
        row = each.setdefault(channel[1] if channel else line, row)
        row["beside"] |= bool(match["start"]) or "async" in computation
    found = {}
    for row in each.values():
        key = (row["kind"], row["beside"], *row["group"])
        same = found.setdefault(key, row | {"count": 0, "bytes": 0})
        same |= {"count": same["count"] + 1, "bytes": same["bytes"] + row["bytes"]}
    return list(found.values())


def traffic(text: str, *, hbm: bool) -> int:
    """Bytes that the main computation's instructions read and write, by their types.

    `hbm`: those of the device's memory alone, where the program says which arrays lie on the chip. Else all
    arrays, as if each instruction read and wrote memory, without the copies from memory to chip.
    """
    types, total, entry = {}, 0, False
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            entry = bool(header["entry"])
        if not entry or not (found := INSTRUCTION.match(line)):
            continue
        code = found["code"]
        types[found["name"]] = size = nbytes(found["type"], hbm=hbm)
        if code in FREE or (not hbm and code in MOVES):
            continue
        operands = re.findall(r"%([\w.-]+)", line[found.end() :].partition(")")[0])
        total += 0 if code.endswith("-start") else size
        if code == "slice-done":  # a slice, of an operand that may be larger
            total += nbytes(found["type"])
        elif code != "slice-start" and not code.endswith("-done"):
            total += sum(types.get(name, 0) for name in operands)
    return total


def arithmetic(jaxpr: Any) -> int:
    """FLOPs of the convolutions and matrix products of a traced function, by their shapes."""
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
    """Compile one step and read what a device has to do, to hold and to send."""
    config = to_dict(runpy.run_path(str(HERE.parent / "configs" / "cifar10.py"))["get_config"]())
    config["model"]["network"] |= about["network"]
    shape, batch = about["shape"], about["batch"]
    log_counts = np.zeros((*shape, 256), np.float32)
    job = Run(config, Statistics(shape, 256, log_counts=log_counts))
    layout = make_layout("mesh", about["fsdp"], devices=devices[: about["devices"]])
    n = layout.mesh.size
    state = jax.eval_shape(job.start)
    like = jax.ShapeDtypeStruct
    dtypes = Batch(np.uint8, np.int32, np.float32)
    stack = Batch(*map(like, ((1, batch, *shape), (1, batch), (1, batch)), dtypes))
    step = job.step(layout)
    traced = jax.make_jaxpr(step)(state, jax.tree.map(lambda a: like(a.shape[1:], a.dtype), stack))
    lie = shardings(layout, state)
    parts = jax.tree.map(lambda a, s: like(s.shard_shape(a.shape), a.dtype), state, lie)
    row = {name: about[name] for name in ("batch", "fsdp", "network")} | {"devices": n}
    row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    row["state"] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts))
    row["arithmetic"] = arithmetic(traced) // n
    start = time.perf_counter()
    try:
        whole = compiled(layout, step, state).lower(state, stack, like((), np.int32)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"refused": " ".join(str(error).split())[:300]}
    row["compile_seconds"] = round(time.perf_counter() - start)
    cost, memory = whole.cost_analysis(), whole.memory_analysis()
    row |= {"flops": cost["flops"], "bytes_accessed": cost["bytes accessed"]}
    for name in ("argument", "output", "alias", "temp"):
        row[name] = getattr(memory, f"{name}_size_in_bytes")
    written = whole.as_text()
    if text is not None:
        text.write_text(written)
    row |= {"hbm": traffic(written, hbm=True), "operands": traffic(written, hbm=False)}
    return row | {"collectives": collectives(written, n)}


def wire(machine: Machine, collective: dict) -> float:
    """Seconds of a collective at full rate: rings inside the nodes, then between them."""
    members = collective["group"]
    nodes = len({device // machine.node for device in members})
    inside = len(members) // nodes
    share = collective["bytes"] / inside  # what a device exchanges with its peers in other nodes
    seconds = (inside - 1) * share / machine.inside[len(members) > 8]
    seconds += (nodes - 1) / nodes * share / machine.across
    return ROUNDS[collective["kind"]] * seconds


def times(row: dict, machine: Machine) -> dict:
    """Milliseconds of a step: of each part at full rate, the least, the expected; and the efficiency."""
    peak = machine.peak[row["network"]["dtype"]]
    parts = {"arithmetic": row["flops"] / peak, "memory": row[machine.traffic] / machine.memory}
    sent = {True: 0.0, False: 0.0}
    for each in row["collectives"]:
        latency = machine.latency * each["count"]
        sent[each["beside"]] += wire(machine, each) / ACHIEVED["links"] + latency
    alone = max(parts[name] / ACHIEVED[name] for name in parts)
    links = sum(wire(machine, each) for each in row["collectives"])
    step = max(alone, sent[True]) + sent[False]
    parts |= {"links": links, "least": max(*parts.values(), links), "expected": step}
    found = {name: 1e3 * seconds for name, seconds in parts.items()}
    found |= {"efficiency": alone / step, "of peak": row["flops"] / peak / step}
    held = row["argument"] + row["output"] - row["alias"] + row["temp"]
    return found | {
        "examples/s": row["batch"] / step,
        "held": held,
        "fits": held < machine.capacity,
    }


def listed(found: list[dict]) -> str:
    side = {True: "beside work", False: "alone"}
    return "; ".join(
        f"{each['count']} {each['kind']} of {len(each['group'])}, {each['bytes'] / 1e6:.0f} MB, "
        f"{side[each['beside']]}"
        for each in found
    )


PROGRAM = {
    "parameters, M": lambda r: f"{r['parameters'] / 1e6:.1f}",
    "state, MB": lambda r: f"{r['state'] / 1e6:.0f}",
    "temporaries, MB": lambda r: f"{r['temp'] / 1e6:.0f}",
    "GFLOP": lambda r: f"{r['flops'] / 1e9:.0f}",
    "of that traced": lambda r: f"{r['arithmetic'] / r['flops']:.0%}",
    "HBM, GB": lambda r: f"{r['hbm'] / 1e9:.1f}",
    "operands, GB": lambda r: f"{r['operands'] / 1e9:.1f}",
    "collectives": lambda r: listed(r["collectives"]),
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
    """What the programs need, and the times that the assumptions make of it."""
    refused = [f"{name}: {r['refused']}\n" for name, r in rows.items() if "refused" in r]
    whole = {name: r for name, r in rows.items() if "refused" not in r}
    timed = {f"{name} | {m}": t for name, r in whole.items() for m, t in r["times"].items()}
    lines = []
    for head, columns, body in (
        ("program", PROGRAM, whole),
        ("program | machine", TIMES, timed),
    ):
        cells = [[head, *columns]]
        cells += [[name, *(f"{show(r)}" for show in columns.values())] for name, r in body.items()]
        text = ["| " + " | ".join(row) + " |" for row in cells]
        lines += [text[0], "|---" * (text[0].count("|") - 1) + "|", *text[1:], ""]
    return "\n".join(lines + refused)


def chips() -> list:
    """Of the slice to compile for; exits where there is no compiler for it."""
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    except (RuntimeError, ValueError, ImportError) as error:
        why = str(error).splitlines()[0]
        sys.exit(f"scaling_plan: no TPU compiler (pip install libtpu): {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--cases", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--text", type=Path, help="a folder for the compiled programs as text")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scaling_plan")
    options = parser.parse_args()
    cases = QUICK if options.quick else CASES
    if options.quick:
        options.out = Path(tempfile.mkdtemp())
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    asked = list(cases) if options.cases is None else options.cases
    if unknown := [name for name in asked if name not in cases]:
        parser.error(f"unknown cases {unknown}; known: {list(cases)}")
    file = options.out / "results.json"
    kept = file.exists() and options.cases is not None
    rows = json.loads(file.read_text())["programs"] if kept else {}
    options.out.mkdir(parents=True, exist_ok=True)
    devices = [] if not asked else jax.devices() if options.quick else chips()
    for name in [*asked, None]:
        if name is not None:
            text = options.text and options.text / f"{name}.txt"
            rows[name] = program(cases[name], devices, text)
            rows[name]["versions"] = library_versions()
        for row in rows.values():
            if "refused" not in row:
                row["times"] = {machine: times(row, about) for machine, about in MACHINES.items()}
        rows = {name: rows[name] for name in cases if name in rows}
        about = {"topology": TOPOLOGY, "python": platform.python_version(), "achieved": ACHIEVED}
        file.write_text(json.dumps(about | {"programs": rows}, indent=2) + "\n")
        (options.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
