"""Differences between the numbers that two checkouts of the project train, to test a refactoring.

    python experiments/same_numbers.py OTHER [--quick] [--steps=20] [--out=DIR]

OTHER is the folder of another checkout, by default this one. Both checkouts train `configs/eps.py`,
`configs/mhvae.py` and `configs/side_by_side.py` for some steps, with small networks, evaluate and sample. The
script compares all logged losses, the test bounds and the samples, and fails if a loss or a bound differs.
Writes table.md and numbers.json if --out is given. --quick takes two steps of one config.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import ROOT, argument_parser, environment, markdown_row, markdown_table
from PIL import Image

CONFIGS = {  # with smaller networks, because compilation would take most of the time
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
    evaluation = json.loads((folder / "evaluation.json").read_text())
    picture = folder / "samples.png"
    samples = np.asarray(Image.open(picture)).tolist() if picture.exists() else None
    return {"losses": losses, "bounds": bounds(evaluation), "samples": samples}


def revision(checkout: Path) -> str:
    """Return the commit of a checkout, or its folder's name outside of Git."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    completed = subprocess.run(command, capture_output=True, text=True)
    return completed.stdout.strip() or checkout.resolve().name


def bounds(value) -> list[float]:
    """Return every test bound of an evaluation, in the order of its names."""
    if not isinstance(value, dict):
        return []
    bound = [value["bits_per_dim"]] if isinstance(value.get("bits_per_dim"), float) else []
    return bound + [x for name in sorted(value) for x in bounds(value[name])]


def difference(a: list[float], b: list[float]) -> float:
    """Return the largest relative difference of two lists, infinite if their lengths differ."""
    if len(a) != len(b) or not a:
        return math.inf
    return max(abs(x - y) / max(abs(x), 1e-30) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("other", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    names = ["mhvae"] if options.quick else [*CONFIGS]
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            steps = 2 if options.quick else options.steps
            pair = [
                numbers(path.resolve(), name, steps, Path(folder) / f"{name}_{i}")
                for i, path in enumerate((options.other, ROOT))
            ]
            losses, elbos = (difference(pair[0][p], pair[1][p]) for p in ("losses", "bounds"))
            counts = [len(pair[1][part]) for part in ("losses", "bounds")]
            samples = [result["samples"] for result in pair]
            same = "none" if samples[0] is None else str(samples[0] == samples[1])
            cells = [name, f"{counts[0]}", f"{losses:.1e}", f"{counts[1]}", f"{elbos:.1e}", same]
            rows.append(cells)
            results[name] = {"steps": steps, "losses": losses, "bounds": elbos}
            results[name] |= {"same_samples": same}
            print(markdown_row(cells), flush=True)
    about = environment("versions", "device")
    columns = ["config", "losses", "largest difference", "test bounds", "largest difference"]
    columns += ["samples"]
    caption = (
        f"{revision(options.other)} and {revision(ROOT)}, jax {about['versions']['jax']}, "
        f"{about['device']}; largest relative differences, equality of all pixels."
    )
    table = markdown_table(columns, rows, caption)
    print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(table)
        (options.out / "numbers.json").write_text(json.dumps(results, indent=1) + "\n")
    worst = max(max(row["losses"], row["bounds"]) for row in results.values())
    if not worst < 1e-4:
        sys.exit(f"the numbers differ by {worst:.1e}")


if __name__ == "__main__":
    main()
