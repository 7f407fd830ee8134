"""Try a network before anything is compiled: its shapes, and which of two readings of a callable is meant."""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from vdm_jax.checks import check_floats, is_traced
from vdm_jax.nets.network import Network
from vdm_jax.typing import Params

PROBE = 3  # examples that a network is traced on
LARGEST = 64  # a dimension of the data that is tried as a batch size, at most
NOISE = 0.1  # of parameters, relative to their root mean square
ROUNDING = 1e-4  # of outputs, relative to the largest; 16 units in the last place of half precision
HALF = {"bf16[": 2.0**-8, "f16[": 2.0**-11}

Reading = Callable[..., Any]
"""(params, xt, gamma_t, extra, keys) -> F, of a batch."""


class Inputs(NamedTuple):
    """Arguments of a reading after its params; `extra` and `keys` may be None."""

    xt: Any
    gamma_t: Any
    extra: Any
    keys: Any


def try_network(network: Network, shape: tuple[int, ...]) -> None:
    """Trace a network on a few examples of a shape, without computing.

    Raises:
      ValueError: it cannot be applied, or gives another shape.
    """

    def run(key, xt, gamma_t):
        return network.apply(network.init(key, xt, gamma_t, xt), xt, gamma_t, xt, None)

    _try(run, jax.random.key(0), shape)


def try_params(network: Network, params: Params, shape: tuple[int, ...], *, extra: bool) -> None:
    """Trace a network with given parameters, and with a second input if `extra`."""

    def run(params, xt, gamma_t):
        return network.apply(params, xt, gamma_t, xt if extra else None, None)

    _try(run, params, shape)


def _try(run: Callable[..., Any], first: Any, shape: tuple[int, ...]) -> None:
    examples = jnp.zeros((PROBE, *shape)), jnp.zeros((PROBE,))
    try:
        output = jax.eval_shape(run, first, *examples)
    except Exception as error:  # whatever a user's code raises
        raise ValueError(_cannot(error, (PROBE, *shape))) from error
    _check_output(output, (PROBE, *shape))


def _cannot(error: Exception, shape: tuple[int, ...]) -> str:
    line = next(iter(str(error).splitlines()), "")
    called = f"xt {shape}, gamma_t {shape[:1]}"
    return f"cannot be applied to {called}: {type(error).__name__}: {line}"


def _check_output(output: Any, expected: tuple[int, ...]) -> None:
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
    """Decide whether a callable is written for batches, by its results where it runs either way.

    Both readings are computed on random examples at different noise levels, with the parameters as given and
    moved a little, so that outputs that start at zero are told apart. The first batch has the size of no
    dimension of the data, for arrays of one size may broadcast by chance; on a second that has, both readings
    must agree too.

    Args:
      single, batched: the callable mapped over examples, and called with the whole batch.
      params: list of arrays; those that are traced are replaced by random ones.
      extra, keys: whether the callable has these arguments.

    Returns:
      True if only the batched reading runs, or if both agree: it is the faster one.

    Raises:
      ValueError: neither reading runs, or they differ.
    """
    sizes = [next(n for n in count(PROBE) if n not in shape)]
    sizes += [n for n in shape if 1 < n <= LARGEST][:1]
    differ = False
    for inputs in _all_inputs(sizes, shape, extra=extra, keys=keys):
        runs = [_trace(reading, params, inputs) for reading in (single, batched)]
        one, many = (isinstance(run, ClosedJaxpr) for run in runs)
        if one != many:
            return many
        if one:
            differ = differ or not _agree(runs, params, inputs)
        elif isinstance(runs[0], ValueError) and inputs.keys is None and inputs.extra is not None:
            raise runs[0]
    if differ:
        raise ValueError(
            "runs on single examples and on batches, with different results; say which is meant: "
            "vdm_jax.nets.from_callable(f, batched=True), or batched=False"
        )
    return True


def _all_inputs(
    sizes: list[int], shape: tuple[int, ...], *, extra: bool, keys: bool
) -> list[Inputs]:
    """Batches to call a reading with: for each size with all that it takes, then without."""
    rng, found = np.random.default_rng(0), []
    kind = jnp.result_type(float)
    for n in sizes:
        xt, second = (rng.standard_normal((n, *shape)).astype(kind) for _ in range(2))
        gamma_t = rng.uniform(-6.0, 4.0, n).astype(kind)
        with jax.ensure_compile_time_eval():  # models are built inside traced functions, too
            each = jax.random.split(jax.random.key(0), n)
        found.append(Inputs(xt, gamma_t, second, None))
        found += [Inputs(xt, gamma_t, second, each)] if keys else []
        found += [Inputs(xt, gamma_t, None, None)] if extra else []
    return found


def _trace(reading: Reading, params: Params, inputs: Inputs) -> ClosedJaxpr | ValueError:
    """Return the program of a reading, or the reason why it has none."""
    expected = inputs.xt.shape
    try:
        program, output = jax.make_jaxpr(reading, return_shape=True)(params, *inputs)
    except Exception as error:  # whatever a user's code raises
        reason = ValueError(_cannot(error, expected))
        reason.__cause__ = error
        return reason
    try:
        _check_output(output, expected)
    except ValueError as error:
        return error
    return program


def _agree(programs: list[Any], params: Params, inputs: Inputs) -> bool:
    """True if two programs compute the same, to rounding."""
    half = [size for name, size in HALF.items() if any(name in str(p) for p in programs)]
    tolerance = max([ROUNDING, *(16 * size for size in half)])
    rng, drawn = np.random.default_rng(1), {}

    def value(leaf):
        """A constant or a parameter, or a random one for all programs in the place of what is traced."""
        if not is_traced(leaf):
            return leaf
        if id(leaf) not in drawn:
            drawn[id(leaf)] = _random_like(leaf, rng)
        return drawn[id(leaf)]

    def moved(leaf):
        leaf = np.asarray(leaf)
        size = float(np.sqrt(np.mean(np.square(leaf.astype(float))))) if leaf.size else 0.0
        noise = NOISE * (size or 1.0) * rng.standard_normal(leaf.shape)
        return (leaf.astype(float) + noise).astype(leaf.dtype)

    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        given = [value(leaf) for leaf in params]
        run = [
            jax.jit(jaxpr_as_fun(ClosedJaxpr(p.jaxpr, [*map(value, p.consts)]))) for p in programs
        ]
        for own in [given, [*map(moved, given)]] if given else [given]:
            leaves = jax.tree.leaves((own, *inputs))
            if not _close([np.asarray(f(*leaves)[0], float) for f in run], tolerance):
                return False
    return True


def _random_like(leaf: Any, rng: np.random.Generator) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.reshape(jax.random.split(jax.random.key(0), leaf.size), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _close(outputs: list[np.ndarray], tolerance: float) -> bool:
    a, b = outputs
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    largest = np.max(np.abs(a[finite]), initial=0.0)
    return bool(np.all(np.abs(a[finite] - b[finite]) <= tolerance * largest))
