"""A smaller smoke config, and comparisons of the states and folders of its runs."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vdm_jax.models import statistics

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.py"
STEPS, STACK, SAVE = 16, 4, 8  # saved at 8 and 16


def changed(config, changes):
    """Set {"section.field": value}."""
    for path, value in changes.items():
        *sections, field = path.split(".")
        tree = config
        for section in sections:
            tree = tree[section]
        with tree.ignore_type():
            tree[field] = value
    return config


def tiny(**changes):
    """Return a smaller smoke config; `changes` are {"section.field": value}."""
    config = runpy.run_path(str(SMOKE))["get_config"]()
    config.model.network.width = 8
    config.optimizer.warmup_steps = 2
    config.train.batch_size = 16
    config.train.steps = STEPS
    config.train.steps_per_dispatch = STACK
    config.train.log_every = 3
    config.train.checkpoint_every = SAVE
    config.evaluate.batch_size = 297
    config.sample.count = 4
    config.sample.steps = 2
    return changed(config, changes)


def numbers(state):
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(numbers(state), numbers(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in files}


def silent(line):
    del line


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(tmp_path_factory):
    """Compile with few optimisations and cache the programs, as the command line does."""
    gammas, statistics.RESIDUAL_GAMMAS = statistics.RESIDUAL_GAMMAS, np.linspace(-20.0, 12.0, 5)
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
    statistics.RESIDUAL_GAMMAS = gammas
