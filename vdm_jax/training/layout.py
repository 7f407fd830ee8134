"""Layouts of arrays on devices: a state replicated or divided, a batch divided, results replicated.

Every mesh has two axes. A batch is divided over both; a state lies whole on every device, or is divided over
`fsdp`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm_jax.training.state import TrainState
from vdm_jax.typing import Batch, PyTree

Devices = Sequence[Any]
"""A sequence of `jax.Device`, which type checkers do not accept as a type."""

AXES = ("data", "fsdp")
"""Axes of every mesh; a batch is divided over both."""


class Layout(NamedTuple):
    """The layout of a state and of batches on devices.

    Attributes:
      mesh: devices [data, fsdp].
      wrap: (layout, run, shardings of the state) -> the compiled run, which takes over the state's memory.
      arrange: (layout, a process's stack [n, b, ...]) -> the stack as the compiled run takes it.
      axis_name: the axis that a step has to average over, or None where the compiler does it.
    """

    mesh: Mesh
    wrap: Callable[["Layout", Any, PyTree], Any]
    arrange: Callable[["Layout", Batch], Batch]
    axis_name: str | None = None


def device_mesh(devices: Devices, fsdp: int) -> Mesh:
    """Devices [data, fsdp]; what lies where is for the compiler to find out from the arguments."""
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(layout: Layout) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(layout.mesh, PartitionSpec())


def divided(layout: Layout, axis: int = 0) -> NamedSharding:
    """Examples along `axis`, divided over all devices."""
    return NamedSharding(layout.mesh, PartitionSpec(*[None] * axis, AXES))


def shardings(layout: Layout, state: TrainState) -> TrainState:
    """Return the shardings of a state: each array divided along its largest axis that `fsdp` divides, if any.

    The leading axis of runs side by side is not divided: what is a number of each of them, every device has.
    """
    parts, first = layout.mesh.shape["fsdp"], len(state.step.shape)

    def place(leaf):
        axes = [i for i, n in enumerate(leaf.shape) if i >= first and n % parts == 0]
        if parts == 1 or not axes:
            return replicated(layout)
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(layout.mesh, PartitionSpec(*[None] * largest, "fsdp"))

    # small, and read by every device
    whole = jax.tree.map(lambda _: replicated(layout), state.model_state)
    places = jax.tree.map(place, state)
    return places._replace(model_state=whole)


def put(layout: Layout, batch: PyTree, axis: int = 0) -> PyTree:
    """Make the global arrays of which this process has its part, divided along `axis`."""
    sharding = divided(layout, axis)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def with_full_params(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
    """Gather divided parameters once, before a function of them is computed.

    Left to itself the compiler may divide the layers' arithmetic instead of their parameters.
    """
    if layout.mesh.shape["fsdp"] == 1:
        return function

    def together(params, *arguments):
        params = jax.lax.with_sharding_constraint(params, replicated(layout))
        return function(params, *arguments)

    return together


def jit_replicated(
    layout: Layout, function: Callable[..., Any], examples: int = 0
) -> Callable[..., Any]:
    """Jit a function of parameters; what it returns is whole on every device.

    Its result is `examples` data [n, ...] that are computed in parts, if the devices divide their number: the
    compiler divides all that leads to them.
    """
    in_parts = examples > 0 and examples % layout.mesh.size == 0
    function = with_full_params(layout, function)

    def run(*arguments):
        result = function(*arguments)
        return jax.lax.with_sharding_constraint(result, divided(layout)) if in_parts else result

    return jax.jit(run, out_shardings=replicated(layout))
