"""What do checkpoints cost: of the run's time at a config's own interval, and of the time of a restore?

    TFDS_DATA_DIR=... python experiments/checkpoint_overhead.py [--quick] [--config configs/mnist.py]
                                                                [--steps 20] [--repeats 8] [--out DIR]

Stretches of as many steps with and without a save at their start take turns in one process; the difference of
their times is what a save takes from training, whose share of the run follows from the config's
`train.checkpoint_every`. A restore is timed as a run does it, and its verification alone. Writes results.json
and table.md. --quick measures the smoke config for seconds; its numbers mean nothing.
"""

import argparse
import json
import platform
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.config import to_dict
from vdm_jax.data import load_dataset
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.manifest import verify
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.layout import shardings
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.state import step_of

HERE = Path(__file__).resolve().parent
ABOUT = {"config": {}, "loop": {}}


def measure(config: dict[str, Any], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times in seconds, lists of one for each repeat."""
    dataset = load_dataset(**config["data"])
    job = Run(config, statistics_of(config, dataset))
    layout, train = make_layout("jit"), config["train"]
    places = shardings(layout, jax.eval_shape(job.start))
    state = jax.jit(job.start, out_shardings=places)()
    stack = train["steps_per_dispatch"]
    data = {"batch_size": train["batch_size"], "start_step": 0, "stop_step": stack, "stack": stack}
    batches = next(job.batches(dataset.train, **data))
    run = dispatcher(layout, job.step(layout), state, stack)

    def stretch(state, store):
        began = time.perf_counter()
        blocked = 0.0
        if store is not None:
            store.save(state, ABOUT)
            blocked = time.perf_counter() - began
        for _ in range(max(options.steps // stack, 1)):
            state, metrics = run(state, batches)
            float(metrics["loss"][-1])  # as the loop does, which looks at every step
        if store is not None:
            store.wait()
        return state, time.perf_counter() - began, blocked

    found: dict[str, Any] = {"plain": [], "saving": [], "blocked": []}
    with CheckpointStore(folder) as store:
        state, _, _ = stretch(state, store)  # compiles, and starts orbax's threads
        for _ in range(options.repeats):
            state, plain, _ = stretch(state, None)
            state, saving, blocked = stretch(state, store)
            found["plain"].append(plain)
            found["saving"].append(saving)
            found["blocked"].append(blocked)
    steps = max(options.steps // stack, 1) * stack
    found |= summary(found, steps, train["checkpoint_every"])
    return found | restoring(job, step_of(state) - steps, folder, options.repeats)


def summary(found: dict[str, Any], steps: int, every: int) -> dict[str, Any]:
    """Seconds of a step, and of a save: what a stretch takes longer with one, pair by pair."""
    step = float(np.median(found["plain"])) / steps
    save = float(np.median(np.subtract(found["saving"], found["plain"])))
    return {"step": step, "save": save, "every": every, "share": save / (step * every)}


def restoring(job: Run, step: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Times of a restore, as a run does it, and of the verification in it."""
    like = jax.eval_shape(job.start)
    verified, restored = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        with CheckpointReader(folder) as store:
            jax.block_until_ready(store.restore(like))
        restored.append(time.perf_counter() - began)
        began = time.perf_counter()
        if fault := verify(folder / str(step)):
            raise SystemExit(f"{folder / str(step)}: {fault}")
        verified.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in (folder / str(step)).rglob("*") if path.is_file())
    share = float(np.median(verified) / (np.median(restored) - np.median(verified)))
    return {"restore": restored, "verify": verified, "verification": share, "megabytes": size / 1e6}


def table(name: str, found: dict[str, Any]) -> str:
    blocked, every = np.median(found["blocked"]), found["every"]
    saves = np.subtract(found["saving"], found["plain"])
    rows = {
        "a step": f"{1e3 * found['step']:.1f} ms",
        "a checkpoint": f"{found['megabytes']:.1f} MB",
        "a save takes from training": f"{1e3 * found['save']:.0f} ms ({1e3 * saves.min():.0f} to "
        f"{1e3 * saves.max():.0f}), of which {1e3 * blocked:.0f} ms waiting",
        f"of the run's time, every {every} steps": f"{100 * found['share']:.3f} %",
        "a restore, with its verification": f"{1e3 * np.median(found['restore']):.0f} ms",
        "its verification": f"{1e3 * np.median(found['verify']):.1f} ms, "
        f"{100 * found['verification']:.1f} % of the rest",
    }
    lines = [
        f"| `{name}` | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs" / "mnist.py")
    parser.add_argument("--steps", type=int, default=20, help="of a stretch")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "checkpoint_overhead")
    options = parser.parse_args()
    if options.quick:
        options.config = HERE.parent / "configs" / "smoke.py"
        options.out, options.repeats = Path(tempfile.mkdtemp()), 2
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster

    config = to_dict(runpy.run_path(str(options.config))["get_config"]())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, options, Path(folder))
    text = table(f"configs/{options.config.name}", found)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {"machine": platform.machine(), "device": device.device_kind}
    (options.out / "results.json").write_text(json.dumps(about | found, indent=2) + "\n")
    (options.out / "table.md").write_text(text)


if __name__ == "__main__":
    main()
