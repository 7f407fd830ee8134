"""Several parameterizations as one, chosen by an index that may be traced."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checks import check_instance, is_traced, whole_number
from vdm_jax.parameterizations.base import Parameterization
from vdm_jax.typing import Array, Int


def stacked(rows: Sequence[Parameterization], index: int | Int[Array, ""]) -> Parameterization:
    """Return parameterization `index` of `rows`; `index` may be traced, so that `vmap` can run over it.

    Raises:
      ValueError: `rows` is empty, or `index` is out of range.
      TypeError: an entry of `rows` is not a `Parameterization`.

    Examples:
      >>> rows = [factory() for factory in vdm.parameterizations.PARAMETERIZATIONS.values()]
      >>> interval = vdm.Interval(jnp.asarray(-2.0), jnp.asarray(0.0), jnp.asarray(2.0))
      >>> coefficients = lambda index: vdm.parameterizations.stacked(rows, index)(interval)
      >>> print(np.asarray(jax.vmap(coefficients)(jnp.arange(5)).out).round(3))  # mean, x0, eps, v, score
      [ 1.232  1.    -1.    -0.707  0.707]
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: expected at least 1, found none")
    for parameterization in rows:
        check_instance(parameterization, Parameterization, "rows", "vdm.parameterizations.eps()")
    if not is_traced(index):
        index = whole_number(np.asarray(index)[()], "index", 0, len(rows) - 1)
    # the flags cannot depend on a traced index: they are those of the most restrictive entry
    return Parameterization(
        switch_by_index([p.preconditioning for p in rows], index),
        switch_by_index([p.target for p in rows], index),
        continuous=all(p.continuous for p in rows),
        needs_signal=any(p.needs_signal for p in rows),
    )


def switch_by_index(functions: Sequence[Callable], index: int | Int[Array, ""]) -> Callable:
    """Return function `index` of several with one output structure; `index` may be traced."""

    def select(*outputs):  # all are evaluated, as a `lax.switch` would do under `vmap`
        return jnp.stack(jnp.broadcast_arrays(*outputs))[index]

    return lambda *arguments: jax.tree.map(select, *(f(*arguments) for f in functions))
