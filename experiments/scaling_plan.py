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
from pathlib import Path
from typing import Any

if "--quick" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
from jax.experimental import topologies

from vdm_jax.config import to_dict
from vdm_jax.jobs import One
from vdm_jax.models import Statistics
from vdm_jax.training.checkpoint import library_versions
from vdm_jax.training.parallel import compiled, make_layout, shardings
from vdm_jax.typing import Batch

HERE = Path(__file__).resolve().parent
TOPOLOGY = "v5e:8x8"

CIFAR10 = {"shape": (32, 32, 3), "network": {}}
IMAGENET64 = {"shape": (64, 64, 3), "network": {"channels": 256, "blocks": 64}}
TINY = {"shape": (8, 8, 3), "network": {"channels": 8, "blocks": 1}}
BF16 = {"dtype": "bfloat16"}


def case(model: dict, batch: int, fsdp: int = 1, devices: int | None = None, **network) -> dict:
    """A model of configs/cifar10.py with another network, a global batch, and a layout."""
    network = model["network"] | network
    return model | {"network": network, "batch": batch, "fsdp": fsdp, "devices": devices}


CASES = {
    "CIFAR-10, 128": case(CIFAR10, 128),
    "CIFAR-10, 1024": case(CIFAR10, 1024),
    "CIFAR-10, 1024, bfloat16": case(CIFAR10, 1024, **BF16),
    "CIFAR-10, 1024, fsdp 8": case(CIFAR10, 1024, fsdp=8),
    "ImageNet-64, 128": case(IMAGENET64, 128),
    "ImageNet-64, 128, bfloat16": case(IMAGENET64, 128, **BF16),
    "ImageNet-64, 128, fsdp 8": case(IMAGENET64, 128, fsdp=8),
}
QUICK = {
    "tiny, one device": case(TINY, 8, devices=1),
    "tiny": case(TINY, 8),
    "tiny, fsdp 2, bfloat16": case(TINY, 8, fsdp=2, **BF16),
}

MACHINES: dict[str, dict[str, Any]] = {
    "v5e-64": {
        "peak": {"float32": 197e12, "bfloat16": 197e12},  # one bfloat16 pass by default
        "memory": 819e9,
        "capacity": 16 * 2**30,
        "node": 64,
        "inside": lambda members: 100e9 if members > 8 else 50e9,  # 2 links a chip, or 1 along a row
        "across": math.inf,
        "latency": 10e-6,
    },
    "64 × H100": {
        "peak": {"float32": 494e12, "bfloat16": 989e12},  # TensorFloat-32 by default
        "memory": 3.35e12,
        "capacity": 80 * 10**9,
        "node": 8,
        "inside": lambda members: 450e9,
        "across": 50e9,
        "latency": 20e-6,
    },
}
"""FLOP/s, bytes/s and bytes of a device; bytes/s that one device sends to others of its node and beyond."""

ACHIEVED = {"peak": 0.5, "memory": 0.8, "links": 0.8}
"""Of the rates above, by assumption."""

ROUNDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
ROUNDS |= {"collective-permute": 1}
WHOLE = {
    "reduce-scatter": lambda size, n: size * n,
    "all-gather-start": lambda size, n: size * n // (n + 1),  # its tuple has the operands too
}
"""Bytes of the whole array, from those that the instruction's type has, in a group of n."""

COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(ROUNDS)})(?P<start>-start)?\(")
ARRAY = re.compile(r"\b[a-z]+(?P<bits>\d+)\w*\[(?P<shape>[\d,]*)\]")
GROUPS = {
    "mesh": re.compile(r"replica_groups=mesh\[(?P<sizes>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\}"),
    "iota": re.compile(r"replica_groups=\[(?P<g>\d+),(?P<n>\d+)\]<=\[(?P<dims>[\d,]+)\](T\((?P<t>[\d,]+)\))?"),
    "list": re.compile(r"replica_groups=\{\{(?P<first>[\d,]+)\}"),
}


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def group(line: str, devices: int) -> list[int]:
    """The first group of devices of a collective, in any of the three ways in which XLA writes it."""
    if found := GROUPS["mesh"].search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found["sizes"]))
        axes = re.findall(r"'(\w+)'", found["axes"])
        ids = np.arange(devices).reshape([int(n) for n in sizes.values()])
        return ids[tuple(slice(None) if name in axes else 0 for name in sizes)].ravel().tolist()
    if found := GROUPS["iota"].search(line):
        ids = np.arange(devices).reshape(numbers(found["dims"]))
        ids = ids.transpose(numbers(found["t"])) if found["t"] else ids
        return ids.reshape(-1, int(found["n"]))[0].tolist()
    found = GROUPS["list"].search(line)
    return numbers(found["first"]) if found else list(range(devices))


def collectives(text: str, devices: int) -> list[dict]:
    """Kinds of collective of a program's text: how many, bytes of the whole arrays, first group."""
    found = {}
    for line in text.splitlines():
        if not (match := COLLECTIVE.search(line)):
            continue
        members = group(line, devices)
        size = sum(
            math.prod(numbers(array["shape"])) * int(array["bits"]) // 8
            for array in ARRAY.finditer(match["type"])
        )
        kind = match["kind"]
        whole = WHOLE.get(kind + (match["start"] or ""), WHOLE.get(kind, lambda size, n: size))
        row = {"kind": kind, "group": members, "count": 0, "bytes": 0}
        row = found.setdefault((kind, tuple(members)), row)
        row["count"] += 1
        row["bytes"] += whole(size, len(members))
    return list(found.values())


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
    job = One(config, Statistics(shape, 256, log_counts=log_counts))
    layout = make_layout("mesh", about["fsdp"], devices=devices[: about["devices"]])
    n = layout.mesh.size
    state = jax.eval_shape(job.start)
    like = jax.ShapeDtypeStruct
    x = like((1, batch, *shape), np.uint8)
    stack = Batch(x, like((1, batch), np.int32), like((1, batch), np.float32))
    step = job.step(layout)
    traced = jax.make_jaxpr(step)(state, jax.tree.map(lambda a: like(a.shape[1:], a.dtype), stack))
    parts = jax.tree.map(lambda a, s: like(s.shard_shape(a.shape), a.dtype), state, shardings(layout, state))
    row = {"batch": batch, "fsdp": about["fsdp"], "devices": n, "network": config["model"]["network"]}
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
    row |= {"flops": cost["flops"], "bytes": cost["bytes accessed"]}
    for name in ("argument", "output", "alias", "temp"):
        row[name] = getattr(memory, f"{name}_size_in_bytes")
    if text is not None:
        text.write_text(whole.as_text())
    return row | {"collectives": collectives(whole.as_text(), n)}


def wire(machine: dict, collective: dict) -> float:
    """Seconds of a collective at full rate: rings inside the nodes, then between them."""
    members = collective["group"]
    nodes = len({device // machine["node"] for device in members})
    inside = len(members) // nodes
    share = collective["bytes"] / inside  # what a device exchanges with its peers in other nodes
    seconds = (inside - 1) * share / machine["inside"](len(members))
    seconds += (nodes - 1) / nodes * share / machine["across"]
    return ROUNDS[collective["kind"]] * seconds


def times(row: dict, machine: dict) -> dict:
    """Milliseconds of a step: of each part at full rate, the least, the expected; and the efficiency."""
    peak = machine["peak"][row["network"]["dtype"]]
    parts = {"arithmetic": row["flops"] / peak, "memory": row["bytes"] / machine["memory"]}
    parts["links"] = sum(wire(machine, each) for each in row["collectives"])
    waits = machine["latency"] * sum(each["count"] for each in row["collectives"])
    alone = max(
        parts["arithmetic"] / ACHIEVED["peak"],
        parts["memory"] / ACHIEVED["memory"],
    )
    step = alone + parts["links"] / ACHIEVED["links"] + waits
    found = {name: 1e3 * seconds for name, seconds in parts.items()}
    found |= {"least": 1e3 * max(parts.values()), "expected": 1e3 * step, "efficiency": alone / step}
    held = row["argument"] + row["output"] - row["alias"] + row["temp"]
    found |= {"of_peak": row["flops"] / peak / step, "fits": held < machine["capacity"]}
    return found | {"examples_per_second": row["batch"] / step}


def table(rows: dict[str, dict]) -> str:
    """Of what the programs need, and of the times that the assumptions make of it."""
    lines = [
        "| program | parameters | batch of a device | GFLOP | HBM traffic, GB | state, MB | temporaries, MB "
        "| collectives | their bytes, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        start = f"| {name} | {r['parameters'] / 1e6:.1f} M | {r['batch'] // r['devices']} "
        if "refused" in r:
            lines.append(start + f"| | | {r['state'] / 1e6:.0f} | does not fit | | |")
            continue
        kinds = "; ".join(f"{c['count']} {c['kind']} of {len(c['group'])}" for c in r["collectives"])
        sent = sum(c["bytes"] for c in r["collectives"])
        lines.append(
            start + f"| {r['flops'] / 1e9:.1f} | {r['bytes'] / 1e9:.1f} | {r['state'] / 1e6:.0f} "
            f"| {r['temp'] / 1e6:.0f} | {kinds} | {sent / 1e6:.0f} |"
        )
    lines += ["", "| program | machine | arithmetic, ms | memory, ms | links, ms | expected step, ms "]
    lines[-1] += "| efficiency | of peak | examples/s | fits |"
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        for machine, t in r.get("times", {}).items():
            lines.append(
                f"| {name} | {machine} | {t['arithmetic']:.1f} | {t['memory']:.1f} | {t['links']:.1f} "
                f"| {t['expected']:.1f} | {t['efficiency']:.0%} | {t['of_peak']:.0%} "
                f"| {t['examples_per_second']:,.0f} | {'yes' if t['fits'] else 'no'} |"
            )
    return "\n".join(lines) + "\n"


def chips() -> list:
    """Of the slice to compile for; exits where there is no compiler for it."""
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        sys.exit(f"scaling_plan: no TPU compiler: pip install libtpu ({str(error).splitlines()[0]})")


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
    asked = list(cases) if options.cases is None else options.cases
    if unknown := [name for name in asked if name not in cases]:
        parser.error(f"unknown cases {unknown}; known: {list(cases)}")
    file = options.out / "results.json"
    rows = json.loads(file.read_text())["programs"] if file.exists() and options.cases is not None else {}
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
