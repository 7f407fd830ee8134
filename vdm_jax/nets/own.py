"""A user's own network, of any library, as the two functions that the framework calls.

    Network, (init, apply), or an object with both     init(key, …), apply(params, xt, gamma_t, …), batches
    a Flax Linen module                                called as module(xt, gamma_t, …) on batches
    a callable that is a PyTree (Equinox, Flax NNX)    its arrays are what is trained; per example or batches
    any other callable                                 (xt, gamma_t) -> F of one example; nothing to train
    {row: one of these}                                another for each parameterization

`extra` and `keys` are passed to what has parameters of these names, and only to that. A map of latent variables
is one of the first two rows, called without gamma_t.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.nets.network import Network
from vdm_jax.typing import Params

PROBE = 3  # examples that a network is tried on, without computing


def as_network(given: Any, shape: tuple[int, ...], where: str = "network") -> Network:
    """Make a `Network` of what a user has.

    Args:
      given: see above; names and specs are for `build`.
      shape: of one example.
      where: what to call it in messages.

    Raises:
      ValueError: it is none of these, it cannot be applied, or its output has another shape than the data.
    """
    if isinstance(given, Network):
        network = complete(given, shape, where)
    elif isinstance(given, nn.Module):
        network = _from_module(given)
    elif (pair := _init_and_apply(given)) is not None:
        network = Network(_init_as_called(pair[0]), _apply_as_called(pair[1], where))
    elif callable(given):
        network = _from_callable(given, shape, where)
    else:
        raise ValueError(
            f"{where}: expected a name, a network with init and apply, or a callable (xt, gamma_t), "
            f"found {type(given).__name__}"
        )
    try_network(network, shape, where)
    return network


def as_map(given: Any, where: str) -> Network:
    """Make a `Network` of a user's encoder or decoder, which hears of no γ: `apply(params, x, keys=None)`.

    Raises:
      ValueError: it is neither a Linen module nor has it init and apply.
    """
    if isinstance(given, nn.Module):
        return _from_module(given, inputs=1)
    pair = _init_and_apply(given)
    if pair is None:
        raise ValueError(
            f"{where}: expected a name, a Linen module, or init and apply, found {type(given).__name__}"
        )
    return Network(_init_as_called(pair[0], 1), _apply_as_called(pair[1], where, 1))


def complete(given: Network, shape: tuple[int, ...], where: str) -> Network:
    """A `Network` for one whose functions may lack some of the arguments.

    Raises:
      ValueError: its `apply` takes too little, or `*arguments` that it cannot be applied with.
    """
    init = given.init if _takes(given.init, 4) else _init_as_called(given.init)
    apply = given.apply if _takes(given.apply, 5) else _apply_as_called(given.apply, where)
    network = Network(init, apply)
    if None in map(_positional, network):  # *arguments do not tell what they are passed on to
        try_network(network, shape, where)
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


def try_network(network: Network, shape: tuple[int, ...], where: str) -> None:
    """Trace a network on a few examples of a shape, without computing.

    Raises:
      ValueError: it cannot be applied, or gives another shape.
    """

    def run(key, xt, gamma_t):
        return network.apply(network.init(key, xt, gamma_t, xt), xt, gamma_t, xt, None)

    _try(run, jax.random.key(0), shape, where)


def try_params(
    network: Network, params: Params, shape: tuple[int, ...], where: str, *, extra: bool
) -> None:
    """The same with parameters that are there, and with a second input or none."""

    def run(params, xt, gamma_t):
        return network.apply(params, xt, gamma_t, xt if extra else None, None)

    _try(run, params, shape, where)


def _try(run: Callable[..., Any], first: Any, shape: tuple[int, ...], where: str) -> None:
    try:
        found = jax.eval_shape(run, first, jnp.zeros((PROBE, *shape)), jnp.zeros((PROBE,))).shape
    except Exception as error:  # whatever a user's code raises
        raise ValueError(
            f"{where}: cannot be applied to xt {(PROBE, *shape)}, gamma_t {(PROBE,)}: "
            f"{type(error).__name__}: {_line(error)}"
        ) from error
    if found != (PROBE, *shape):
        raise ValueError(
            f"{where}: expected an output of shape {(PROBE, *shape)} for {PROBE} examples, found {found}"
        )


def _init_and_apply(given: Any) -> tuple[Any, Any] | None:
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return given[0], given[1]
    found = getattr(given, "init", None), getattr(given, "apply", None)
    return found if all(map(callable, found)) else None


def _from_module(module: nn.Module, inputs: int = 2) -> Network:
    """Call a module as module(xt, gamma_t), or for one input as module(x)."""
    takes = _named(type(module).__call__)

    def call(gamma_t, extra, keys) -> dict[str, Any]:
        others = {"extra": extra, "keys": keys} | ({"gamma_t": gamma_t} if inputs < 2 else {})
        return {name: value for name, value in others.items() if name in takes}

    def init(key, xt, gamma_t=None, extra=None):
        first = (xt, gamma_t)[:inputs]
        return module.init(key, *first, **call(gamma_t, extra, None))["params"]

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        first = (xt, gamma_t)[:inputs]
        return module.apply({"params": params}, *first, **call(gamma_t, extra, keys))

    return Network(init, apply)


def _init_as_called(function: Callable[..., Any], inputs: int = 2) -> Callable[..., Any]:
    """Call it with what it takes, of (key, xt, gamma_t) or for one input of (key, x)."""
    # what has a default may be anything, such as a scale
    takes = 1 + inputs
    if _positional(function) is not None:
        takes = min(takes, _required(function))

    def init(key, xt, gamma_t=None, extra=None):
        first = (key, xt, gamma_t)[:takes]
        others = {"extra": extra} | ({"gamma_t": gamma_t} if takes < 3 else {})
        return function(*first, **_known(function, others))

    return init


def _apply_as_called(
    function: Callable[..., Any], where: str, inputs: int = 2
) -> Callable[..., Any]:
    """The same of (params, xt, gamma_t) or (params, x)."""
    names = _positional(function)
    if _required(function) > 3 or (names is not None and len(names) < 2):
        expected = "(params, xt, gamma_t)" if inputs == 2 else "(params, x)"
        raise ValueError(
            f"{where}: apply takes {', '.join(map(repr, _named(function)))}, expected "
            f"{expected}, with extra and keys if they are used"
        )
    takes = 1 + inputs if names is None else min(1 + inputs, len(names))

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        first = (params, xt, gamma_t)[:takes]
        others = {"extra": extra, "keys": keys} | ({"gamma_t": gamma_t} if takes < 3 else {})
        return function(*first, **_known(function, others))

    return apply


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with that many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _known(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of some keyword arguments that a function has."""
    names = _named(function)
    return {name: value for name, value in arguments.items() if name in names}


def _from_callable(function: Callable[..., Any], shape: tuple[int, ...], where: str) -> Network:
    """A callable; if it is a PyTree, as the modules of Equinox and NNX are, its arrays are trained."""
    if isinstance(function, nnx.Module) and jax.tree.leaves(
        nnx.state(function, nnx.Not(nnx.Param))  # type: ignore[arg-type]
    ):
        raise ValueError(
            f"{where}: the NNX module {type(function).__name__} has state besides its parameters, as those "
            "of Dropout and BatchNorm: expected nnx.Param only, or (init, apply)"
        )
    leaves, tree = jax.tree.flatten(function)
    if tree == jax.tree.structure(0):  # a plain function
        leaves = []
    trained = [
        isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves
    ]

    def whole(params: Params) -> Callable[..., Any]:
        if not leaves:
            return function
        own = iter(params)
        merged = [next(own) if t else leaf for leaf, t in zip(leaves, trained, strict=True)]
        return jax.tree.unflatten(tree, merged)

    def init(key, xt, gamma_t=None, extra=None):
        del key, xt, gamma_t, extra
        return [leaf for leaf, t in zip(leaves, trained, strict=True) if t]

    def given_ones(extra, keys):
        return _known(function, {"extra": extra, "keys": keys})

    def each(params, xt, gamma_t, extra=None, keys=None):
        others = {name: v for name, v in given_ones(extra, keys).items() if v is not None}
        return jax.vmap(lambda xt, g, others: whole(params)(xt, g, **others))(xt, gamma_t, others)

    def batches(params, xt, gamma_t, extra=None, keys=None):
        return whole(params)(xt, gamma_t, **given_ones(extra, keys))

    try:  # a function of single examples refuses no batch by itself, so they are tried first
        try_network(Network(init, each), shape, where)
        return Network(init, each)
    except ValueError as error:
        try:
            try_network(Network(init, batches), shape, where)
        except ValueError:
            raise error from None
        return Network(init, batches)


def _named(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _positional(function: Callable[..., Any]) -> list[str] | None:
    """Names of its positional arguments but `extra` and `keys`; None for any number of them."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("extra", "keys")]


def _required(function: Callable[..., Any]) -> int:
    """How many of them have no default."""
    parameters = inspect.signature(function).parameters
    names = _positional(function) or []
    return sum(parameters[name].default is inspect.Parameter.empty for name in names)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def carries_weights(given: Any) -> bool:
    """Whether it is called as it is: it has no `init` that would make its weights."""
    return callable(given) and not isinstance(given, nn.Module) and _init_and_apply(given) is None


def is_by_row(given: Any) -> bool:
    """Whether it is a mapping from parameterizations to networks, and no spec."""
    return isinstance(given, Mapping) and "name" not in given
