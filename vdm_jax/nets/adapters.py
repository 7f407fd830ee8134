"""Adapters from a user's network, of any library, to a `Network`.

    Network, (init, apply), or an object with both     init(key, …), apply(params, xt, gamma_t, …), batches
    Flax Linen module                                  called as module(xt, gamma_t, …) on batches
    from_callable(f, batched=True)                     f(xt, gamma_t, …) on batches
    from_callable(f, batched=False)                    f(xt, gamma_t, …) on one example
    any other callable f                               one of the last two, if only one runs or both agree
    {parameterization: one of these}                   a network for each parameterization (comparisons, sweeps)

The arrays of a callable that is a PyTree (Equinox, Flax NNX) are trained; a plain function has no arrays.
`extra` and `keys` are passed only to functions with parameters of these names. An encoder or decoder of latent
variables is one of the first two rows, called without gamma_t.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from vdm_jax.checks import describe, takes
from vdm_jax.nets.callables import from_either
from vdm_jax.nets.network import Network, Pretrained, from_linen
from vdm_jax.nets.signatures import known, named, positional, required
from vdm_jax.nets.trial import try_network
from vdm_jax.typing import Array, Int, Params


def as_network(given: object, shape: tuple[int, ...]) -> Network:
    """Turn a user's network into a `Network`.

    Args:
      given: a row of the table above, except the last one. (`network_of` takes names and specs as well.)
      shape: of one example.

    Raises:
      ValueError: `given` is not in the table, it cannot be applied, its output does not have the shape of the
        data, or it is a callable that runs on single examples and on batches with different results.
    """
    if isinstance(given, Network):
        network = complete(given, shape)
    elif isinstance(given, nn.Module):
        network = from_linen(given)
    elif (pair := _init_and_apply(given)) is not None:
        init, apply = pair
        network = Network(_init_as_called(init), _apply_as_called(apply))
    elif callable(given):
        return from_either(given, shape)
    else:
        raise ValueError(
            f"expected a name, a network with init and apply, or a callable (xt, gamma_t), "
            f"found {type(given).__name__}"
        )
    try_network(network, shape)
    return network


def as_map(given: object) -> Network:
    """Wrap an encoder or decoder, which does not depend on γ, as a `Network`: `apply(params, x, keys=None)`.

    Raises:
      ValueError: `given` is not a Linen module and does not have init and apply.
    """
    if isinstance(given, nn.Module):
        return from_linen(given, inputs=1)
    pair = _init_and_apply(given)
    if pair is None:
        raise ValueError(
            f"expected a name, a Linen module, or init and apply, found {type(given).__name__}"
        )
    init, apply = pair
    return Network(_init_as_called(init, inputs=1), _apply_as_called(apply, inputs=1))


def complete(given: Network, shape: tuple[int, ...]) -> Network:
    """Return a `Network` whose functions take all arguments, from one whose functions may lack some.

    Raises:
      ValueError: a function is not callable, or `apply` takes too few arguments or cannot be applied.
    """
    for name, function in given._asdict().items():
        if not callable(function):
            raise ValueError(f"expected a function {name}, found {describe(function)}")
    if isinstance(given, Pretrained):
        return given
    init = given.init if takes(given.init, 4) else _init_as_called(given.init)
    apply = given.apply if takes(given.apply, 5) else _apply_as_called(given.apply)
    network = Network(init, apply)
    if None in map(positional, network):
        # behind a signature (*arguments), there may be a function that does not take them
        try_network(network, shape)
    return network


def by_row(networks: Sequence[Network], index: int | Int[Array, ""]) -> Network:
    """Return network `index` of several, where `index` may be traced; its params are those of all networks."""

    def init(key, xt, gamma_t=None, extra=None):
        return [network.init(key, xt, gamma_t, extra) for network in networks]

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        def branch(i: int, params: list[Params]) -> Array:
            return networks[i].apply(params[i], xt, gamma_t, extra, keys)

        branches = [partial(branch, i) for i in range(len(networks))]
        return jax.lax.switch(index, branches, params)

    return Network(init, apply)


def _init_and_apply(network: object) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return the functions init and apply of a pair or an object, or None if it does not have both."""
    # a class has methods of these names as well, but no instance to call them on
    if isinstance(network, type):
        return None
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return network[0], network[1]
    init, apply = getattr(network, "init", None), getattr(network, "apply", None)
    return (init, apply) if callable(init) and callable(apply) else None


def _init_as_called(function: Callable[..., Any], inputs: int = 2) -> Callable[..., Any]:
    """Return `Network.init` from a function that takes some of (key, xt, gamma_t), or of (key, x).

    Args:
      function: the user's init.
      inputs: 2 for a denoiser, 1 for an encoder or decoder.
    """
    # arguments with defaults are not passed by position: they may be anything, such as a scale
    count = 1 + inputs
    if positional(function) is not None:
        count = min(count, required(function))

    def init(key, xt, gamma_t=None, extra=None):
        arguments = (key, xt, gamma_t)[:count]
        keywords = {"extra": extra}
        if count < 3:
            keywords["gamma_t"] = gamma_t
        return function(*arguments, **known(function, keywords))

    return init


def _apply_as_called(function: Callable[..., Any], inputs: int = 2) -> Callable[..., Any]:
    """Return `Network.apply` from a function that takes some of (params, xt, gamma_t), or of (params, x).

    Args:
      function: the user's apply.
      inputs: 2 for a denoiser, 1 for an encoder or decoder.

    Raises:
      ValueError: the function takes less than two or requires more than three positional arguments.
    """
    names = positional(function)
    if required(function) > 3 or (names is not None and len(names) < 2):
        expected = "(params, xt, gamma_t)" if inputs == 2 else "(params, x)"
        raise ValueError(
            f"apply takes {', '.join(map(repr, named(function)))}, expected "
            f"{expected}, with extra and keys if they are used"
        )
    count = 1 + inputs if names is None else min(1 + inputs, len(names))

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        arguments = (params, xt, gamma_t)[:count]
        keywords = {"extra": extra, "keys": keys}
        if count < 3:
            keywords["gamma_t"] = gamma_t
        return function(*arguments, **known(function, keywords))

    return apply


def carries_weights(given: object) -> bool:
    """Return True if a network always starts from the same weights, because it has no `init` with a key."""
    if isinstance(given, Mapping):
        return any(map(carries_weights, given.values()))
    if isinstance(given, Pretrained):
        return True
    return callable(given) and not isinstance(given, nn.Module) and _init_and_apply(given) is None


def is_by_row(given: object) -> bool:
    """Return True for a mapping from parameterizations to networks, which unlike a spec has no "name"."""
    return isinstance(given, Mapping) and "name" not in given
