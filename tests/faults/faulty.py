"""A smaller smoke config with the fault that the environment requests.

A config file is Python, and trusted: this one reaches into the package before it runs. `FAULT` is JSON:

    {"slow": seconds}                        every dispatch waits this long for its data
    {"signals": [15, ...], "at": phase}      the process sends itself these, one after the other
    {"poison": "loss"|"gradient", "value": "nan"|"inf", "steps": [...]}
    {"stuck": step}                          the data of this step never arrive
    {"report": false}                        no evaluation and no plots at the end, for speed

The time of the first signal is left in the file `signalled`.
"""

import json
import os
import runpy
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from vdm_jax.runs import report, sweep, train, trained
from vdm_jax.runtime import interrupt
from vdm_jax.training.checkpoint import CheckpointStore

FAULT = json.loads(os.environ.get("FAULT", "{}"))
SMOKE = Path(__file__).parents[2] / "configs" / "smoke.py"


def get_config():
    config = runpy.run_path(str(SMOKE))["get_config"]()
    config.model.network.width = 8
    config.optimizer.warmup_steps = 2
    config.train.batch_size = 16
    config.train.steps = 40
    config.train.steps_per_dispatch = 2
    config.train.log_every = 2
    config.train.checkpoint_every = 8
    config.evaluate.draws = 1
    config.evaluate.batch_size = 99
    config.sample.count = 1
    config.sample.steps = 2
    if not hasattr(sweep, "faults_are_in"):  # flags may ask for the config more than once
        sweep.faults_are_in = True
        _slow()
        if "signals" in FAULT:
            PHASES[FAULT["at"]]()
        if "poison" in FAULT:
            _poison()
        if not FAULT.get("report", True):
            train.report = lambda trained, log: None
    return config


def _send():
    Path("signalled").write_text(str(time.time()))
    for number in FAULT["signals"]:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


def _later(seconds):
    timer = threading.Timer(seconds, _send)
    timer.daemon = True
    timer.start()


def _before(module, name, action):
    """Run `action` before every call of a function of the package."""
    whole = getattr(module, name)

    def changed(*arguments, **options):
        action()
        return whole(*arguments, **options)

    setattr(module, name, changed)


def _at_dispatch(number, action):
    """Run `action` right before a dispatch."""
    whole = train.dispatcher

    def dispatcher(*arguments):
        dispatch, calls = whole(*arguments), iter(range(10**9))

        def changed(state, stack):
            if next(calls) == number:
                action()
            return dispatch(state, stack)

        return changed

    train.dispatcher = dispatcher


def _patiently():
    """Send the signals with a grace period that even a slow compilation does not exceed."""
    interrupt.GRACE_SECONDS = 300.0
    _send()


def _between_batches():
    whole = trained.eval_batches

    def batches(*arguments, **options):
        for i, batch in enumerate(whole(*arguments, **options)):
            if i == 1:
                _send()
            yield batch

    trained.eval_batches = batches


def _while_saving():
    whole = CheckpointStore.save

    def save(self, *arguments, **options):
        whole(self, *arguments, **options)
        _send()

    CheckpointStore.save = save


PHASES = {
    "first step": lambda: _at_dispatch(0, _patiently),
    "compilation": lambda: _at_dispatch(0, lambda: _later(0.15)),
    "training": lambda: _at_dispatch(6, _send),
    "evaluation": _between_batches,
    "sampling": lambda: _before(report, "draw_samples", _send),
    "save": _while_saving,
}


def _slow():
    seconds, stuck = FAULT.get("slow", 0), FAULT.get("stuck")
    whole = sweep.train_batches

    def batches(*arguments, start_step, **options):
        step = start_step
        for stack in whole(*arguments, start_step=start_step, **options):
            time.sleep(seconds)
            step += len(stack.index)
            if stuck is not None and step >= stuck:
                time.sleep(3600)
            yield stack

    if seconds or stuck is not None:
        sweep.train_batches = batches


def _poison():
    whole, bad = sweep.make_step, float(FAULT["value"])

    def make_step(loss, optimizer, **options):
        def step(state, batch):
            hit = jnp.isin(state.step, jnp.asarray(FAULT["steps"]) - 1)
            poisons = {
                "loss": lambda value: jnp.where(hit, bad, value),
                "gradient": _through(hit, bad),
            }

            def poisoned(params, *arguments):
                value, aux = loss(params, *arguments)
                return poisons[FAULT["poison"]](value), aux

            return whole(poisoned, optimizer, **options)(state, batch)

        return step

    sweep.make_step = make_step


def _through(hit, bad):
    """Return the identity with a bad gradient where `hit` is true."""
    same = jax.custom_vjp(lambda value: value)
    same.defvjp(lambda value: (value, None), lambda _, g: (jnp.where(hit, bad, g),))
    return same
