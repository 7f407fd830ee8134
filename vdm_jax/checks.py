"""Checks of user input. Errors are one line: the name of the value, what is expected and what was found.

A traced value is not known yet: its shape and type are checked, and its values are not.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MAX_STEPS = 2**24
"""Largest number of steps: float32 distinguishes whole numbers up to it, and therefore the times i/T."""

ROUNDING = 1e-6  # by which a time may miss [0, 1]


def whole_number(value: object, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number in [low, high] as an int.

    Raises:
      ValueError: a number outside of it, a boolean, or a value of another type.
    """
    if not _is_whole(value) or value < low or (high is not None and value > high):
        least = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: expected a whole number {least}, found {describe(value)}")
    return int(value)


def real_number(
    value: object,
    name: str,
    expected: str = "a finite number",
    holds: Callable[[Any], bool] = math.isfinite,
) -> Any:
    """Return a real number for which `holds` is true; a traced scalar is not checked.

    Args:
      value: the value to check.
      name: its name, for messages.
      expected: the condition in words, such as "a number in [0, 1)".
      holds: the condition.

    Raises:
      ValueError: another number, or a value of another type.
    """
    if is_traced(value):
        return value
    valid = isinstance(value, int | float | np.integer | np.floating | np.ndarray | jax.Array)
    valid = valid and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
    if valid:
        dtype = np.asarray(value).dtype
        valid = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not valid or not holds(value):
        raise ValueError(f"{name}: expected {expected}, found {describe(value)}")
    return value


def is_traced(value: object) -> bool:
    """Return True if the value is known only when the compiled program runs."""
    return isinstance(value, Tracer)


def is_key(value: object) -> bool:
    """Return True for a single typed key, traced or not."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and _is_key_type(dtype) and getattr(value, "shape", None) == ()


def check_key(key: object, name: str = "key") -> None:
    """Raise TypeError unless `key` is a single typed key, as `jax.random.key` returns it."""
    if is_key(key):
        return
    description = describe(key)
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype == np.uint32 and shape[-1:] in ((2,), (4,)):
        description = (
            "raw key data, such as those of PRNGKey: jax.random.wrap_key_data makes a key of them"
        )
    elif _is_key_type(dtype):
        description = f"keys of shape {shape}: use jax.vmap over them"
    raise TypeError(f"{name}: expected a key such as jax.random.key(0), found {description}")


def check_times(t: object, name: str = "t", *, high: float = 1.0) -> None:
    """Check that all times lie in [0, high], up to rounding.

    Raises:
      TypeError: values that are not real numbers.
      ValueError: a time outside of the range.
    """
    check_real(t, name)
    if is_traced(t):
        return
    times = np.asarray(t, np.float64)
    wrong = ~((times >= -ROUNDING) & (times <= high + ROUNDING))  # also True for NaN
    if np.any(wrong):
        raise ValueError(f"{name}: expected times in [0, {high:g}], found {times[wrong].flat[0]:g}")


def check_real(x: object, name: str) -> None:
    """Raise TypeError unless `x` is a real number or an array of them."""
    if isinstance(x, int | float) and not isinstance(x, bool):
        return
    dtype = getattr(x, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        raise TypeError(f"{name}: expected real numbers, found {describe(x)}")
    check_array(x, name)


def check_floats(x: object, name: str) -> None:
    """Raise TypeError unless `x` is an array of floats, or a float."""
    if isinstance(x, float):
        return
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected floats, found {describe(x)}")
    check_array(x, name)


def check_array(x: object, name: str) -> None:
    """Check that an array can be converted to a JAX array without loss; other values pass.

    Raises:
      TypeError: a masked array, whose mask JAX drops, or values that are neither numbers nor booleans.
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
        if low < -(2**31) or high >= 2**31:  # JAX would keep the lower 32 bits
            raise ValueError(
                f"{name}: expected integers of 32 bits, found values in [{low}, {high}]"
            )


def check_levels(x: object, levels: int, name: str) -> None:
    """Check that `x` is an array of integers 0..levels-1; the values of a traced array are not checked.

    Raises:
      TypeError: values of another type; booleans unless there are two levels.
      ValueError: integers out of range.
    """
    check_array(x, name)
    dtype = jnp.result_type(x)
    whole = jnp.issubdtype(dtype, jnp.integer) or (levels == 2 and jnp.issubdtype(dtype, jnp.bool_))
    if not whole:
        raise TypeError(f"{name}: expected integers 0..{levels - 1}, found {describe(x)}")
    if is_traced(x):
        return
    values = np.asarray(x)
    if not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= levels:
        raise ValueError(
            f"{name}: expected integers 0..{levels - 1}, found values in [{low}, {high}]"
        )


def check_sizes(shape: object, name: str) -> tuple[int, ...]:
    """Return the shape of an example as a tuple of whole numbers of at least 1.

    Raises:
      TypeError: a value that is not a sequence.
      ValueError: a size that is not a whole number of at least 1.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(
            f"{name}: expected a tuple of sizes such as (28, 28, 1), found {describe(shape)}"
        )
    return tuple(whole_number(size, f"{name}[{i}]", 1) for i, size in enumerate(shape))


def check_instance(value: object, kind: type, name: str, example: str) -> None:
    """Raise TypeError unless `value` is an instance of `kind`; `example` shows how to make one."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name}: expected a {kind.__name__} such as {example}, found {describe(value)}"
        )


def check_callable(function: object, arguments: Sequence[str], name: str) -> None:
    """Raise TypeError unless `function` can be called with these positional arguments."""
    expected = f"expected a callable ({', '.join(arguments)})"
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{name}: {expected}, found {describe(function)}")
    if not takes(function, len(arguments)):
        raise TypeError(f"{name}: {expected}, found one that takes {inspect.signature(function)}")


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return True if a function accepts `count` positional arguments, or has no known signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some built-in functions
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def describe(value: object) -> str:
    """Return a short line that describes a value in a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array: Any = value
        if array.shape == () and not is_traced(array) and not _is_key_type(array.dtype):
            return f"{array.dtype} {array}"
        return f"{array.dtype} of shape {tuple(array.shape)}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _short(repr(value))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):  # no named tuples
        return _short(" ".join(repr(value).split()))
    return type(value).__name__


def _short(text: str) -> str:
    # a message is one line, whatever it quotes
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_whole(value: object) -> TypeGuard[int | np.integer]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_key_type(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
