"""Networks made of callables (xt, gamma_t) -> F, which are written for one example or for a batch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.checks import check_callable, describe
from vdm_jax.nets.network import Network, Pretrained
from vdm_jax.nets.signatures import named
from vdm_jax.nets.trial import is_batched
from vdm_jax.typing import Array, Keys, Params


class _Readings:
    """A callable and its parameters, called on each example or on the whole batch.

    The parameters of a PyTree, such as a module of Equinox or Flax NNX, are its arrays of floats. A plain
    function has none.

    Raises:
      ValueError: the callable is a class, or has state that a function of its parameters would lose.
    """

    def __init__(self, function: Callable[..., Any]):
        _check_stateless(function)
        self.arguments = named(function)
        leaves, tree = jax.tree.flatten(function)
        self.function, self.leaves, self.tree = function, leaves, tree
        if tree == jax.tree.structure(0):  # a plain function is a single leaf
            self.leaves = []
        self.is_param = [
            isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            for leaf in self.leaves
        ]

    def init(self, key: object, xt: object, gamma_t: object = None, extra: object = None) -> Params:
        """Return the parameters that the callable holds; the arguments are those of `Network.init`."""
        del key, xt, gamma_t, extra
        return [leaf for leaf, is_param in self._marked_leaves() if is_param]

    def single(
        self,
        params: Params,
        xt: Array,
        gamma_t: Array,
        extra: Array | None = None,
        keys: Keys | None = None,
    ) -> Any:
        """Call on each example of a batch."""

        def call(xt, gamma_t, keywords):
            return self._call(params, xt, gamma_t, keywords)

        # None is a tree without leaves, which `vmap` passes on
        return jax.vmap(call)(xt, gamma_t, self._keywords(extra, keys))

    def batched(
        self,
        params: Params,
        xt: Array,
        gamma_t: Array,
        extra: Array | None = None,
        keys: Keys | None = None,
    ) -> Any:
        """Call on the whole batch."""
        return self._call(params, xt, gamma_t, self._keywords(extra, keys))

    def _keywords(self, extra: Array | None, keys: Keys | None) -> dict[str, Any]:
        """Return `extra` and `keys`, as far as the callable has arguments of these names."""
        return {n: v for n, v in (("extra", extra), ("keys", keys)) if n in self.arguments}

    def _marked_leaves(self) -> Iterator[tuple[Any, bool]]:
        """Iterate over the leaves of the callable and whether each is a parameter."""
        return zip(self.leaves, self.is_param, strict=True)

    def _call(self, params: Params, xt: Array, gamma_t: Array, keywords: dict[str, Any]) -> Any:
        """Call the callable with its parameters replaced by `params`."""
        if not self.leaves:
            return self.function(xt, gamma_t, **keywords)
        values = iter(params)
        merged = [next(values) if is_param else leaf for leaf, is_param in self._marked_leaves()]
        module = jax.tree.unflatten(self.tree, merged)
        before, tree_before = jax.tree.flatten(module)
        output = module(xt, gamma_t, **keywords)
        # a pure function cannot return the state that a module changes in a call: it would be lost silently
        after, tree_after = jax.tree.flatten(module)
        if tree_after != tree_before or any(a is not b for a, b in zip(after, before, strict=True)):
            raise ValueError(f"{_kind(module)} changes its own state when it is called")
        return output


def from_callable(function: Callable[..., Any], *, batched: bool) -> Network:
    """Wrap a callable (xt, gamma_t) -> F, written for one example or for a batch, as a `Network`.

    The arrays of a PyTree, such as a module of Equinox or Flax NNX, are its parameters, and training starts
    from their values. `extra` and `keys` are passed to a callable that has arguments of these names.

    Args:
      function: the callable.
      batched: True if it takes xt [B, *d] and gamma_t [B], False if it takes one example xt [*d] and a scalar.

    Raises:
      TypeError: `function` is not a callable of two arguments, or `batched` is not a boolean.
      ValueError: a module has state besides its parameters.

    Examples:
      >>> from vdm_jax.nets import from_callable
      >>> net = from_callable(lambda xt, gamma_t: gamma_t * xt, batched=False)
      >>> net.apply([], jnp.ones((2, 3)), jnp.asarray([1.0, 2.0])).tolist()
      [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    if isinstance(function, nn.Module | Network):
        raise TypeError(
            f"from_callable: expected a callable (xt, gamma_t), found {_kind(function)}, which is a network "
            "without it"
        )
    check_callable(function, ("xt", "gamma_t"), "from_callable")
    if not isinstance(batched, bool):
        raise TypeError(f"batched: expected True or False, found {describe(batched)}")
    readings = _Readings(function)
    return Pretrained(readings.init, readings.batched if batched else readings.single)


def from_either(function: Callable[..., Any], shape: tuple[int, ...]) -> Network:
    """Wrap a callable as a `Network`, and find out if it is written for one example or for a batch.

    Raises:
      ValueError: the callable has state, or `is_batched` cannot decide.
    """
    readings = _Readings(function)
    batched = is_batched(
        readings.single,
        readings.batched,
        readings.init(None, None),
        shape,
        extra="extra" in readings.arguments,
        keys="keys" in readings.arguments,
    )
    return Pretrained(readings.init, readings.batched if batched else readings.single)


def _check_stateless(function: Callable[..., Any]) -> None:
    """Check that a callable has no state that a function of its parameters alone would lose.

    Raises:
      ValueError: the callable is a class, an NNX module with state besides parameters, or a bound method or a
        `partial` of a module.
    """
    if isinstance(function, type):
        raise ValueError(f"expected an object, found {describe(function)}: call it first")
    if isinstance(function, nnx.Module) and jax.tree.leaves(
        nnx.state(function, nnx.Not(nnx.Param))  # type: ignore[arg-type]
    ):
        raise ValueError(
            f"the NNX module {type(function).__name__} has state besides its parameters, as those "
            "of Dropout and BatchNorm: expected nnx.Param only, or (init, apply)"
        )
    if jax.tree.structure(function) != jax.tree.structure(0):
        return
    # a plain function, unless it hides a module
    inner = getattr(function, "func", None) if isinstance(function, partial) else None
    inner = getattr(function, "__self__", inner)
    is_leaf = jax.tree.structure(inner) == jax.tree.structure(0)
    if isinstance(inner, nn.Module | nnx.Module) or (not is_leaf and jax.tree.leaves(inner)):
        raise ValueError(
            f"found a function of {_kind(inner)}, whose parameters it hides: give the module itself"
        )


def _kind(module: object) -> str:
    """Describe a module in an error message."""
    name = type(module).__name__
    if isinstance(module, nn.Module):
        return f"the Linen module {name}"
    if isinstance(module, nnx.Module):
        return f"the NNX module {name}"
    return f"a {name}"
