"""Checks of what users pass in: each raises one line with what, what was found and what is expected.

A value that is traced cannot be read; its shape and type are checked, and it is taken as it is.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MAX_STEPS = 2**24
"""Largest number of steps: float32 tells whole numbers up to here apart, and so the times i/T."""

ROUNDING = 1e-6  # by which a time may miss [0, 1]


def whole_number(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number in [low, high] as an int.

    Raises:
      ValueError: it is another number, a boolean, or no number.
    """
    if not _is_whole(value) or value < low or (high is not None and value > high):
        least = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: expected a whole number {least}, found {describe(value)}")
    return int(value)


def real_number(
    value: Any,
    name: str,
    expected: str = "a finite number",
    holds: Callable[[Any], bool] = math.isfinite,
) -> Any:
    """Return a real number for which `holds` is true; a traced scalar as it is.

    Args:
      expected: the condition in words, such as "a number in [0, 1)".

    Raises:
      ValueError: it is none.
    """
    if is_traced(value):
        return value
    right = isinstance(value, int | float | np.integer | np.floating | np.ndarray | jax.Array)
    right = right and not isinstance(value, bool) and np.ndim(value) == 0
    if right:
        kind = np.asarray(value).dtype
        right = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if not right or not holds(value):
        raise ValueError(f"{name}: expected {expected}, found {describe(value)}")
    return value


def is_traced(value: Any) -> bool:
    """True if the value is not known before the program runs."""
    return isinstance(value, Tracer)


def is_key(value: Any) -> bool:
    """True for one typed key, traced or not."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and _is_key_type(dtype) and value.shape == ()


def check_key(key: Any, name: str = "key") -> None:
    """Raise TypeError unless `key` is one typed key of `jax.random.key`."""
    if is_key(key):
        return
    found = describe(key)
    if getattr(key, "dtype", None) == np.uint32 and np.shape(key)[-1:] in ((2,), (4,)):
        found = (
            "raw key data, such as those of PRNGKey: jax.random.wrap_key_data makes a key of them"
        )
    elif _is_key_type(getattr(key, "dtype", None)):
        found = f"keys of shape {key.shape}: use jax.vmap over them"
    raise TypeError(f"{name}: expected a key such as jax.random.key(0), found {found}")


def check_times(t: Any, name: str = "t", *, high: float = 1.0) -> None:
    """Raise ValueError unless all times lie in [0, high], up to rounding.

    Raises:
      TypeError: no real numbers.
    """
    check_real(t, name)
    if is_traced(t):
        return
    times = np.asarray(t, np.float64)
    wrong = ~((times >= -ROUNDING) & (times <= high + ROUNDING))  # NaN too
    if np.any(wrong):
        raise ValueError(f"{name}: expected times in [0, {high:g}], found {times[wrong].flat[0]:g}")


def check_real(x: Any, name: str) -> None:
    """Raise TypeError unless `x` is a real number or an array of them."""
    if isinstance(x, int | float) and not isinstance(x, bool):
        return
    dtype = getattr(x, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        raise TypeError(f"{name}: expected real numbers, found {describe(x)}")
    check_array(x, name)


def check_floats(x: Any, name: str) -> None:
    """Raise TypeError unless `x` is an array of floats, or a float."""
    if isinstance(x, float):
        return
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected floats, found {describe(x)}")
    check_array(x, name)


def check_array(x: Any, name: str) -> None:
    """Refuse arrays of which a conversion to numbers would drop a part.

    Raises:
      TypeError: a masked array, or values that are neither numbers nor booleans.
      ValueError: integers that need 64 bits.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected plain numbers, found a masked array: fill the masked values, or leave out "
            "the examples that have some"
        )
    dtype = getattr(x, "dtype", None)
    if dtype is None or _is_key_type(dtype):
        return
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"{name}: expected real numbers, found {describe(x)}")
    if (
        isinstance(x, np.ndarray)
        and np.issubdtype(dtype, np.integer)
        and dtype.itemsize > 4
        and x.size
    ):
        low, high = int(x.min()), int(x.max())
        if low < -(2**31) or high >= 2**31:  # JAX would keep the lower half of the digits
            raise ValueError(
                f"{name}: expected integers of 32 bits, found values in [{low}, {high}]"
            )


def check_levels(x: Any, levels: int, name: str) -> None:
    """Refuse what is no array of integers 0..levels-1; the values of a traced one cannot be read.

    Raises:
      TypeError: other types; booleans unless there are two levels.
      ValueError: integers out of range.
    """
    check_array(x, name)
    dtype = jnp.result_type(x)
    whole = jnp.issubdtype(dtype, jnp.integer) or (levels == 2 and jnp.issubdtype(dtype, jnp.bool_))
    if not whole:
        raise TypeError(f"{name}: expected integers 0..{levels - 1}, found {describe(x)}")
    if is_traced(x) or not np.size(x):
        return
    low, high = int(np.min(np.asarray(x))), int(np.max(np.asarray(x)))
    if low < 0 or high >= levels:
        raise ValueError(
            f"{name}: expected integers 0..{levels - 1}, found values in [{low}, {high}]"
        )


def check_sizes(shape: Any, name: str) -> tuple[int, ...]:
    """Return the shape of an example as a tuple of whole numbers of at least 1.

    Raises:
      TypeError: no sequence.
      ValueError: a size that is none.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(
            f"{name}: expected a tuple of sizes such as (28, 28, 1), found {describe(shape)}"
        )
    return tuple(whole_number(size, f"{name}[{i}]", 1) for i, size in enumerate(shape))


def check_instance(value: Any, kind: type, name: str, example: str) -> None:
    """Raise TypeError unless `value` is of a kind; `example` says how to make one."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name}: expected a {kind.__name__} such as {example}, found {describe(value)}"
        )


def check_callable(function: Any, arguments: Sequence[str], name: str) -> None:
    """Raise TypeError unless `function` can be called with that many positional arguments."""
    expected = f"expected a callable ({', '.join(arguments)})"
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{name}: {expected}, found {describe(function)}")
    if not takes(function, len(arguments)):
        raise TypeError(f"{name}: {expected}, found one that takes {inspect.signature(function)}")


def takes(function: Callable[..., Any], count: int) -> bool:
    """True if a function can be called with that many positional arguments, or does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def describe(value: Any) -> str:
    """A value in a message: one short line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if value.shape == () and not is_traced(value) and not _is_key_type(value.dtype):
            return f"{value.dtype} {value}"
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _short(repr(value))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return _short(" ".join(repr(value).split()))
    return type(value).__name__


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_key_type(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
