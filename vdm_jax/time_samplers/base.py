"""The type of a time sampler: a density of training times, with a state of its own if it adapts."""

from collections.abc import Callable
from typing import NamedTuple

from vdm_jax.typing import Array, Int, Key, PyTree, Reals


class TrainingPath(NamedTuple):
    """The noise levels that training passes through, for the params of one step.

    Attributes:
      timesteps: T of a chain, or None for continuous time.
      gamma: times in [0, 1] -> γ, elementwise.
      expected_loss: times, or steps of the chain, [n] -> the expected training loss [n] of a network whose
        output is zero, nats per dimension.
    """

    timesteps: int | None
    gamma: Callable[[Array], Array]
    expected_loss: Callable[[Array], Array]


class TimeSample(NamedTuple):
    """Training times and their importance weights, elementwise.

    Attributes:
      t: as `training_interval` takes them: in [0, 1], or the steps of a chain.
      weight: w, the ratio of the uniform density to that of the draw, of mean 1; None where it is 1 throughout.
      bin: the bin that each time lies in; None of uniform times, which have none.
      probability: of that bin.
    """

    t: Array
    weight: Reals | None = None
    bin: Int[Array, "..."] | None = None
    probability: Reals | None = None


class TimeSampler(NamedTuple):
    """A density of training times; a row of `TIME_SAMPLERS`.

    The state of a density that adapts to the losses is part of the model state of a run. Densities that do not
    adapt have the state None (`stateless`).

    Attributes:
      init: path -> the state that training starts with.
      sample: (state, path, key, phase) -> `TimeSample`, with one key for the batch and a phase in [0, 1) for
        each example, as `draw_times` takes them.
      update: (state, sample, loss) -> the state after a batch; `loss` [B] without the importance weights, nats
        per dimension. The new state must be linear in means over the batch, because devices average their
        results.

    Examples:
      A custom density, twice as high for the second half of the times:

      >>> from vdm_jax.time_samplers import bin_probabilities, draw_weighted, stateless
      >>> def sample(path, key, phase):
      ...     probability = bin_probabilities(jnp.asarray([1.0, 2.0]), 0.0, path.timesteps)
      ...     return draw_weighted(key, phase, probability, path.timesteps)
      >>> later = stateless(sample)
      >>> path = vdm.time_samplers.TrainingPath(None, jnp.zeros_like, jnp.ones_like)
      >>> drawn = later.sample(None, path, jax.random.key(0), jnp.arange(6) / 6)
      >>> sorted(drawn.weight.round(2).tolist())
      [0.75, 0.75, 0.75, 0.75, 1.5, 1.5]
    """

    init: Callable[[TrainingPath], PyTree]
    sample: Callable[[PyTree, TrainingPath, Key, Reals], TimeSample]
    update: Callable[[PyTree, TimeSample, Reals], PyTree]


def stateless(sample: Callable[[TrainingPath, Key, Reals], TimeSample]) -> TimeSampler:
    """Return a time sampler without state from its function (path, key, phase) -> `TimeSample`."""
    return TimeSampler(
        init=lambda path: None,
        sample=lambda state, path, key, phase: sample(path, key, phase),
        update=lambda state, sample, loss: state,
    )
