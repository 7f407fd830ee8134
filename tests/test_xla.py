"""The guard against one wrong optimisation of XLA:CPU, and the reduction that it went wrong in."""

import os
import subprocess
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import Interval, bridge, posterior
from vdm_jax.gaussian import cross_entropy
from vdm_jax.xla import FLAG, avoid_wrong_cpu_reductions

NEEDED = ["0.10.2", "0.11.0", "0.11.1", "0.12.0.1", "0.12.9", "0.11.0.dev20260101"]
NOT_NEEDED = ["0.9.2", "0.10.0", "0.10.1", "0.13.0", "0.13.0rc1", "0.14.2", "1.0.0"]


def test_compiled_cross_entropies_are_right():
    """With an interval of its own for each of 4,096 examples: compiled, not compiled, and in NumPy."""

    def terms(xr, xt, x0_hat, gamma, delta):
        before = Interval(gamma, gamma + delta, delta)
        after = Interval(gamma + delta, gamma + 2 * delta, delta)
        b, p = bridge(xr, xt, before, after), posterior(xt, x0_hat, after)
        return cross_entropy(b, p), b, p

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4096, 4))
    at = rng.uniform(-10, 3, 4096), rng.uniform(0.1, 1, 4096)
    examples = [jnp.asarray(values, jnp.float32) for values in (*x, *at)]
    compiled = jax.jit(jax.vmap(lambda *example: terms(*example)[0]))(*examples)
    plain, b, p = jax.vmap(terms)(*examples)
    np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-4)

    (m1, v1), (m2, v2) = (
        (np.asarray(q.mean, np.float64), np.exp(np.asarray(q.log_var, np.float64))[:, None])
        for q in (b, p)
    )
    expected = 0.5 * np.sum((v1 + (m1 - m2) ** 2) / v2 + np.log(2 * np.pi * v2), axis=1)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("found", NEEDED + NOT_NEEDED)
@pytest.mark.parametrize("flags", [None, "", "--xla_dump_to=x"])
def test_guard_acts_on_the_versions_it_names(monkeypatch, found, flags):
    monkeypatch.setattr("vdm_jax.xla.version", lambda package: {"jaxlib": found}[package])
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    avoid_wrong_cpu_reductions()
    expected = [*(flags or "").split(), f"{FLAG}="] if found in NEEDED else (flags or "").split()
    assert os.environ.get("XLA_FLAGS", "").split() == expected
    avoid_wrong_cpu_reductions()
    assert os.environ.get("XLA_FLAGS", "").split() == expected


@pytest.mark.parametrize("flags", [f"{FLAG}=LIBRARY_FUSION_TYPE_DOT", f"--a=b {FLAG}= --c=d"])
def test_guard_leaves_a_users_flag_alone(monkeypatch, flags):
    monkeypatch.setattr("vdm_jax.xla.version", lambda package: NEEDED[0])
    monkeypatch.setenv("XLA_FLAGS", flags)
    avoid_wrong_cpu_reductions()
    assert os.environ["XLA_FLAGS"] == flags


LATE = """
import warnings, jax
{first}
from vdm_jax import xla
from vdm_jax.reductions import warn_of_wrong_reductions
with warnings.catch_warnings(record=True) as found:
    warn_of_wrong_reductions()
    warn_of_wrong_reductions()
print(xla.came_late(), *[str(one.message) for one in found])
"""


@pytest.mark.parametrize(("first", "wrong"), [("jax.numpy.ones(3) + 1", True), ("", False)])
def test_a_guard_that_came_too_late_is_said(monkeypatch, first, wrong):
    """Where the flag is not read in time, the check finds this jaxlib's wrong sums, if it has them."""
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", LATE.format(first=first)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = (0, 10, 2) <= tuple(int(n) for n in version("jaxlib").split(".")[:3]) < (0, 13)
    assert out.startswith(str(needed))
    assert ("import vdm_jax before" in out) == (wrong and needed)


def test_guard_is_on_where_it_is_needed():
    """`import vdm_jax` has set the flag of this process, if this jaxlib is one of those."""
    installed = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    if (0, 10, 2) <= installed < (0, 13):
        assert FLAG in os.environ["XLA_FLAGS"]
