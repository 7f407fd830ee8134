"""The interface of a network: two pure functions on whole batches."""

from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.checks import check_sizes, describe, real_number, whole_number
from vdm_jax.nets.signatures import named
from vdm_jax.specs import nearest
from vdm_jax.typing import Array, Keys, Params

DTYPES = ("bfloat16", "float32")  # of the computation


class Network(NamedTuple):
    """A network of any library: a denoiser [B, *d] -> [B, *d], or a map to another shape.

    Attributes:
      init: (key, xt, gamma_t=None, extra=None) -> params; `xt` [B, *d], `gamma_t` [B], `extra` [B, *d].
      apply: (params, xt, gamma_t=None, extra=None, keys=None) -> [B, ...]. `gamma_t` is the noise level of a
        denoiser, and None for encoders and decoders of latent variables. `extra` is the estimate of an
        informative base, and None for other bases. `keys` [B] are keys for dropout, one for each example; None
        switches dropout off.

    Examples:
      >>> gain = vdm.Network(
      ...     init=lambda key, xt, gamma_t=None, extra=None: {"gain": jnp.ones(())},
      ...     apply=lambda params, xt, gamma_t=None, extra=None, keys=None: params["gain"] * xt,
      ... )
      >>> params = gain.init(jax.random.key(0), jnp.zeros((1, 3)))
      >>> gain.apply(params, jnp.ones((2, 3)), jnp.zeros(2)).shape
      (2, 3)
    """

    init: Callable[..., Params]
    apply: Callable[Concatenate[Params, ...], Array]


class Pretrained(Network):
    """A `Network` whose `init` ignores the key and returns the weights that a callable holds."""

    __slots__ = ()


def from_linen(module: nn.Module, *, inputs: int = 2) -> Network:
    """Wrap a Linen module, which is called on batches as module(xt, gamma_t), as a `Network`.

    `extra` and `keys` are passed to a module whose `__call__` has arguments of these names.

    Args:
      module: a Linen module without variables other than parameters.
      inputs: 2 for a denoiser; 1 for a map of latent variables, which is called as module(x), and gets
        `gamma_t` = None if its `__call__` has an argument of this name.

    Raises:
      TypeError: `module` is not a Linen module.
      ValueError: in `init`, the module has other variables than parameters.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen: expected a Linen module, found {describe(module)}")
    names = named(type(module).__call__)

    def keywords(gamma_t, extra, keys) -> dict[str, Any]:
        values = {"extra": extra, "keys": keys}
        if inputs < 2:  # otherwise it is the second positional argument
            values["gamma_t"] = gamma_t
        return {name: value for name, value in values.items() if name in names}

    def init(key, xt, gamma_t=None, extra=None):
        arguments = (xt, gamma_t)[:inputs]
        variables = module.init(key, *arguments, **keywords(gamma_t, extra, None))
        if more := sorted({*variables} - {"params"}):
            raise ValueError(
                f"the Linen module {type(module).__name__} has variables besides its parameters, {more}, as "
                "those of BatchNorm: expected 'params' alone"
            )
        return variables.get("params", {})

    # Any: Linen annotates a tuple as well, which it returns only with mutable variables
    def apply(params, xt, gamma_t=None, extra=None, keys=None) -> Any:
        arguments = (xt, gamma_t)[:inputs]
        return module.apply({"params": params}, *arguments, **keywords(gamma_t, extra, keys))

    return Network(init, apply)


def check_settings(*, dropout: object, dtype: object, **sizes: object) -> None:
    """Raise ValueError for a wrong setting of a network; `sizes` are whole numbers or tuples of them."""
    for key, value in sizes.items():
        if not isinstance(value, tuple):
            whole_number(value, key, 1)
        elif not check_sizes(value, key):
            raise ValueError(f"{key}: expected at least 1, found none")
    real_number(dropout, "dropout", "a number in [0, 1)", lambda rate: 0 <= rate < 1)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: unknown name {dtype!r}{nearest(dtype, DTYPES)}")


def as_tuple(name: str, value: object) -> tuple[Any, ...]:
    """Return a list or a tuple as a tuple; raise ValueError for another value."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list, found {value!r}")
    return tuple(value)


def dropout(x: Array, keys: Keys | None, *, rate: float, layer: int | Array) -> Array:
    """Apply dropout with one mask per example, from the example's key and the number of the layer.

    Such masks do not depend on how a batch is distributed over devices. Without keys, dropout is off.
    """
    if keys is None or rate == 0:
        return x
    masks = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(masks, x / (1 - rate), 0).astype(x.dtype)


def gamma_features(gamma_t: Array, width: int) -> Array:
    """Return sines and cosines of γ, float32 [B, width], with wavelengths in γ from 0.3 to 200."""
    # at least float32 whatever the compute type: half precision would round the angles of short wavelengths
    gamma_t = gamma_t.astype(jnp.promote_types(gamma_t.dtype, jnp.float32))
    half = max(width // 2, 1)
    frequency = jnp.geomspace(2 * jnp.pi / 200, 2 * jnp.pi / 0.3, half, dtype=gamma_t.dtype)
    angle = gamma_t[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def fourier_features(x: Array, *, first: int, last: int) -> Array:
    """Return sin and cos of 2^n π x along the channels for n = first..last, float32 (Kingma et al. 2021)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    angles = [x * (2.0**n * jnp.pi) for n in range(first, last + 1)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=-1)
