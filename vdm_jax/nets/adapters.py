"""A user's own network, of any library, as the two functions that the framework calls.

    Network, (init, apply), or an object with both     init(key, …), apply(params, xt, gamma_t, …), batches
    a Flax Linen module                                called as module(xt, gamma_t, …) on batches
    from_callable(f, batched=True)                     f(xt, gamma_t, …) on batches
    from_callable(f, batched=False)                    f(xt, gamma_t, …) on one example
    any other callable f                               the same, if only one of the two runs or both agree
    {row: one of these}                                another for each parameterization

The arrays of a callable that is a PyTree (Equinox, Flax NNX) are trained; a plain function has none to train.
`extra` and `keys` are passed to what has parameters of these names, and only to that. A map of latent variables
is one of the first two rows, called without gamma_t.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vdm_jax.checks import describe, takes
from vdm_jax.nets.callables import from_either
from vdm_jax.nets.network import Network, Pretrained, from_linen
from vdm_jax.nets.signatures import known, named, positional, required
from vdm_jax.nets.trial import try_network


def as_network(given: Any, shape: tuple[int, ...]) -> Network:
    """Make a `Network` of what a user has.

    Args:
      given: see above; names and specs are for `build`.
      shape: of one example.

    Raises:
      ValueError: it is none of these, it cannot be applied, its output has another shape than the data, or it
        is a callable that runs on single examples and on batches with different results.
    """
    if isinstance(given, Network):
        network = complete(given, shape)
    elif isinstance(given, nn.Module):
        network = from_linen(given)
    elif (pair := _init_and_apply(given)) is not None:
        network = Network(_init_as_called(pair[0]), _apply_as_called(pair[1]))
    elif callable(given):
        return from_either(given, shape)
    else:
        raise ValueError(
            f"expected a name, a network with init and apply, or a callable (xt, gamma_t), "
            f"found {type(given).__name__}"
        )
    try_network(network, shape)
    return network


def as_map(given: Any) -> Network:
    """Make a `Network` of an encoder or decoder, which does not depend on γ: `apply(params, x, keys=None)`.

    Raises:
      ValueError: it is neither a Linen module nor has it init and apply.
    """
    if isinstance(given, nn.Module):
        return from_linen(given, inputs=1)
    pair = _init_and_apply(given)
    if pair is None:
        raise ValueError(
            f"expected a name, a Linen module, or init and apply, found {type(given).__name__}"
        )
    return Network(_init_as_called(pair[0], 1), _apply_as_called(pair[1], 1))


def complete(given: Network, shape: tuple[int, ...]) -> Network:
    """Return a `Network` whose functions take all arguments, for one whose functions may lack some.

    Raises:
      ValueError: a function is none, its `apply` takes too little, or `*arguments` that it cannot be applied
        with.
    """
    for name, function in given._asdict().items():
        if not callable(function):
            raise ValueError(f"expected a function {name}, found {describe(function)}")
    if isinstance(given, Pretrained):
        return given
    init = given.init if takes(given.init, 4) else _init_as_called(given.init)
    apply = given.apply if takes(given.apply, 5) else _apply_as_called(given.apply)
    network = Network(init, apply)
    if None in map(positional, network):  # *arguments do not tell what they are passed on to
        try_network(network, shape)
    return network


def by_row(networks: Sequence[Network], index: Any) -> Network:
    """Network `index` of several, which may be traced; the parameters of all are kept."""

    def init(key, xt, gamma_t=None, extra=None):
        return [network.init(key, xt, gamma_t, extra) for network in networks]

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        branches = [
            lambda params, network=network, i=i: network.apply(params[i], xt, gamma_t, extra, keys)
            for i, network in enumerate(networks)
        ]
        return jax.lax.switch(index, branches, params)

    return Network(init, apply)


def _init_and_apply(given: Any) -> tuple[Any, Any] | None:
    if isinstance(given, type):
        return None
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return given[0], given[1]
    found = getattr(given, "init", None), getattr(given, "apply", None)
    return found if all(map(callable, found)) else None


def _init_as_called(function: Callable[..., Any], inputs: int = 2) -> Callable[..., Any]:
    """Call it with what it takes, of (key, xt, gamma_t) or for one input of (key, x)."""
    # what has a default may be anything, such as a scale
    takes = 1 + inputs
    if positional(function) is not None:
        takes = min(takes, required(function))

    def init(key, xt, gamma_t=None, extra=None):
        first = (key, xt, gamma_t)[:takes]
        others = {"extra": extra} | ({"gamma_t": gamma_t} if takes < 3 else {})
        return function(*first, **known(function, others))

    return init


def _apply_as_called(function: Callable[..., Any], inputs: int = 2) -> Callable[..., Any]:
    """Call it with what it takes, of (params, xt, gamma_t) or for one input of (params, x)."""
    names = positional(function)
    if required(function) > 3 or (names is not None and len(names) < 2):
        expected = "(params, xt, gamma_t)" if inputs == 2 else "(params, x)"
        raise ValueError(
            f"apply takes {', '.join(map(repr, named(function)))}, expected "
            f"{expected}, with extra and keys if they are used"
        )
    takes = 1 + inputs if names is None else min(1 + inputs, len(names))

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        first = (params, xt, gamma_t)[:takes]
        others = {"extra": extra, "keys": keys} | ({"gamma_t": gamma_t} if takes < 3 else {})
        return function(*first, **known(function, others))

    return apply


def carries_weights(given: Any) -> bool:
    """True if a network starts from the weights that it has, for no `init` makes others."""
    if isinstance(given, Mapping):
        return any(map(carries_weights, given.values()))
    if isinstance(given, Pretrained):
        return True
    return callable(given) and not isinstance(given, nn.Module) and _init_and_apply(given) is None


def is_by_row(given: Any) -> bool:
    """True for a mapping from parameterizations to networks, which is no spec."""
    return isinstance(given, Mapping) and "name" not in given
