"""The likelihood of the probability-flow ODE on a fixed grid, eq. (26), (27) (Song et al. 2021).

    dx/dγ = ½ α (α x − x̂_0(x, γ)),   log p_{γ_0}(y) = log N(x_{γ_1}; 0, I) + ∫ tr(∂f/∂x) dγ

It is the likelihood of the flow, which is another model than the chain whose ELBO is trained. All examples take
the same steps, uniform in γ, so that no device waits for another and results do not depend on adaptive steps.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import MAX_STEPS, whole_number
from vdm_jax.diffusion import Interval, alpha, log_alpha
from vdm_jax.elbo import Process, same_for_all
from vdm_jax.estimators.base import Estimate, Estimator
from vdm_jax.estimators.bounds import plural
from vdm_jax.estimators.dequantization import DEQUANTIZATIONS
from vdm_jax.estimators.importance import log_mean_exp
from vdm_jax.gaussian import standard_normal
from vdm_jax.keys import fold_each, split_each
from vdm_jax.likelihoods import Likelihood
from vdm_jax.parameterizations import Parameterization
from vdm_jax.specs import choose
from vdm_jax.typing import Array, ArrayLike, Keys, Reals, Scalar

EXACT_LIMIT = 256
"""The largest dimension of data for the exact divergence, which costs one backward pass for each dimension."""

LAST = 30.0
"""The largest γ to which the ODE is solved. Beyond, x_t is N(0, I) in float32: α is below 3e-7."""

PASSES = 16  # backward passes of the exact divergence that are computed at once

Field = Callable[[Array], Array]
"""x [B, *d] -> f(x) [B, *d], where each example depends on itself alone."""

Divergence = Callable[[Field, Array, Array], tuple[Array, Reals]]
"""(field, x, probe) -> (f(x), tr(∂f/∂x) [B] or an estimate of it)."""


class Solver(NamedTuple):
    """An explicit Runge–Kutta method whose stages each depend on the previous one only.

    Attributes:
      nodes: position of each stage in the step, which is also the weight of the previous stage in its argument.
      weights: of the stages in the step.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


SOLVERS = {
    "heun": Solver((0, 1), (1 / 2, 1 / 2)),
    "rk4": Solver((0, 1 / 2, 1 / 2, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""name -> `Solver`, of order 2 and 4."""


def rademacher(field: Field, x: Array, probe: Array) -> tuple[Array, Reals]:
    """Estimate the divergence by probeᵀ (∂f/∂x) probe (Hutchinson), from one backward pass."""
    value, backward = jax.vjp(field, x)
    (product,) = backward(probe)
    return value, jnp.sum(product * probe, axis=tuple(range(1, x.ndim)))


def exact(field: Field, x: Array, probe: Array) -> tuple[Array, Reals]:
    """Compute the divergence from one backward pass for each dimension."""
    del probe
    value, backward = jax.vjp(field, x)
    dim = x[0].size

    def diagonal_entry(i):
        basis = (jnp.arange(dim) == i).astype(x.dtype).reshape(x.shape[1:])
        (row,) = backward(jnp.broadcast_to(basis, x.shape))
        return row.reshape(len(x), dim)[:, i]

    entries = jax.lax.map(diagonal_entry, jnp.arange(dim), batch_size=min(PASSES, dim))
    return value, jnp.sum(entries, 0)


DIVERGENCES: dict[str, Divergence] = {"rademacher": rademacher, "exact": exact}
"""name -> `Divergence`."""


def ode(
    *,
    dequantization: str | None = None,
    samples: int = 1,
    solver: str = "rk4",
    steps: int = 64,
    divergence: str = "rademacher",
    check_steps: bool = False,
) -> Estimator:
    """Return the estimator of the log-likelihood of the probability-flow ODE, eq. (26), (27).

    For continuous data it is the log-density of x_t/α_t at t = 0. For K-level data it is a lower bound on
    log P(x), which increases with the number of draws of the dequantization. Both hold up to the error of the
    grid, which `check_steps` estimates.

    Args:
      dequantization: a name of `DEQUANTIZATIONS` for K-level data, "decoder" by default; None for continuous
        data.
      samples: M ≥ 1, draws of the dequantization inside the logarithm. With the divergence "rademacher", whose
        error enters exp, M > 1 overestimates the bound.
      solver: a name of `SOLVERS`.
      steps: of the grid, uniform in γ.
      divergence: "rademacher", one probe for each trajectory, or "exact" for data of at most `EXACT_LIMIT`
        dimensions.
      check_steps: True to solve the ODE also on a grid of half as many steps, from the same draws, and return
        the difference.

    Raises:
      ValueError: an unknown name, a number below 1, a `check_steps` that is neither True nor False, or an odd
        number of steps with it.
    """
    whole_number(samples, "samples", 1)
    whole_number(steps, "steps", 1, MAX_STEPS)
    choose(SOLVERS, solver, "solver")
    choose(DIVERGENCES, divergence, "divergence")
    if dequantization is not None:
        choose(DEQUANTIZATIONS, dequantization, "dequantization")
    if not isinstance(check_steps, bool):
        raise ValueError(f"check_steps: expected True or False, found {check_steps!r}")
    if check_steps and steps % 2:
        raise ValueError(f"steps: expected an even number with check_steps, found {steps}")

    def log_prob(process, x, x0, keys, steps):
        draw_keys, probe_keys = split_each(keys, 2)
        y, log_ratio = latent_of(process, x, x0, draw_keys, dequantization)
        return log_ratio + flow_log_prob(process, y, probe_keys, solver, steps, divergence)

    def estimate(process, x, x0, keys, fitted=None):
        del fitted

        def on_grid(steps):
            def draw(m):
                return log_prob(process, x, x0, fold_each(keys, m), steps)

            return log_mean_exp(draw, samples)

        fine = on_grid(steps)
        return Estimate(fine, discretization=on_grid(steps // 2) - fine if check_steps else None)

    def calls(likelihood):
        grid = steps + check_steps * (steps // 2)
        decodes = likelihood.uses_prediction and dequantization in (None, "decoder")
        return samples * (grid * len(SOLVERS[solver].nodes) + decodes * (1 + check_steps))

    settings = {
        "samples": samples,
        "solver": solver,
        "steps": steps,
        "divergence": divergence,
        "dequantization": dequantization,
    }
    words = f"probability-flow ODE, {steps} steps of {solver}, {divergence} divergence"
    if dequantization is not None:
        words += f", {plural(samples, 'draw')} of {dequantization} dequantization"
    return Estimator("ode", estimate, calls, words, settings, partial(check, settings))


def check(
    settings: Mapping[str, Any],
    parameterization: Parameterization,
    likelihood: Likelihood,
    shape: tuple[int, ...],
) -> None:
    """Raise ValueError unless a process of these components has the ODE with the given settings."""
    if not parameterization.continuous:
        raise ValueError(
            "parameterization: 'mean' is defined on the steps of a chain, expected another for 'ode'"
        )
    if settings["divergence"] == "exact":
        check_dimension(math.prod(shape))
    if likelihood.levels is not None:
        return
    if (name := settings["dequantization"]) is not None:
        raise ValueError(
            f"dequantization: continuous data need none, expected None, found {name!r}"
        )
    if (samples := settings["samples"]) > 1:
        raise ValueError(f"samples: draws of a dequantization, expected 1, found {samples}")


def check_dimension(dim: int) -> None:
    """Raise ValueError for data whose exact divergence is too expensive."""
    if dim > EXACT_LIMIT:
        raise ValueError(
            f"divergence: 'exact' costs d = {dim} backward passes for each call of the network, expected at "
            f"most {EXACT_LIMIT} dimensions; 'rademacher' costs one"
        )


def latent_of(
    process: Process, x: ArrayLike, x0: Array, keys: Keys, dequantization: str | None
) -> tuple[Array, Reals]:
    """Return y at γ_0, and the terms that turn log p(y) into log p(x), nats [B], eq. (27)."""
    if process.likelihood.levels is None:
        gamma_0 = process.gamma(0.0)
        return alpha(gamma_0) * x0, jnp.full(x0.shape[:1], x0[0].size * log_alpha(gamma_0))
    return DEQUANTIZATIONS[dequantization or "decoder"](process, x, x0, keys)


def flow_log_prob(
    process: Process, y: Array, keys: Keys, solver: str, steps: int, divergence: str
) -> Reals:
    """Return log p_{γ_0}(y) of latents y [B, *d] under the flow, nats [B].

    Args:
      process: the process.
      y: latents at γ_0.
      keys: [B], which draw the probes of the divergence.
      solver, steps, divergence: as in `ode`.
    """
    nodes, weights = SOLVERS[solver]
    trace = DIVERGENCES[divergence]
    gamma_0, gamma_1 = process.gamma(0.0), jnp.minimum(process.gamma(1.0), LAST)
    width = (gamma_1 - gamma_0) / steps
    probe = jax.vmap(lambda key: jax.random.rademacher(key, y.shape[1:], y.dtype))(keys)

    # one scan over the stages of all steps, so that the network is compiled once
    stages = len(nodes)
    positions = np.arange(steps)[:, None] + np.asarray(nodes)
    rows = {
        "position": positions.ravel().astype(y.dtype),
        "node": np.tile(np.asarray(nodes, y.dtype), steps),
        "weight": np.tile(np.asarray(weights, y.dtype), steps),
        "last": np.arange(steps * stages) % stages == stages - 1,
    }

    def stage(carry, row):
        x, log_det, previous, change = carry
        gamma = gamma_0 + width * row["position"]
        argument = x + width * row["node"] * previous
        slope, divergence = trace(lambda x: velocity(process, x, gamma), argument, probe)
        log_det += width * row["weight"] * divergence
        change += width * row["weight"] * slope
        x = jnp.where(row["last"], x + change, x)
        change = jnp.where(row["last"], 0, change)
        return (x, log_det, slope, change), None

    start = y, jnp.zeros(y.shape[:1], y.dtype), jnp.zeros_like(y), jnp.zeros_like(y)
    (x1, log_det, *_), _ = jax.lax.scan(stage, start, rows)
    return jax.vmap(standard_normal(y.shape[1:], y.dtype).log_prob)(x1) + log_det


def velocity(process: Process, x: Array, gamma: Scalar) -> Array:
    """Return dx/dγ of the probability-flow ODE for latents [B, *d] at one γ, eq. (26)."""
    interval = Interval(gamma, gamma, jnp.zeros_like(gamma))
    x0_hat = process.predict(x, same_for_all(interval, x))
    return 0.5 * alpha(gamma) * (alpha(gamma) * x - x0_hat)
