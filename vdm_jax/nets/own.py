"""A user's own network, of any library, as the two functions that the framework calls.

    Network, (init, apply), or an object with both     init(key, …), apply(params, xt, gamma_t, …), batches
    a Flax Linen module                                called as module(xt, gamma_t, …) on batches
    a callable that is a PyTree (Equinox, Flax NNX)    its arrays are what is trained; per example or batches
    any other callable                                 (xt, gamma_t) -> F of one example; nothing to train
    {row: one of these}                                another for each parameterization

`extra` and `keys` are passed to what has parameters of these names, and only to that.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    if isinstance(given, nn.Module):
        network = _from_module(given)
    elif (pair := _init_and_apply(given)) is not None:
        network = _as_called(Network(*pair), where)
    elif callable(given):
        network = _from_callable(given, shape, where)
    else:
        raise ValueError(
            f"{where}: expected a name, a network with init and apply, or a callable (xt, gamma_t), "
            f"found {type(given).__name__}"
        )
    try_network(network, shape, where)
    return network


def by_row(networks: Sequence[Network], index: Any) -> Network:
    """Network `index` of several, which may be traced; the parameters of all are kept."""

    def init(*arguments):
        return [network.init(*arguments) for network in networks]

    def apply(params, *arguments):
        branches = [
            lambda params, network=network, i=i: network.apply(params[i], *arguments)
            for i, network in enumerate(networks)
        ]
        return jax.lax.switch(index, branches, params)

    return Network(init, apply)


def try_network(network: Network, shape: tuple[int, ...], where: str) -> None:
    """Trace a network on a few examples of a shape, without computing.

    Raises:
      ValueError: it cannot be applied, or gives another shape.
    """
    xt, gamma_t = jnp.zeros((PROBE, *shape)), jnp.zeros((PROBE,))

    def run(key, extra):
        return network.apply(network.init(key, xt, gamma_t, extra), xt, gamma_t, extra, None)

    try:
        found = jax.eval_shape(run, jax.random.key(0), xt).shape
    except Exception as error:  # whatever a user's code raises
        raise ValueError(
            f"{where}: cannot be applied to xt {(PROBE, *shape)}, gamma_t {(PROBE,)}: "
            f"{type(error).__name__}: {_line(error)}"
        ) from error
    if found[:1] != (PROBE,) or found[1:] != shape:
        raise ValueError(
            f"{where}: expected an output of shape {(PROBE, *shape)} for {PROBE} examples, found {found}"
        )


def _init_and_apply(given: Any) -> tuple[Any, Any] | None:
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return given[0], given[1]
    found = getattr(given, "init", None), getattr(given, "apply", None)
    return found if all(map(callable, found)) else None


def _from_module(module: nn.Module) -> Network:
    takes = _named(type(module).__call__)

    def call(extra, keys) -> dict[str, Any]:
        return {k: v for k, v in {"extra": extra, "keys": keys}.items() if k in takes}

    def init(key, xt, gamma_t=None, extra=None):
        return module.init(key, xt, gamma_t, **call(extra, None))["params"]

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        return module.apply({"params": params}, xt, gamma_t, **call(extra, keys))

    return Network(init, apply)


def _as_called(network: Network, where: str) -> Network:
    """Call each of the two with what it takes."""
    if not 2 <= _required(network.apply) <= 3:
        raise ValueError(
            f"{where}: apply takes {', '.join(map(repr, _named(network.apply)))}, expected "
            "(params, xt, gamma_t), with extra and keys if they are used"
        )

    def init(key, xt, gamma_t=None, extra=None):
        return _call(network.init, (key, xt, gamma_t), extra=extra)

    def apply(params, xt, gamma_t=None, extra=None, keys=None):
        return _call(network.apply, (params, xt, gamma_t), extra=extra, keys=keys)

    return Network(init, apply)


def _call(function: Callable[..., Any], first: tuple[Any, Any, Any], **others: Any) -> Any:
    """With as many of the first arguments as it needs, and the others that it names."""
    few = first[: _required(function)]
    others |= {"gamma_t": first[2]} if len(few) < 3 else {}
    names = _named(function)
    return function(*few, **{name: value for name, value in others.items() if name in names})


def _from_callable(function: Callable[..., Any], shape: tuple[int, ...], where: str) -> Network:
    """A callable; if it is a PyTree, as the modules of Equinox and NNX are, its arrays are trained."""
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

    def each(params, xt, gamma_t, extra=None, keys=None):
        del extra, keys
        return jax.vmap(whole(params))(xt, gamma_t)

    def batches(params, xt, gamma_t, extra=None, keys=None):
        del extra, keys
        return whole(params)(xt, gamma_t)

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


def _required(function: Callable[..., Any]) -> int:
    """How many positional arguments it needs."""
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.kind in positional and p.default is p.empty and p.name not in ("extra", "keys")
        for p in parameters
    )


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def is_by_row(given: Any) -> bool:
    """Whether it is a mapping from parameterizations to networks, and no spec."""
    return isinstance(given, Mapping) and "name" not in given
