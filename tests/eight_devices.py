"""Measurements on eight virtual devices, which test_parallel.py runs in another process; prints JSON."""

import json
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

import vdm_jax as vdm
from vdm_jax.config import resolve
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.elbo import draw_times
from vdm_jax.keys import example_keys
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runs.sweep import Run, Sweep
from vdm_jax.settings import SweepSettings
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.dispatch import compiled, dispatcher, make_layout
from vdm_jax.training.layout import (
    divided,
    jit_replicated,
    put,
    replicated,
    shardings,
    with_full_params,
)
from vdm_jax.training.state import step_of
from vdm_jax.training.step import make_step
from vdm_jax.typing import Batch

STEPS, STACK = 50, 20  # the last stack is shorter
LAYOUTS = {
    "jit": ("jit", 1, 1),
    "pmap 2": ("pmap", 2, 1),
    "pmap 8": ("pmap", 8, 1),
    "mesh 1": ("mesh", 1, 1),
    "mesh 4": ("mesh", 4, 1),
    "mesh 8": ("mesh", 8, 1),
    "mesh 8, fsdp 2": ("mesh", 8, 2),
    "mesh 8, fsdp 8": ("mesh", 8, 8),
}


def layout_of(name):
    parallel, n, fsdp = LAYOUTS[name]
    return make_layout(parallel, fsdp, devices=jax.devices()[:n])


class Digits:
    """The smoke config and its data."""

    def __init__(self):
        smoke = Path(__file__).parents[1] / "configs" / "smoke.py"
        self.settings = resolve(runpy.run_path(str(smoke))["get_config"]())
        self.data = load_dataset("digits")
        self.statistics = fit_statistics(level_counts(self.data.train.images, 17))
        self.job = Run(self.settings, self.statistics)
        self.shapes = jax.eval_shape(self.job.start)

    def batches(self, start, stop, stack=STACK):
        options = {"batch_size": 64, "seed": 0, "start_step": start, "stop_step": stop}
        return train_batches(self.data.train, **options, stack=stack)

    def runner(self, layout, traces):
        def loss(*arguments):
            traces.append(1)
            return self.job.model.loss(*arguments)

        step = make_step(
            with_full_params(layout, loss), self.job.optimizer, axis_name=layout.axis_name
        )
        return dispatcher(layout, step, self.shapes, STACK)

    def train(self, layout, state, stop):
        """Train to step `stop`; return the losses, the last state and the number of traces."""
        traces, losses = [], []
        dispatch = self.runner(layout, traces)
        for stack in self.batches(step_of(state), stop):
            state, metrics = dispatch(state, stack)
            losses += np.asarray(metrics["loss"]).tolist()
        return losses, state, len(traces)

    def start(self, layout):
        return jax.jit(self.job.start, out_shardings=shardings(layout, self.shapes))()


def draws(key, batch):
    """Draw the random numbers of each example: noise, time and the key of its dropout."""
    time_key, key = jax.random.split(key)
    noise, drop = example_keys(key, batch.index, 2)
    eps = jax.vmap(lambda key: jax.random.normal(key, (3,)))(noise)
    return eps, draw_times(time_key, batch.phase, None), jax.random.key_data(drop)


def numbers(state):
    """Return all numbers that training changes, as one list."""
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(state._replace(key=None))]
    return np.concatenate(leaves).astype(np.float64).tolist()


def side_by_side(digits, layout):
    """Return the losses [4, 8] of a sweep of eight runs, whose axis is not divided."""
    runs = SweepSettings(parameterizations=["eps", "v"], seeds=[0, 1, 2, 3])
    sweep = Sweep(replace(digits.settings, sweep=runs), digits.statistics)
    shapes = jax.eval_shape(sweep.start)
    places = shardings(layout, shapes)
    assert places.step.is_fully_replicated
    state, losses = jax.jit(sweep.start, out_shardings=places)(), []
    dispatch = dispatcher(layout, sweep.step(layout), shapes, 2)
    for stack in sweep.batches(
        digits.data.train, batch_size=64, start_step=0, stop_step=4, stack=2
    ):
        state, metrics = dispatch(state, stack)
        losses += np.asarray(metrics["loss"]).tolist()
    return losses


def drawn(layout):
    """Return the random numbers of a global batch of 16, as hexadecimal bytes."""
    x = np.zeros((16, 1), np.uint8)
    index = np.arange(16, dtype=np.int32)
    batch, key = Batch(x, index, index.astype(np.float32) / 16), jax.random.key(7)
    if layout.axis_name is None:
        draw = jax.jit(draws, in_shardings=(replicated(layout), divided(layout)))
        parts_drawn = draw(key, put(layout, batch))
    else:
        devices = list(layout.mesh.devices.flat)
        parts = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), batch)
        parts_drawn = jax.pmap(draws, in_axes=(None, 0), devices=devices)(key, parts)
    return [np.asarray(part).tobytes().hex() for part in parts_drawn]


def program(digits, layout, **model):
    """Compile one step of the smoke config with another network; return its text and the bytes of its state."""
    settings = replace(digits.settings, model=digits.settings.model | model)
    job = Run(settings, digits.statistics)
    shapes = jax.eval_shape(job.start)
    stack = next(digits.batches(0, 1, 1))
    batch = sum(leaf.nbytes for leaf in stack)
    dispatch = compiled(layout, job.step(layout), shapes)
    executable = dispatch.lower(shapes, layout.arrange(layout, stack), np.int32(1)).compile()
    state = executable.memory_analysis().argument_size_in_bytes - batch / layout.mesh.size - 4
    return {"text": executable.as_text(), "state": state}


def sampling(digits, layout):
    """Return the FLOPs of a device that draws its part of 16 samples."""

    def draw(params, key):
        return digits.job.model.sample(params, key, 16, steps=2)

    arguments = digits.shapes.ema_params, jax.eval_shape(lambda: jax.random.key(0))
    return jit_replicated(layout, draw, 16).lower(*arguments).compile().cost_analysis()["flops"]


def collectives(text):
    """Count the operations of each kind in a compiled text."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: text.count(f" {kind}(") + text.count(f" {kind}-start(") for kind in kinds}


def estimates(trained, n):
    """Return the likelihood estimates of a run on n devices, in bits/dim."""
    layout = make_layout("mesh", devices=jax.devices()[:n])
    state = jax.device_put(trained.state, replicated(layout))
    run = replace(trained, layout=layout, state=state, _compiled={})
    specs = [
        {"name": "importance", "timesteps": 2, "samples": 2, "variance": "fitted"},
        {"name": "ode", "steps": 2},
    ]
    return [run.evaluate(estimator=spec).bits_per_dim for spec in specs]


def main(folder):
    digits, results = Digits(), {}
    results["devices"] = jax.device_count()
    for name in LAYOUTS:
        layout = layout_of(name)
        losses, state, traces = digits.train(layout, digits.start(layout), STEPS)
        results[name] = {"losses": losses, "traces": traces, "drawn": drawn(layout)}
        results[name]["devices"] = len(state.step.devices())
        results[name]["state"] = numbers(state)

    halfway = digits.train(
        layout_of("mesh 8, fsdp 2"), digits.start(layout_of("mesh 8, fsdp 2")), 20
    )
    with CheckpointStore(folder / "half") as store:
        store.save(halfway[1], {})
    results["continued"] = {}
    for name in ("jit", "pmap 2", "mesh 4", "mesh 8, fsdp 8"):
        layout = layout_of(name)
        with CheckpointStore(folder / "half") as store:
            state = store.restore(digits.shapes, shardings=shardings(layout, digits.shapes))
        results["continued"][name] = digits.train(layout, state, STEPS)[0]

    wide = {"name": "mlp", "width": 512, "depth": 1}
    sizes = [
        program(digits, make_layout("mesh", n, devices=jax.devices()[:n]), network=wide)["state"]
        for n in (1, 2, 4, 8)
    ]
    results["state bytes"] = sizes
    results["collectives"] = {
        name: {
            depth: collectives(
                program(digits, layout_of(name), network=wide | {"depth": depth, "width": 64})[
                    "text"
                ]
            )
            for depth in (1, 4)
        }
        for name in ("mesh 1", "mesh 8", "pmap 8")
    }

    results["side by side"] = {
        name: side_by_side(digits, layout_of(name)) for name in ("jit", "pmap 8", "mesh 8, fsdp 8")
    }
    results["sampling"] = [sampling(digits, layout_of(name)) for name in ("mesh 1", "mesh 8")]

    config = digits.settings.plain
    config["train"] |= {"parallel": "mesh", "fsdp": 2, "steps": 20, "batch_size": 16}
    config["optimizer"] = config["optimizer"] | {"accumulate": 2}
    trained = vdm.train(config, folder / "run", log=partial(print, file=sys.stderr))
    results["test"] = trained.bits_per_dim()
    backwards = make_layout("mesh", devices=jax.devices()[::-1])
    state = jax.device_put(trained.state, replicated(backwards))
    results["backwards"] = replace(
        trained, layout=backwards, state=state, _compiled={}
    ).bits_per_dim()
    results["estimates"] = {n: estimates(trained, n) for n in (1, 8)}
    config["train"] |= {"parallel": "jit", "fsdp": 1}
    alone = vdm.train(config, folder / "jit", log=partial(print, file=sys.stderr))
    results["accumulated"] = [numbers(run.state) for run in (trained, alone)]
    results["samples"] = np.asarray(trained.sample(jax.random.key(0), 5, steps=3)).tolist()
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
