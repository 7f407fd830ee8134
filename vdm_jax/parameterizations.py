"""What the network predicts: five rows of two numbers, docs/equations.md §4.

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

from vdm_jax.diffusion import Interval, alpha, log_alpha, log_sigma, sigma
from vdm_jax.typing import Array, Data, Int, Reals, Scalar


class Mix(NamedTuple):
    """x̂_0 = skip·x_t + out·F.

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> mix = vdm.PARAMETERIZATIONS["v"]()(step)
      >>> print(f"{mix.skip:.3f}, {mix.out:.3f}")  # α, −σ
      0.707, -0.707
    """

    skip: Reals
    out: Reals


class Target(NamedTuple):
    """The target of F, x0·x_0 + eps·ε."""

    x0: Reals
    eps: Reals


class Parameterization(NamedTuple):
    """One row: functions of the interval. Call it for its `Mix`.

    Attributes:
      mix: interval -> Mix.
      target: interval -> Target.
      continuous: whether it has a finite form as Δ → 0 (only `mean` has not).
    """

    mix: Callable[[Interval], Mix]
    target: Callable[[Interval], Target]
    continuous: bool = True

    def __call__(self, interval: Interval) -> Mix:
        return self.mix(interval)


def to_x0(F: Data, xt: Data, mix: Mix) -> Data:
    """The prediction x̂_0 that a network output F stands for.

    Examples:
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> x0, eps = jnp.asarray([0.25]), jnp.asarray([-1.0])
      >>> xt = jnp.sqrt(0.5) * (x0 + eps)
      >>> print(np.asarray(vdm.to_x0(eps, xt, vdm.PARAMETERIZATIONS["eps"]()(step))).round(3))
      [0.25]
    """
    return mix.skip * xt + mix.out * F


def regression_target(x0: Data, eps: Data, target: Target) -> Data:
    """What F is regressed on, from the data and the noise."""
    return target.x0 * x0 + target.eps * eps


def exact_weight(interval: Interval, mix: Mix) -> Scalar:
    """The weight of ‖F − target‖² in one matching term, eq. (13): ½ e^{−γ_t} expm1(Δ) out².

    Examples:
      >>> from vdm_jax.parameterizations import exact_weight
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> print(f"{exact_weight(step, vdm.PARAMETERIZATIONS['eps']()(step)):.3f}")  # ½ expm1(Δ)
      3.195
    """
    return 0.5 * jnp.expm1(interval.delta) * snr_weight(interval, mix)


def snr_weight(interval: Interval, mix: Mix) -> Scalar:
    """e^{−γ_t} out²: turns ‖F − target‖² into ‖x_0 − x̂_0‖² · SNR."""
    return jnp.square(jnp.exp(-0.5 * interval.gamma_t) * mix.out)


def x0() -> Parameterization:
    """F predicts the data."""

    def mix(interval):
        one = jnp.ones_like(interval.gamma_t)
        return Mix(0 * one, one)

    def target(interval):
        one = jnp.ones_like(interval.gamma_t)
        return Target(one, 0 * one)

    return Parameterization(mix, target)


def eps() -> Parameterization:
    """F predicts the noise."""

    def mix(interval):
        g = interval.gamma_t
        return Mix(jnp.exp(-log_alpha(g)), -jnp.exp(0.5 * g))

    def target(interval):
        one = jnp.ones_like(interval.gamma_t)
        return Target(0 * one, one)

    return Parameterization(mix, target)


def mean() -> Parameterization:
    """F predicts the mean of the posterior (9); it needs s < t."""

    def mix(interval):
        gamma_s, gamma_t, delta = interval
        skip = -jnp.exp(-log_alpha(gamma_t)) / jnp.expm1(delta)
        return Mix(skip, -jnp.exp(-log_alpha(gamma_s)) / jnp.expm1(-delta))

    def target(interval):
        gamma_s, gamma_t, delta = interval
        log_eps = log_alpha(gamma_s) + 0.5 * gamma_t - delta
        return Target(alpha(gamma_s), jnp.exp(log_eps))

    return Parameterization(mix, target, continuous=False)


def v() -> Parameterization:
    """F predicts the velocity α ε − σ x_0."""

    def mix(interval):
        return Mix(alpha(interval.gamma_t), -sigma(interval.gamma_t))

    def target(interval):
        return Target(-sigma(interval.gamma_t), alpha(interval.gamma_t))

    return Parameterization(mix, target)


def score() -> Parameterization:
    """F predicts the score −ε/σ."""

    def mix(interval):
        g = interval.gamma_t
        return Mix(jnp.exp(-log_alpha(g)), jnp.exp(0.5 * g + log_sigma(g)))

    def target(interval):
        inverse = jnp.exp(-log_sigma(interval.gamma_t))
        return Target(0 * inverse, -inverse)

    return Parameterization(mix, target)


def stacked(rows: Sequence[Parameterization], index: int | Int[Array, ""]) -> Parameterization:
    """Row `index` of `rows`, where `index` may be traced: `vmap` over it evaluates all of them.

    Examples:
      >>> rows = [build() for build in vdm.PARAMETERIZATIONS.values()]
      >>> step = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> mixes = jax.vmap(lambda index: vdm.stacked(rows, index)(step))(jnp.arange(5))
      >>> print(np.asarray(mixes.out).round(3))  # mean, x0, eps, v, score
      [ 1.232  1.    -1.    -0.707  0.707]
    """

    return Parameterization(
        selected([row.mix for row in rows], index),
        selected([row.target for row in rows], index),
        all(row.continuous for row in rows),
    )


def selected(functions: Sequence[Callable[..., Any]], index: Any) -> Callable[..., Any]:
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
