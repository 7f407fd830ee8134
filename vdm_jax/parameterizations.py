"""Parameterizations of the network's output: five rows of two numbers, docs/equations.md §4.

The network's output F means x̂_0 = skip·x_t + out·F. Its regression target is (x_0 − skip·x_t)/out; written
in (x_0, ε) it needs no cancelling difference, so each row states both:

    name     F predicts             skip                  out                 target = a·x_0 + b·ε
    x0       x_0                    0                     1                   (1, 0)
    eps      ε                      1/α_t                 −σ_t/α_t            (0, 1)
    mean     mean of (9)            −1/(α_t expm1(Δ))     1/(α_s(1−e^{−Δ}))   (α_s, (α_s/α_t) e^{−Δ} σ_t)
    v        α_t ε − σ_t x_0        α_t                   −σ_t                (−σ_t, α_t)
    score    ∇ log q(x_t|x_0)       1/α_t                 σ_t²/α_t            (0, −1/σ_t)

Rows are numbers, so `stacked` rows are arrays and one `vmap` runs over all of them.
Sources: Luo 2022 (arXiv 2208.11970), Salimans & Ho 2022 (v).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_instance, check_real, is_traced, whole_number
from vdm_jax.diffusion import Interval, alpha, log_alpha, log_sigma, sigma
from vdm_jax.gaussian import check_shape
from vdm_jax.typing import Array, Data, Int, Real, Reals, Scalar

FLAT = 2.0**-30  # the least Δ at which `mean` is converted to x̂_0


class Preconditioning(NamedTuple):
    """x̂_0 = skip·x_t + out·F.

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> preconditioning = vdm.parameterizations.v()(step)
      >>> print(f"{preconditioning.skip:.3f}, {preconditioning.out:.3f}")  # α, −σ
      0.707, -0.707
    """

    skip: Reals
    out: Reals


class TargetCoefficients(NamedTuple):
    """The target of F, x0·x_0 + eps·ε."""

    x0: Reals
    eps: Reals


class Parameterization(NamedTuple):
    """One row: functions of the interval. Call it for its `Preconditioning`.

    Attributes:
      preconditioning: interval -> Preconditioning.
      target: interval -> TargetCoefficients.
      continuous: whether it has a finite form as Δ → 0 (only `mean` has not).
      needs_signal: whether it divides by α, so that it has no form where SNR = 0 (`eps` and `score`).
    """

    preconditioning: Callable[[Interval], Preconditioning]
    target: Callable[[Interval], TargetCoefficients]
    continuous: bool = True
    needs_signal: bool = False

    def __call__(self, interval: Interval) -> Preconditioning:
        return self.preconditioning(interval)


def to_x0(output: Data, xt: Data, preconditioning: Preconditioning) -> Data:
    """Return the prediction x̂_0 of a network's output F.

    Raises:
      ValueError: the output and x_t have different shapes.
      TypeError: no real arrays, no `Preconditioning`.

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> x0, eps = jnp.asarray([0.25]), jnp.asarray([-1.0])
      >>> xt = jnp.sqrt(0.5) * (x0 + eps)
      >>> print(np.asarray(vdm.to_x0(eps, xt, vdm.parameterizations.eps()(step))).round(3))
      [0.25]
    """
    check_instance(
        preconditioning, Preconditioning, "preconditioning", "vdm.parameterizations.eps()(interval)"
    )
    for name, array in (("output", output), ("xt", xt)):
        check_real(array, name)
    check_shape(jnp.shape(output), jnp.shape(xt), "to_x0: output")
    return preconditioning.skip * xt + preconditioning.out * output


def regression_target(x0: Data, eps: Data, target: TargetCoefficients) -> Data:
    """Return the regression target of F, from the data and the noise."""
    return target.x0 * x0 + target.eps * eps


class ErrorWeight(NamedTuple):
    """weight · ‖scale · error‖²: a pair, for the product may leave the range of float32."""

    weight: Real
    scale: Reals


def bound_weight(interval: Interval, time_weight: Real, out: Real) -> ErrorWeight:
    """Return the weight of an error F − target in the bound: ½ time_weight e^{−γ_t} out², eq. (13), (14).

    Args:
      interval: where the error was made.
      time_weight: T expm1(Δ) of a chain of T steps, γ'(t) in continuous time.
      out: of the error's parameterization; 1 for an error of x_0.
    """
    return ErrorWeight(0.5 * time_weight, jnp.exp(-0.5 * interval.gamma_t) * out)


def exact_weight(
    interval: Interval, preconditioning: Preconditioning, time_weight: Real | None = None
) -> Scalar:
    """Return the weight of ‖F − target‖² in the bound, eq. (13): ½ e^{−γ_t} expm1(Δ) out².

    Args:
      interval, preconditioning: of one step.
      time_weight: as `bound_weight` takes it, by default that of one matching term, expm1(Δ).

    Examples:
      >>> from vdm_jax.parameterizations import exact_weight
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> print(f"{exact_weight(step, vdm.parameterizations.eps()(step)):.3f}")  # ½ expm1(Δ)
      3.195
    """
    time_weight = jnp.expm1(interval.delta) if time_weight is None else time_weight
    weight, scale = bound_weight(interval, time_weight, preconditioning.out)
    return weight * jnp.square(scale)


def x0() -> Parameterization:
    """F predicts the data."""

    def preconditioning(interval):
        one = jnp.ones_like(interval.gamma_t)
        return Preconditioning(0 * one, one)

    def target(interval):
        one = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(one, 0 * one)

    return Parameterization(preconditioning, target)


def eps() -> Parameterization:
    """F predicts the noise."""

    def preconditioning(interval):
        g = interval.gamma_t
        return Preconditioning(jnp.exp(-log_alpha(g)), -jnp.exp(0.5 * g))

    def target(interval):
        one = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(0 * one, one)

    return Parameterization(preconditioning, target, needs_signal=True)


def mean() -> Parameterization:
    """F predicts the mean of the posterior (9); it needs s < t.

    Where the schedule is flat (Δ = 0) the mean is x_t and says nothing of x_0; the row is that of Δ = `FLAT`.
    """

    def preconditioning(interval):
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)
        skip = -jnp.exp(-log_alpha(gamma_t)) / jnp.expm1(delta)
        return Preconditioning(skip, -jnp.exp(-log_alpha(gamma_s)) / jnp.expm1(-delta))

    def target(interval):
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)  # as in `preconditioning`: both then describe one x̂_0
        log_eps = log_alpha(gamma_s) + 0.5 * gamma_t - delta
        return TargetCoefficients(alpha(gamma_s), jnp.exp(log_eps))

    return Parameterization(preconditioning, target, continuous=False)


def v() -> Parameterization:
    """F predicts the velocity α ε − σ x_0."""

    def preconditioning(interval):
        return Preconditioning(alpha(interval.gamma_t), -sigma(interval.gamma_t))

    def target(interval):
        return TargetCoefficients(-sigma(interval.gamma_t), alpha(interval.gamma_t))

    return Parameterization(preconditioning, target)


def score() -> Parameterization:
    """F predicts the score −ε/σ."""

    def preconditioning(interval):
        g = interval.gamma_t
        return Preconditioning(jnp.exp(-log_alpha(g)), jnp.exp(0.5 * g + log_sigma(g)))

    def target(interval):
        inverse = jnp.exp(-log_sigma(interval.gamma_t))
        return TargetCoefficients(0 * inverse, -inverse)

    return Parameterization(preconditioning, target, needs_signal=True)


def stacked(rows: Sequence[Parameterization], index: int | Int[Array, ""]) -> Parameterization:
    """Row `index` of `rows`, where `index` may be traced: `vmap` over it evaluates all of them.

    Raises:
      ValueError: no rows, or an index that is none of theirs.
      TypeError: something else than rows.

    Examples:
      >>> rows = [build() for build in vdm.parameterizations.PARAMETERIZATIONS.values()]
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> of_row = lambda index: vdm.parameterizations.stacked(rows, index)(step)
      >>> print(np.asarray(jax.vmap(of_row)(jnp.arange(5)).out).round(3))  # mean, x0, eps, v, score
      [ 1.232  1.    -1.    -0.707  0.707]
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: expected at least 1, found none")
    for row in rows:
        check_instance(row, Parameterization, "rows", "vdm.parameterizations.eps()")
    if not is_traced(index):
        index = whole_number(np.asarray(index)[()], "index", 0, len(rows) - 1)
    return Parameterization(
        switch_by_index([row.preconditioning for row in rows], index),
        switch_by_index([row.target for row in rows], index),
        all(row.continuous for row in rows),
        any(row.needs_signal for row in rows),
    )


def switch_by_index(functions: Sequence[Callable[..., Any]], index: Any) -> Callable[..., Any]:
    """Function `index` of several that return alike; `index` may be traced, and all are evaluated."""

    def select(*values):
        return jnp.stack(jnp.broadcast_arrays(*values))[index]

    return lambda *arguments: jax.tree.map(select, *(f(*arguments) for f in functions))


PARAMETERIZATIONS: dict[str, Callable[[], Parameterization]] = {
    "mean": mean,
    "x0": x0,
    "eps": eps,
    "v": v,
    "score": score,
}
"""name -> factory of a `Parameterization`."""
