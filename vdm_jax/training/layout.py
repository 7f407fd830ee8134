"""Layouts of arrays on devices: a state replicated or divided, a batch divided, results replicated.

Every mesh has two axes. A batch is divided over both; a state is replicated, or divided over `fsdp`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm_jax.training.state import TrainState
from vdm_jax.typing import Batch, Params, PyTree

Devices = Sequence[Any]
"""Devices, `jax.Device`, which type checkers do not accept as a type."""

AXES = ("data", "fsdp")
"""Axes of every mesh; a batch is divided over both."""


class Layout(NamedTuple):
    """The layout of a state and of batches on devices.

    Attributes:
      mesh: devices [data, fsdp].
      wrap: (layout, run, shardings of the state) -> the compiled run, which donates the state.
      arrange: (layout, a process's stack [n, b, ...]) -> the stack in the layout of the compiled run.
      axis_name: the axis over which a step has to average its gradients, or None where the compiler does.
    """

    mesh: Mesh
    wrap: Callable[["Layout", Any, PyTree], Any]
    arrange: Callable[["Layout", Batch], Batch]
    axis_name: str | None = None


def device_mesh(devices: Devices, fsdp: int) -> Mesh:
    """Return a mesh [data, fsdp] whose axes are left to the compiler, which reads the arguments' shardings."""
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(layout: Layout) -> NamedSharding:
    """Return the sharding of an array with a copy on every device."""
    return NamedSharding(layout.mesh, PartitionSpec())


def divided(layout: Layout, axis: int = 0) -> NamedSharding:
    """Return the sharding of examples along `axis`, divided over all devices."""
    return NamedSharding(layout.mesh, PartitionSpec(*[None] * axis, AXES))


def shardings(layout: Layout, state: TrainState) -> TrainState:
    """Return the shardings of a state: each array divided along its largest axis that `fsdp` divides, if any.

    The leading axis of a sweep's states, over its runs, is not divided: every device holds the scalars of all
    runs.
    """
    groups = layout.mesh.shape["fsdp"]
    first_axis = len(state.step.shape)  # 1 for the states of a sweep

    def place(leaf: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if i >= first_axis and n % groups == 0]
        if groups == 1 or not axes:
            return replicated(layout)
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(layout.mesh, PartitionSpec(*[None] * largest, "fsdp"))

    # the model state is small, and every device reads it
    model_state = jax.tree.map(lambda _: replicated(layout), state.model_state)
    placed = jax.tree.map(place, state)
    return placed._replace(model_state=model_state)


def put(layout: Layout, batch: PyTree, axis: int = 0) -> PyTree:
    """Make global arrays, divided along `axis`, from the part of each process."""
    sharding = divided(layout, axis)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def with_full_params(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
    """Gather divided parameters once, before a function of them is computed.

    Without the constraint the compiler may divide the arithmetic of the layers instead of gathering parameters.
    """
    if layout.mesh.shape["fsdp"] == 1:
        return function

    def gather_and_call(params: Params, *arguments: Any) -> Any:
        params = jax.lax.with_sharding_constraint(params, replicated(layout))
        return function(params, *arguments)

    return gather_and_call


def jit_replicated(
    layout: Layout, function: Callable[..., Any], examples: int = 0
) -> Callable[..., Any]:
    """Jit a function of parameters whose result is replicated on every device.

    Args:
      layout: of the parameters.
      function: (params, ...) -> result.
      examples: n of a result [n, ...] over examples, which the devices compute in parts if n is a multiple of
        their number; 0 for other results.
    """
    in_parts = examples > 0 and examples % layout.mesh.size == 0
    function = with_full_params(layout, function)

    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        # from the sharding of the result the compiler divides the computation that leads to it
        return jax.lax.with_sharding_constraint(result, divided(layout)) if in_parts else result

    return jax.jit(run, out_shardings=replicated(layout))
