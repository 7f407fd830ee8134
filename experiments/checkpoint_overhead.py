"""Cost of checkpoints: the share of the run's time that saving takes, and the time of a restore.

    TFDS_DATA_DIR=... python experiments/checkpoint_overhead.py [--quick] [--config configs/mnist.py]
                                                                [--steps 20] [--repeats 8] [--out DIR]

Stretches of the same number of steps, with and without a save at their start, take turns in one process. The
difference of their times is the time that a save takes from training; its share of the run follows from the
config's `train.checkpoint_every`. A restore is timed as a run does it, and its verification is timed alone.
Writes results.json and table.md. --quick measures the smoke config for seconds; its numbers mean nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _common import (
    CONFIGS,
    argument_parser,
    environment,
    initial_state,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
    write_results,
)

from vdm_jax.config import resolve
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.start import load_data
from vdm_jax.runs.sweep import Run
from vdm_jax.runtime.manifest import verify
from vdm_jax.settings import Settings
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.state import step_of

ABOUT = {"config": {}, "loop": {}}


def measure(settings: Settings, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return times in seconds, as lists with one entry per repeat, and what follows from them."""
    dataset = load_data(settings.data)
    job = Run(settings, statistics_of(settings.model, dataset))
    layout, train = make_layout("jit"), settings.train
    state = initial_state(job, layout)
    stack = train.steps_per_dispatch
    data = {"batch_size": train.batch_size, "start_step": 0, "stop_step": stack, "stack": stack}
    batches = next(job.batches(dataset.train, **data))
    run = dispatcher(layout, job.step(layout), state, stack)

    def stretch(state, store):
        start = time.perf_counter()
        blocked = 0.0
        if store is not None:
            store.save(state, ABOUT)
            blocked = time.perf_counter() - start
        for _ in range(max(options.steps // stack, 1)):
            state, metrics = run(state, batches)
            float(metrics["loss"][-1])  # fetch every loss, as the training loop does
        if store is not None:
            store.wait()
        return state, time.perf_counter() - start, blocked

    times: dict[str, list[float]] = {"plain": [], "saving": [], "blocked": []}
    with CheckpointStore(folder) as store:
        state, _, _ = stretch(state, store)  # compiles, and starts orbax's threads
        for _ in range(options.repeats):
            state, plain, _ = stretch(state, None)
            state, saving, blocked = stretch(state, store)
            times["plain"].append(plain)
            times["saving"].append(saving)
            times["blocked"].append(blocked)
    steps = max(options.steps // stack, 1) * stack
    saves = summary(times, steps, train.checkpoint_every)
    restores = measure_restores(job, step_of(state) - steps, folder, options.repeats)
    return times | saves | restores


def summary(times: dict[str, list[float]], steps: int, every: int) -> dict[str, Any]:
    """Return the seconds of a step, and of a save: the median over pairs of the additional time."""
    step = float(np.median(times["plain"])) / steps
    save = float(np.median(np.subtract(times["saving"], times["plain"])))
    return {"step": step, "save": save, "every": every, "share": save / (step * every)}


def measure_restores(job: Run, step: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Return the times of a restore, as a run does it, and of the verification that is part of it."""
    like = jax.eval_shape(job.start)
    verified, restored = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with CheckpointReader(folder) as store:
            jax.block_until_ready(store.restore(like))
        restored.append(time.perf_counter() - start)
        start = time.perf_counter()
        if fault := verify(folder / str(step)):
            raise SystemExit(f"{folder / str(step)}: {fault}")
        verified.append(time.perf_counter() - start)
    size = sum(path.stat().st_size for path in (folder / str(step)).rglob("*") if path.is_file())
    share = float(np.median(verified) / (np.median(restored) - np.median(verified)))
    return {"restore": restored, "verify": verified, "verification": share, "megabytes": size / 1e6}


def table(name: str, results: dict[str, Any]) -> str:
    """Return the table of the measured costs."""
    blocked, every = np.median(results["blocked"]), results["every"]
    saves = np.subtract(results["saving"], results["plain"])
    rows = {
        "a step": f"{1e3 * results['step']:.1f} ms",
        "a checkpoint": f"{results['megabytes']:.1f} MB",
        "a save takes from training": f"{1e3 * results['save']:.0f} ms ({1e3 * saves.min():.0f} to "
        f"{1e3 * saves.max():.0f}), of which {1e3 * blocked:.0f} ms waiting",
        f"of the run's time, every {every} steps": f"{100 * results['share']:.3f} %",
        "a restore, with its verification": f"{1e3 * np.median(results['restore']):.0f} ms",
        "its verification": f"{1e3 * np.median(results['verify']):.1f} ms, "
        f"{100 * results['verification']:.1f} % of the rest",
    }
    return markdown_table([f"`{name}`", ""], rows.items())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--config", type=Path, default=CONFIGS / "mnist.py")
    parser.add_argument("--steps", type=int, default=20, help="of a stretch")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    set_up_jax(options.quick, cache=False)  # only checkpoints are written to the disk
    if options.quick:
        options.config, options.repeats = CONFIGS / "smoke.py", 2
    out = output_folder(options, "checkpoint_overhead")

    settings = resolve(read_config(options.config))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(settings, options, Path(folder))
    text = table(f"configs/{options.config.name}", results)
    about = environment("versions", "python", "machine", "device")
    write_results(out, about | results, text)


if __name__ == "__main__":
    main()
