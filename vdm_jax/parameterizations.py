"""Parameterizations of the network's output, each defined by two numbers, docs/equations.md §4.

The network's output F means x̂_0 = skip·x_t + out·F. Its regression target is (x_0 − skip·x_t)/out. Written
in (x_0, ε) the target needs no cancelling difference, so that each parameterization states both:

    name     F predicts             skip                  out                 target = a·x_0 + b·ε
    x0       x_0                    0                     1                   (1, 0)
    eps      ε                      1/α_t                 −σ_t/α_t            (0, 1)
    mean     mean of (9)            −1/(α_t expm1(Δ))     1/(α_s(1−e^{−Δ}))   (α_s, (α_s/α_t) e^{−Δ} σ_t)
    v        α_t ε − σ_t x_0        α_t                   −σ_t                (−σ_t, α_t)
    score    ∇ log q(x_t|x_0)       1/α_t                 σ_t²/α_t            (0, −1/σ_t)

Because skip, out, a and b are numbers, one `vmap` can run over several parameterizations (`stacked`).
Sources: Luo 2022 (arXiv 2208.11970), Salimans & Ho 2022 (v).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_instance, check_real, is_traced, whole_number
from vdm_jax.diffusion import Interval, alpha, log_alpha, log_sigma, sigma
from vdm_jax.gaussian import check_shape
from vdm_jax.typing import Array, Data, Int, Real, Reals, Scalar

FLAT = 2.0**-30  # the smallest Δ at which `mean` is converted to x̂_0


class Preconditioning(NamedTuple):
    """The coefficients of x̂_0 = skip·x_t + out·F.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> preconditioning = vdm.parameterizations.v()(interval)
      >>> print(f"{preconditioning.skip:.3f}, {preconditioning.out:.3f}")  # α, −σ
      0.707, -0.707
    """

    skip: Reals
    out: Reals


class TargetCoefficients(NamedTuple):
    """The coefficients of the regression target of F, x0·x_0 + eps·ε."""

    x0: Reals
    eps: Reals


class Parameterization(NamedTuple):
    """The meaning of a network's output F on an interval. Calling it returns its `Preconditioning`.

    Attributes:
      preconditioning: interval -> Preconditioning.
      target: interval -> TargetCoefficients.
      continuous: True if it has a finite form as Δ → 0 (all but `mean`).
      needs_signal: True if it divides by α and is therefore undefined where SNR = 0 (`eps` and `score`).
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
      ValueError: the output and x_t differ in shape.
      TypeError: the output or x_t is not a real array, or `preconditioning` is not a `Preconditioning`.

    Examples:
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> x0, eps = jnp.asarray([0.25]), jnp.asarray([-1.0])
      >>> xt = jnp.sqrt(0.5) * (x0 + eps)
      >>> print(np.asarray(vdm.to_x0(eps, xt, vdm.parameterizations.eps()(interval))).round(3))
      [0.25]
    """
    check_instance(
        preconditioning, Preconditioning, "preconditioning", "vdm.parameterizations.eps()(interval)"
    )
    check_real(output, "output")
    check_real(xt, "xt")
    check_shape(jnp.shape(output), jnp.shape(xt), "to_x0: output")
    return preconditioning.skip * xt + preconditioning.out * output


def regression_target(x0: Data, eps: Data, target: TargetCoefficients) -> Data:
    """Return the regression target of F for the data and the noise."""
    return target.x0 * x0 + target.eps * eps


class ErrorWeight(NamedTuple):
    """The factors of weight · ‖scale · error‖²; weight · scale² may leave the range of float32."""

    weight: Real
    scale: Reals


def bound_weight(interval: Interval, time_weight: Real, out: Real) -> ErrorWeight:
    """Return the weight of an error F − target in the bound: ½ time_weight e^{−γ_t} out², eq. (13), (14).

    Args:
      interval: the interval (s, t) of the prediction.
      time_weight: T expm1(Δ) for a chain of T steps, γ'(t) in continuous time.
      out: the `out` of the parameterization in which the error is measured; 1 for an error of x_0.
    """
    return ErrorWeight(0.5 * time_weight, jnp.exp(-0.5 * interval.gamma_t) * out)


def exact_weight(
    interval: Interval, preconditioning: Preconditioning, time_weight: Real | None = None
) -> Scalar:
    """Return the weight of ‖F − target‖² in the bound, eq. (13): ½ e^{−γ_t} expm1(Δ) out².

    Args:
      interval, preconditioning: the interval (s, t), and the coefficients of F on it.
      time_weight: as in `bound_weight`; by default expm1(Δ), that of one matching term.

    Examples:
      >>> from vdm_jax.parameterizations import exact_weight
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> print(f"{exact_weight(interval, vdm.parameterizations.eps()(interval)):.3f}")  # ½ expm1(Δ)
      3.195
    """
    time_weight = jnp.expm1(interval.delta) if time_weight is None else time_weight
    weight, scale = bound_weight(interval, time_weight, preconditioning.out)
    return weight * jnp.square(scale)


def x0() -> Parameterization:
    """Return the parameterization in which F predicts the data."""

    def preconditioning(interval: Interval) -> Preconditioning:
        ones = jnp.ones_like(interval.gamma_t)
        return Preconditioning(0 * ones, ones)

    def target(interval: Interval) -> TargetCoefficients:
        ones = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(ones, 0 * ones)

    return Parameterization(preconditioning, target)


def eps() -> Parameterization:
    """Return the parameterization in which F predicts the noise."""

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_t = interval.gamma_t
        return Preconditioning(jnp.exp(-log_alpha(gamma_t)), -jnp.exp(0.5 * gamma_t))

    def target(interval: Interval) -> TargetCoefficients:
        ones = jnp.ones_like(interval.gamma_t)
        return TargetCoefficients(0 * ones, ones)

    return Parameterization(preconditioning, target, needs_signal=True)


def mean() -> Parameterization:
    """Return the parameterization in which F predicts the mean of the posterior (9); it needs s < t.

    Where the schedule is flat (Δ = 0), the mean is x_t for every x_0; the coefficients are those of Δ = `FLAT`.
    """

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)
        skip = -jnp.exp(-log_alpha(gamma_t)) / jnp.expm1(delta)
        return Preconditioning(skip, -jnp.exp(-log_alpha(gamma_s)) / jnp.expm1(-delta))

    def target(interval: Interval) -> TargetCoefficients:
        gamma_s, gamma_t, delta = interval
        delta = jnp.maximum(delta, FLAT)  # as in `preconditioning`, so that the two stay consistent
        log_eps = log_alpha(gamma_s) + 0.5 * gamma_t - delta
        return TargetCoefficients(alpha(gamma_s), jnp.exp(log_eps))

    return Parameterization(preconditioning, target, continuous=False)


def v() -> Parameterization:
    """Return the parameterization in which F predicts the velocity α ε − σ x_0."""

    def preconditioning(interval: Interval) -> Preconditioning:
        return Preconditioning(alpha(interval.gamma_t), -sigma(interval.gamma_t))

    def target(interval: Interval) -> TargetCoefficients:
        return TargetCoefficients(-sigma(interval.gamma_t), alpha(interval.gamma_t))

    return Parameterization(preconditioning, target)


def score() -> Parameterization:
    """Return the parameterization in which F predicts the score −ε/σ."""

    def preconditioning(interval: Interval) -> Preconditioning:
        gamma_t = interval.gamma_t
        inverse_alpha = jnp.exp(-log_alpha(gamma_t))
        return Preconditioning(inverse_alpha, jnp.exp(0.5 * gamma_t + log_sigma(gamma_t)))

    def target(interval: Interval) -> TargetCoefficients:
        inverse_sigma = jnp.exp(-log_sigma(interval.gamma_t))
        return TargetCoefficients(0 * inverse_sigma, -inverse_sigma)

    return Parameterization(preconditioning, target, needs_signal=True)


def stacked(rows: Sequence[Parameterization], index: int | Int[Array, ""]) -> Parameterization:
    """Return parameterization `index` of `rows`; `index` may be traced, so that `vmap` can run over it.

    Raises:
      ValueError: `rows` is empty, or `index` is out of range.
      TypeError: an entry of `rows` is not a `Parameterization`.

    Examples:
      >>> rows = [factory() for factory in vdm.parameterizations.PARAMETERIZATIONS.values()]
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> coefficients = lambda index: vdm.parameterizations.stacked(rows, index)(interval)
      >>> print(np.asarray(jax.vmap(coefficients)(jnp.arange(5)).out).round(3))  # mean, x0, eps, v, score
      [ 1.232  1.    -1.    -0.707  0.707]
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: expected at least 1, found none")
    for parameterization in rows:
        check_instance(parameterization, Parameterization, "rows", "vdm.parameterizations.eps()")
    if not is_traced(index):
        index = whole_number(np.asarray(index)[()], "index", 0, len(rows) - 1)
    # the flags cannot depend on a traced index: they are those of the most restrictive entry
    return Parameterization(
        switch_by_index([p.preconditioning for p in rows], index),
        switch_by_index([p.target for p in rows], index),
        continuous=all(p.continuous for p in rows),
        needs_signal=any(p.needs_signal for p in rows),
    )


def switch_by_index(functions: Sequence[Callable], index: int | Int[Array, ""]) -> Callable:
    """Return function `index` of several with one output structure; `index` may be traced."""

    def select(*outputs):  # all are evaluated, as a `lax.switch` would do under `vmap`
        return jnp.stack(jnp.broadcast_arrays(*outputs))[index]

    return lambda *arguments: jax.tree.map(select, *(f(*arguments) for f in functions))


PARAMETERIZATIONS: dict[str, Callable[[], Parameterization]] = {
    "mean": mean,
    "x0": x0,
    "eps": eps,
    "v": v,
    "score": score,
}
"""name -> factory of a `Parameterization`."""
