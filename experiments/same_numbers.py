"""Do two checkouts of the project train the same numbers? For a change that must not change any.

    python experiments/same_numbers.py OTHER [--quick] [--steps=20] [--out=DIR]

OTHER is the folder of another checkout. Both checkouts train `configs/eps.py`, `configs/mhvae.py` and
`configs/side_by_side.py` for some steps, with small networks, evaluate and sample. Compares the
losses of all lines, the test bounds and the samples; writes table.md and numbers.json. --quick
takes OTHER to be this checkout and two steps of one config.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from PIL import Image

HERE = Path(__file__).parents[1]
CONFIGS = {  # with smaller networks, whose compilation would take most of the time
    "eps": [
        "--config.model.network.channels=8",
        "--config.model.network.blocks=1",
        "--config.sample.steps=5",
    ],
    "mhvae": [],
    "side_by_side": ["--config.model.network.width=16", "--config.model.network.depth=1"],
}
SHARED = ["--config.evaluate.draws=1", "--config.sample.count=4"]


def numbers(checkout: Path, name: str, steps: int, folder: Path) -> dict:
    """Train a config in a checkout; return its logged losses, its test bounds and its samples."""
    command = [sys.executable, "-m", "vdm_jax.main", f"--config=configs/{name}.py"]
    command += [f"--workdir={folder}", f"--config.train.steps={steps}"]
    command += [f"--config.train.log_every={max(1, steps // 10)}", *SHARED, *CONFIGS[name]]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=sys.stderr)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [v for row in rows for k, v in sorted(row.items()) if k.endswith("loss")]
    found = json.loads((folder / "evaluation.json").read_text())
    pixels = folder / "samples.png"
    samples = np.asarray(Image.open(pixels)).tolist() if pixels.exists() else None
    return {"losses": losses, "bounds": bounds(found), "samples": samples}


def revision(checkout: Path) -> str:
    """Return the commit of a checkout, or its folder's name outside of Git."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or checkout.resolve().name


def bounds(value) -> list[float]:
    """Return every test bound of an evaluation, in the order of its names."""
    if not isinstance(value, dict):
        return []
    own = [value["bits_per_dim"]] if isinstance(value.get("bits_per_dim"), float) else []
    return own + [x for name in sorted(value) for x in bounds(value[name])]


def difference(a: list[float], b: list[float]) -> float:
    """Return the largest relative difference of two lists, infinite if their lengths differ."""
    if len(a) != len(b) or not a:
        return math.inf
    return max(abs(x - y) / max(abs(x), 1e-30) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, default=HERE)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = ["mhvae"] if options.quick else [*CONFIGS]
    lines = [
        "| config | losses | largest difference | test bounds | largest difference | samples |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            steps = 2 if options.quick else options.steps
            pair = [
                numbers(path.resolve(), name, steps, Path(folder) / f"{name}_{i}")
                for i, path in enumerate((options.other, HERE))
            ]
            off = [difference(pair[0][part], pair[1][part]) for part in ("losses", "bounds")]
            same = (
                "none"
                if pair[0]["samples"] is None
                else str(pair[0]["samples"] == pair[1]["samples"])
            )
            counts = [len(pair[1][part]) for part in ("losses", "bounds")]
            lines.append(
                f"| {name} | {counts[0]} | {off[0]:.1e} | {counts[1]} | {off[1]:.1e} | {same} |"
            )
            results[name] = {
                "steps": steps,
                "losses": off[0],
                "bounds": off[1],
                "same_samples": same,
            }
            print(lines[-1], flush=True)
    about = f"{revision(options.other)} and {revision(HERE)}, jax {jax.__version__}"
    about += (
        f", {jax.devices()[0].device_kind}; largest relative differences, equality of all pixels."
    )
    table = "\n".join([*lines, "", about])
    print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(table + "\n")
        (options.out / "numbers.json").write_text(json.dumps(results, indent=1) + "\n")
    worst = max(max(row["losses"], row["bounds"]) for row in results.values())
    if not worst < 1e-4:
        sys.exit(f"the numbers differ by {worst:.1e}")


if __name__ == "__main__":
    main()
