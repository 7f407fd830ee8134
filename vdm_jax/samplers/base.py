"""The type of a solver of the reverse process."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from vdm_jax.checks import is_key
from vdm_jax.diffusion import Interval
from vdm_jax.typing import Data, Key, Keys, PyTree, Reals

Predict = Callable[[Data, Interval], Data]
"""(xt, interval) -> x̂_0 of a latent at the noise level `interval.gamma_t`.

The first stage of a solver passes the interval of the step. A later stage passes `Interval(gamma, gamma, 0)`
with a noise level of the interval; `mean` predicts only at the two ends.
"""


class Sampler(NamedTuple):
    """A solver of the reverse process for one example or a batch.

    Attributes:
      init: x1 -> the solver's state, a pytree of arrays; () for solvers without memory.
      step: (key, xt, interval, predict, state) -> (xs, state). A solver of several stages calls `predict`
        several times; a multistep solver keeps earlier predictions in its state. `key` is one key, or the keys
        [B] of a batch; `noise_like` accepts both. A deterministic solver ignores it.
      fitted: (gammas [n], squares [n]) -> the sampler for measured means E(ε − ε̂)² at rising noise levels; None
        for a sampler that needs no measurement. A sampler with `fitted` has no `step` (ValueError) until then.

    Examples:
      >>> sampler = vdm.samplers.ddim()
      >>> interval = vdm.interval(vdm.schedules.linear(), None, 0.4, 0.5)
      >>> xt = jnp.asarray([1.0, -1.0])
      >>> predict = lambda xt, interval: 0.5 * xt
      >>> xs, state = sampler.step(None, xt, interval, predict, sampler.init(xt))
      >>> print(xs.round(3))
      [ 0.703 -0.703]
    """

    init: Callable[[Data], PyTree]
    step: Callable[[Key | Keys | None, Data, Interval, Predict, PyTree], tuple[Data, PyTree]]
    fitted: Callable[[Reals, Reals], "Sampler"] | None = None


def without_memory(move: Callable[[Key | Keys | None, Data, Data, Interval], Data]) -> Sampler:
    """Return a sampler without state that predicts once per interval, from `move`.

    Args:
      move: (key, xt, x0_hat, interval) -> xs.
    """

    def step(key, xt, interval, predict, state):
        return move(key, xt, predict(xt, interval), interval), state

    return Sampler(lambda x1: (), step)


def noise_like(key: Key | Keys, x: Data) -> Data:
    """Draw standard normal noise with the shape and type of x, from one key or from one key per example [B]."""
    if is_key(key):
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(key)
