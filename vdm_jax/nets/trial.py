"""Trial calls of a network before anything is compiled.

They check its shapes, and decide whether a callable is written for one example or for a batch.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from vdm_jax.checks import check_floats, is_traced
from vdm_jax.nets.network import Network
from vdm_jax.typing import Array, Keys, Params, PyTree

PROBE = 3  # number of examples on which a network is traced
LARGEST = 64  # largest dimension of the data that is tried as a batch size
NOISE = 0.1  # added to parameters, relative to their root mean square
ROUNDING = 1e-4  # tolerance of outputs, relative to the largest; in half precision, 16 units in the last place
HALF = {"bf16[": 2.0**-8, "f16[": 2.0**-11}
"""Half-precision types, as a printed program shows them -> their relative rounding."""

Reading = Callable[..., Any]
"""(params, xt, gamma_t, extra, keys) -> F, of a batch."""


class Inputs(NamedTuple):
    """Arguments of a reading after its params."""

    xt: np.ndarray
    gamma_t: np.ndarray
    extra: np.ndarray | None
    keys: Keys | None


def try_network(network: Network, shape: tuple[int, ...]) -> None:
    """Trace a network on a few examples of a shape, without computing.

    Raises:
      ValueError: the network cannot be applied, or its output has another shape.
    """

    def run(key, xt, gamma_t):
        return network.apply(network.init(key, xt, gamma_t, xt), xt, gamma_t, xt, None)

    _try(run, jax.random.key(0), shape)


def try_params(network: Network, params: Params, shape: tuple[int, ...], *, extra: bool) -> None:
    """Trace a network as `try_network` does, with given parameters, and with a second input if `extra`."""

    def run(params, xt, gamma_t):
        return network.apply(params, xt, gamma_t, xt if extra else None, None)

    _try(run, params, shape)


def _try(run: Callable[..., Any], first: PyTree, shape: tuple[int, ...]) -> None:
    """Trace run(first, xt, gamma_t) and check the shape and the type of its output."""
    xt, gamma_t = jnp.zeros((PROBE, *shape)), jnp.zeros((PROBE,))
    try:
        output = jax.eval_shape(run, first, xt, gamma_t)
    except Exception as error:  # a user's code may raise anything
        raise ValueError(_cannot(error, (PROBE, *shape))) from error
    _check_output(output, (PROBE, *shape))


def _cannot(error: Exception, shape: tuple[int, ...]) -> str:
    """Return the message about a network that raised an error for a batch of this shape."""
    line = next(iter(str(error).splitlines()), "")
    called = f"xt {shape}, gamma_t {shape[:1]}"
    return f"cannot be applied to {called}: {type(error).__name__}: {line}"


def _check_output(output: Any, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless an output is an array of floats of the expected shape."""
    try:
        check_floats(output, "output")
    except TypeError as error:
        raise ValueError(str(error)) from error
    if output.shape != expected:
        raise ValueError(
            f"expected an output of shape {expected} for {expected[0]} examples, found {output.shape}"
        )


def is_batched(
    single: Reading,
    batched: Reading,
    params: Params,
    shape: tuple[int, ...],
    *,
    extra: bool,
    keys: bool,
) -> bool:
    """Decide whether a callable is written for batches. If it runs in both readings, compare their results.

    Both readings are computed on random examples at different noise levels, with the given parameters and, in
    case the output is zero at initialization, with slightly changed ones. The first batch size is not a
    dimension of the data, because axes of equal size may broadcast by accident. The second batch size is one,
    and both readings must agree for it, too.

    Args:
      single, batched: the callable mapped over examples, and called on the whole batch.
      params: list of arrays; traced ones are replaced by random ones.
      extra, keys: True if the callable has an argument of this name.

    Returns:
      True if only the batched reading runs, or if both agree, because it is the faster one.

    Raises:
      ValueError: neither reading runs, or their results differ.
    """
    sizes = [next(n for n in count(PROBE) if n not in shape)]
    sizes += [n for n in shape if 1 < n <= LARGEST][:1]
    differ = False
    for inputs in _all_inputs(sizes, shape, extra=extra, keys=keys):
        of_single = _trace(single, params, inputs)
        of_batch = _trace(batched, params, inputs)
        if isinstance(of_single, ClosedJaxpr) and isinstance(of_batch, ClosedJaxpr):
            differ = differ or not _agree([of_single, of_batch], params, inputs)
        elif isinstance(of_single, ClosedJaxpr) or isinstance(of_batch, ClosedJaxpr):
            return isinstance(of_batch, ClosedJaxpr)
        elif inputs.keys is None and inputs.extra is not None:
            # calls with keys, or without `extra`, are optional: a callable may support them or not
            raise of_single
    if differ:
        raise ValueError(
            "runs on single examples and on batches, with different results; say which is meant: "
            "vdm_jax.nets.from_callable(f, batched=True), or batched=False"
        )
    return True


def _all_inputs(
    sizes: list[int], shape: tuple[int, ...], *, extra: bool, keys: bool
) -> list[Inputs]:
    """Return trial inputs of each batch size, with and without the optional arguments that a callable has."""
    rng = np.random.default_rng(0)
    dtype = jnp.result_type(float)
    all_inputs = []
    for n in sizes:
        xt, second = (rng.standard_normal((n, *shape)).astype(dtype) for _ in range(2))
        gamma_t = rng.uniform(-6.0, 4.0, n).astype(dtype)
        with jax.ensure_compile_time_eval():  # models are built inside traced functions, too
            example_keys = jax.random.split(jax.random.key(0), n)
        all_inputs.append(Inputs(xt, gamma_t, second, None))
        if keys:
            all_inputs.append(Inputs(xt, gamma_t, second, example_keys))
        if extra:
            all_inputs.append(Inputs(xt, gamma_t, None, None))
    return all_inputs


def _trace(reading: Reading, params: Params, inputs: Inputs) -> ClosedJaxpr | ValueError:
    """Return the program of a reading, or the error for which it has none."""
    expected = inputs.xt.shape
    try:
        program, output = jax.make_jaxpr(reading, return_shape=True)(params, *inputs)
    except Exception as error:  # a user's code may raise anything
        reason = ValueError(_cannot(error, expected))
        reason.__cause__ = error
        return reason
    try:
        _check_output(output, expected)
    except ValueError as error:
        return error
    return program


def _agree(programs: list[ClosedJaxpr], params: Params, inputs: Inputs) -> bool:
    """Return True if two programs have equal results, up to rounding."""
    half = [size for name, size in HALF.items() if any(name in str(p) for p in programs)]
    tolerance = max([ROUNDING, *(16 * size for size in half)])
    rng = np.random.default_rng(1)
    replacements: dict[int, Array] = {}  # id of a traced array -> random array

    def concrete(leaf: Any) -> Any:
        """Return a constant or a parameter; for a traced one, a random array, the same for all programs."""
        if not is_traced(leaf):
            return leaf
        if id(leaf) not in replacements:
            replacements[id(leaf)] = _random_like(leaf, rng)
        return replacements[id(leaf)]

    def with_noise(leaf):
        leaf = np.asarray(leaf)
        size = float(np.sqrt(np.mean(np.square(leaf.astype(float))))) if leaf.size else 0.0
        noise = NOISE * (size or 1.0) * rng.standard_normal(leaf.shape)
        return (leaf.astype(float) + noise).astype(leaf.dtype)

    # at the highest precision: default matrix products of accelerators might round differently in two programs
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        values = [concrete(leaf) for leaf in params]
        functions = [
            jax.jit(jaxpr_as_fun(ClosedJaxpr(p.jaxpr, [*map(concrete, p.consts)])))
            for p in programs
        ]
        trials = [values]
        if values:
            trials.append([with_noise(value) for value in values])
        for trial in trials:
            leaves = jax.tree.leaves((trial, *inputs))
            outputs = [np.asarray(function(*leaves)[0], float) for function in functions]
            if not _close(outputs, tolerance):
                return False
    return True


def _random_like(leaf: Array, rng: np.random.Generator) -> Array:
    """Return random keys or floats, or zeros of another type, with the shape and type of `leaf`."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.reshape(jax.random.split(jax.random.key(0), leaf.size), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _close(outputs: list[np.ndarray], tolerance: float) -> bool:
    """Return True if two outputs are finite at the same places and close there, relative to the largest."""
    a, b = outputs
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    largest = np.max(np.abs(a[finite]), initial=0.0)
    return bool(np.all(np.abs(a[finite] - b[finite]) <= tolerance * largest))
