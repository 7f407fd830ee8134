"""The type of a time sampler: a density of training times, with a state if it adapts to the losses."""

from collections.abc import Callable
from typing import NamedTuple

from vdm_jax.typing import Array, Int, Key, PyTree, Reals


class TrainingPath(NamedTuple):
    """The noise schedule and the expected loss over the training times, for the params of one step.

    Attributes:
      timesteps: T of a chain, or None for continuous time.
      gamma: times in [0, 1] -> γ, elementwise.
      expected_loss: times, or steps of the chain, [n] -> the expected training loss [n] of a network whose
        output is zero, in nats per dimension.
    """

    timesteps: int | None
    gamma: Callable[[Array], Array]
    expected_loss: Callable[[Array], Array]


class TimeSample(NamedTuple):
    """Training times and their importance weights, elementwise.

    Attributes:
      t: times for `training_interval`, in [0, 1] or as steps of a chain.
      weight: w, the ratio of the uniform density to that of the draw, of mean 1; None if all weights are 1.
      bin: the bin that contains each time; None for uniform times.
      probability: the probability of that bin; None for uniform times.
    """

    t: Array
    weight: Reals | None = None
    bin: Int[Array, "..."] | None = None
    probability: Reals | None = None


class TimeSampler(NamedTuple):
    """A density of training times.

    The state of a density that adapts to the losses is part of the model state of a run. Densities that do not
    adapt have the state None (`stateless`).

    Attributes:
      init: path -> the initial state.
      sample: (state, path, key, phase) -> `TimeSample`, with one key for the batch and a phase in [0, 1) for
        each example, as in `draw_times`.
      update: (state, sample, loss) -> the state after a batch; `loss` [B] without the importance weights, in
        nats per dimension. The new state must be linear in means over the batch, because devices average their
        results.

    Examples:
      A custom density, twice as high for the second half of the times:

      >>> from vdm_jax.time_samplers import bin_probabilities, draw_weighted, stateless
      >>> def sample(path, key, phase):
      ...     probability = bin_probabilities(jnp.asarray([1.0, 2.0]), 0.0, path.timesteps)
      ...     return draw_weighted(key, phase, probability, path.timesteps)
      >>> sampler = stateless(sample)
      >>> path = vdm.time_samplers.TrainingPath(None, jnp.zeros_like, jnp.ones_like)
      >>> times = sampler.sample(None, path, jax.random.key(0), jnp.arange(6) / 6)
      >>> sorted(times.weight.round(2).tolist())
      [0.75, 0.75, 0.75, 0.75, 1.5, 1.5]
    """

    init: Callable[[TrainingPath], PyTree]
    sample: Callable[[PyTree, TrainingPath, Key, Reals], TimeSample]
    update: Callable[[PyTree, TimeSample, Reals], PyTree]


def stateless(sample: Callable[[TrainingPath, Key, Reals], TimeSample]) -> TimeSampler:
    """Return the time sampler without state that draws by (path, key, phase) -> `TimeSample`."""
    return TimeSampler(
        init=lambda path: None,
        sample=lambda state, path, key, phase: sample(path, key, phase),
        update=lambda state, sample, loss: state,
    )
