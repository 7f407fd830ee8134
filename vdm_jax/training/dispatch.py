"""Wrappers of the train step: for one device, pmap or a mesh; for a stack of batches; for the runs of a sweep.

    jit         one device
    pmap        a copy of the state on each device, the batch divided, gradients averaged by the step itself
    mesh        one program over all devices: the batch divided over its axes `data` and `fsdp`, the state
                divided over `fsdp` (Zhao et al. 2023, PyTorch FSDP; Rajbhandari et al. 2020, ZeRO)
    over_steps  several steps per dispatch
    over_runs   the runs of a sweep in one program, each with a variant and a seed

The state is the same tree of global arrays in every layout, so that a checkpoint written under one layout
resumes under another. The noise, times and dropout of an example are keyed by its index in the global batch and
do not depend on the layout; losses agree up to rounding, because sums are taken in another order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from vdm_jax.specs import choose
from vdm_jax.training.layout import (
    Devices,
    Layout,
    device_mesh,
    divided,
    put,
    replicated,
    shardings,
)
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Metrics, Step
from vdm_jax.typing import Array, Batch, PyTree

Run = Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
"""Several steps: (state, stack of batches [n, B, ...], number of steps to take) -> (state, metrics [n])."""


def jit(devices: Devices) -> Layout:
    """Return the layout of the first device alone."""
    return Layout(device_mesh(devices[:1], 1), _wrap_mesh, _arrange_mesh)


def pmap(devices: Devices) -> Layout:
    """Return the layout with a replica on each device; JAX only maintains `pmap` and recommends a mesh."""
    return Layout(device_mesh(devices, 1), _wrap_pmap, _arrange_pmap, axis_name="data")


def mesh(devices: Devices, fsdp: int = 1) -> Layout:
    """Return the layout of one program over all devices; `fsdp` of them share one copy of the state.

    Raises:
      ValueError: the devices cannot be divided into groups of `fsdp`.
    """
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp: expected a divisor of {len(devices)} devices, found {fsdp}")
    return Layout(device_mesh(devices, fsdp), _wrap_mesh, _arrange_mesh)


PARALLEL: dict[str, Callable[..., Layout]] = {"jit": jit, "pmap": pmap, "mesh": mesh}
"""Layouts by the name that a config gives them: (devices) -> `Layout`."""


def make_layout(parallel: str = "auto", fsdp: int = 1, *, devices: Devices | None = None) -> Layout:
    """Return the layout for a name.

    Args:
      parallel: a name of `PARALLEL`, or "auto": `mesh` if there are several devices, else `jit`.
      fsdp: number of devices that share one copy of the state, under `mesh`.
      devices: the devices to use; by default all devices of all processes.

    Raises:
      ValueError: an unknown name, an `fsdp` that the layout or the devices do not allow, or `jit` with several
        processes.
    """
    devices = jax.devices() if devices is None else devices
    automatic = mesh if len(devices) > 1 else jit
    factory = choose({"auto": automatic} | PARALLEL, parallel, "parallel")
    if factory is jit and jax.process_count() > 1:
        raise ValueError(
            f"parallel: 'jit' is for one device, found {jax.process_count()} processes"
        )
    if factory is mesh:
        return mesh(devices, fsdp)
    if fsdp != 1:
        raise ValueError(f"fsdp: needs parallel = 'mesh', found {fsdp} under {factory.__name__!r}")
    return factory(devices)


def check_batch(layout: Layout, batch_size: int) -> None:
    """Check that the devices can divide a batch.

    Raises:
      ValueError: the batch size is not a multiple of the number of devices.
    """
    devices, processes = layout.mesh.size, jax.process_count()
    if batch_size % devices:
        raise ValueError(
            f"batch_size: {batch_size} examples cannot be divided over "
            f"{devices} devices ({processes} process{'es' * (processes > 1)} of {devices // processes})"
        )


def over_steps(step: Step) -> Run:
    """Wrap a step as a `Run`; its metrics are zeros after the first `count` steps.

    `count` is an argument, so that a run whose last stack is shorter compiles once. A stack of one batch is not
    looped over: on CPUs XLA runs the gradients that JAX derives for convolutions, which a user's network may
    contain, tens of times slower inside a loop, even one of length 1.
    """
    step = jax.jit(step)  # traced once, for the shapes of its metrics and for the loop

    def run(state: TrainState, batches: Batch, count: ArrayLike) -> tuple[TrainState, Metrics]:
        def batch_at(i: ArrayLike) -> Batch:
            return jax.tree.map(lambda leaf: leaf[i], batches)

        n = len(batches.index)
        if n == 1:
            state, metrics = step(state, batch_at(0))
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def body(i, carry):
            state, columns = carry
            state, metrics = step(state, batch_at(i))
            return state, jax.tree.map(lambda c, m: c.at[i].set(m), columns, metrics)

        _, metrics = jax.eval_shape(step, state, batch_at(0))
        columns = jax.tree.map(lambda m: jnp.zeros((n, *m.shape), m.dtype), metrics)
        return jax.lax.fori_loop(0, count, body, (state, columns))

    return run


def over_runs(step: Callable[[Any, TrainState, Batch], Any], variants: PyTree, seeds: int) -> Step:
    """Map a step over the R = V·S runs of a sweep, of V variants with S seeds each, the seeds adjacent.

    Nothing that depends on the seed alone is copied: its key and its batch, and so the noise, the latents and
    everything else that does not depend on the variant, are computed once for all runs of the seed.

    Args:
      step: (variant, state, batch) -> (state, metrics) of one run.
      variants: the differences between runs other than their seeds, arrays [V, ...].
      seeds: S.

    Returns:
      The step over states [R, ...] and a batch whose x is [B, S, *d]; its metrics are [R].
    """
    axes: Any = TrainState  # a tree of axes has the structure of a state, but none of its types
    variant_axes = axes(step=None, params=0, ema_params=0, opt_state=0, model_state=0, key=None)
    seed_axes = variant_axes._replace(key=0)
    batch_axes = Batch(x=1, index=None, phase=None)
    over_seeds = jax.vmap(step, (None, seed_axes, batch_axes), (seed_axes, 0))
    over_variants = jax.vmap(over_seeds, (0, variant_axes, None), (variant_axes, 0))

    def step_all(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grid = jax.tree.map(lambda leaf: leaf.reshape(-1, seeds, *leaf.shape[1:]), state)
        # all runs are at the same step, and the runs of a seed share its key: unmapped, both are not copied
        grid = grid._replace(step=grid.step[0, 0], key=grid.key[0])
        grid, metrics = over_variants(variants, grid, batch)
        grid = grid._replace(step=jnp.broadcast_to(grid.step, state.step.shape), key=state.key)
        flat = jax.tree.map(lambda leaf, before: leaf.reshape(before.shape), grid, state)
        return flat, jax.tree.map(lambda column: column.reshape(state.step.shape), metrics)

    return step_all


def compiled(layout: Layout, step: Step, state: PyTree) -> Any:
    """Return the compiled `Run` of a step, with its `lower` method, for a state of these shapes."""
    return layout.wrap(layout, over_steps(step), shardings(layout, state))


def dispatcher(
    layout: Layout, step: Step, state: PyTree, stack: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile a step for stacks of up to `stack` batches [n, b, ...] of this process.

    Args:
      layout: the layout of the state and the batches.
      step: made by `make_step` with the layout's `axis_name`.
      state: a train state, or its shapes.
      stack: number of steps per dispatch.

    Returns:
      (state, batches) -> (state, metrics [number of batches]); the state is donated.
    """
    run = compiled(layout, step, state)

    def dispatch(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        count = len(batches.index)
        missing = stack - count
        if missing:  # padded to the compiled shape; the padding is not trained on
            batches = jax.tree.map(
                lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], missing, 0)]), batches
            )
        state, metrics = run(state, layout.arrange(layout, batches), np.int32(count))
        if missing:
            metrics = jax.tree.map(lambda column: column[:count], metrics)
        return state, metrics

    return dispatch


def _wrap_mesh(layout: Layout, run: Run, state: PyTree) -> Any:
    return jax.jit(
        run,
        donate_argnums=0,  # the old and the new state share memory
        in_shardings=(state, divided(layout, axis=1), replicated(layout)),
        out_shardings=(state, replicated(layout)),
    )


def _arrange_mesh(layout: Layout, stack: Batch) -> Batch:
    return put(layout, stack, axis=1)


def _wrap_pmap(layout: Layout, run: Run, state: PyTree) -> Any:
    del state  # every device has a full copy
    mapped = jax.pmap(
        run,
        axis_name=layout.axis_name,
        in_axes=(None, 1, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=list(layout.mesh.devices.flat),
    )
    if jax.process_count() == 1:
        return mapped

    def run_globally(
        state: TrainState, batches: Batch, count: ArrayLike
    ) -> tuple[TrainState, Metrics]:
        # pmap returns arrays of this process's devices; a checkpoint is saved from global arrays
        state, metrics = mapped(state, batches, count)
        plain = state._replace(key=jax.random.key_data(state.key))
        plain = jax.tree.map(lambda leaf: _as_global(leaf, replicated(layout)), plain)
        return plain._replace(key=jax.random.wrap_key_data(plain.key)), metrics

    return run_globally


def _as_global(leaf: Array, sharding: NamedSharding) -> Array:
    copies = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)


def _arrange_pmap(layout: Layout, stack: Batch) -> Batch:
    local_devices = len(layout.mesh.local_devices)

    def split(leaf: np.ndarray) -> np.ndarray:
        n, b, *d = leaf.shape
        return np.asarray(leaf).reshape(n, local_devices, b // local_devices, *d)

    return jax.tree.map(split, stack)
