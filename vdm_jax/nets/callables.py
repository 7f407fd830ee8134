"""Networks of callables (xt, gamma_t) -> F, which are written for one example or for a batch."""

from collections.abc import Callable
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
from vdm_jax.typing import Params


class _Readings:
    """Both ways to call a callable, whose arrays are its parameters if it is a PyTree.

    Raises:
      ValueError: it is none, or it has state that a function of its parameters would lose.
    """

    def __init__(self, function: Callable[..., Any]):
        _check_stateless(function)
        self.arguments = named(function)
        leaves, tree = jax.tree.flatten(function)
        self.function, self.leaves, self.tree = function, leaves, tree
        if tree == jax.tree.structure(0):  # a plain function
            self.leaves = []
        self.trained = [
            isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            for leaf in self.leaves
        ]

    def init(self, key: Any, xt: Any, gamma_t: Any = None, extra: Any = None) -> Params:
        del key, xt, gamma_t, extra
        return [leaf for leaf, t in zip(self.leaves, self.trained, strict=True) if t]

    def single(self, params: Params, xt: Any, gamma_t: Any, extra: Any = None, keys: Any = None):
        """Map over the examples of a batch."""
        others = {name: v for name, v in self._others(extra, keys).items() if v is not None}
        return jax.vmap(lambda xt, g, others: self._call(params, xt, g, others))(
            xt, gamma_t, others
        )

    def batched(self, params: Params, xt: Any, gamma_t: Any, extra: Any = None, keys: Any = None):
        """Call with the whole batch."""
        return self._call(params, xt, gamma_t, self._others(extra, keys))

    def _others(self, extra: Any, keys: Any) -> dict[str, Any]:
        return {n: v for n, v in (("extra", extra), ("keys", keys)) if n in self.arguments}

    def _call(self, params: Params, xt: Any, gamma_t: Any, others: dict[str, Any]) -> Any:
        if not self.leaves:
            return self.function(xt, gamma_t, **others)
        own = iter(params)
        merged = [
            next(own) if t else leaf for leaf, t in zip(self.leaves, self.trained, strict=True)
        ]
        module = jax.tree.unflatten(self.tree, merged)
        before, tree = jax.tree.flatten(module)
        output = module(xt, gamma_t, **others)
        after, changed = jax.tree.flatten(module)
        if changed != tree or any(a is not b for a, b in zip(after, before, strict=True)):
            raise ValueError(f"{_kind(module)} changes its own state when it is called")
        return output


def from_callable(function: Callable[..., Any], *, batched: bool) -> Network:
    """Make a `Network` of a callable (xt, gamma_t) -> F and say what it is written for.

    The arrays of a PyTree, as the modules of Equinox and Flax NNX are, are its parameters and what training
    starts from. `extra` and `keys` are passed to a callable that has arguments of these names.

    Args:
      function: the callable.
      batched: True for arrays xt [B, *d] and gamma_t [B], False for one example, xt [*d] and a scalar.

    Raises:
      TypeError: no callable of two arguments, or `batched` is no boolean.
      ValueError: a module with state besides its parameters.

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
    """Make a `Network` of a callable that does not say whether it is written for batches."""
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


def _check_stateless(function: Any) -> None:
    """Refuse what a function of the parameters alone would lose.

    Raises:
      ValueError: an NNX module with other state, or a module inside a bound method or a `partial`.
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
    inner = getattr(function, "func", None) if isinstance(function, partial) else None
    inner = getattr(function, "__self__", inner)
    is_leaf = jax.tree.structure(inner) == jax.tree.structure(0)
    if isinstance(inner, nn.Module | nnx.Module) or (not is_leaf and jax.tree.leaves(inner)):
        raise ValueError(
            f"found a function of {_kind(inner)}, whose parameters it hides: give the module itself"
        )


def _kind(module: Any) -> str:
    kinds = {"Linen": nn.Module, "NNX": nnx.Module}
    name = next((name for name, kind in kinds.items() if isinstance(module, kind)), None)
    return f"the {name} module {type(module).__name__}" if name else f"a {type(module).__name__}"
