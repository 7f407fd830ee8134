"""The wrappers of the one step: one device, pmap, a mesh; over a stack of batches, and over runs side by side.

    jit         one device
    pmap        a copy of the state on each device, the batch divided, gradients averaged by the step itself
    mesh        one program over all devices: the batch divided over its axes `data` and `fsdp`, the state
                divided over `fsdp` (Zhao et al. 2023, PyTorch FSDP; Rajbhandari et al. 2020, ZeRO)
    over_steps  several steps a dispatch
    over_runs   many runs at once, each of a variant and a seed

A state is the same tree of global arrays under each of them, so that a checkpoint of one continues under
another. The noise, times and dropout of an example are keyed by its place in the global batch and do not
depend on the layout; losses agree to rounding, for sums are taken in another order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

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
from vdm_jax.training.step import Step
from vdm_jax.typing import Batch, PyTree

Run = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any]]]
"""(state, stack of batches [n, B, ...], how many of them) -> (state, metrics [n])."""


def jit(devices: Devices) -> Layout:
    """The first device alone."""
    return Layout(device_mesh(devices[:1], 1), _wrap_mesh, _arrange_mesh)


def pmap(devices: Devices) -> Layout:
    """A replica on each device; in maintenance in JAX, which recommends a mesh."""
    return Layout(device_mesh(devices, 1), _wrap_pmap, _arrange_pmap, axis_name="data")


def mesh(devices: Devices, fsdp: int = 1) -> Layout:
    """One program over all devices; `fsdp` of them share one copy of the state.

    Raises:
      ValueError: the devices cannot be divided into groups of `fsdp`.
    """
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"config.train.fsdp: expected a divisor of {len(devices)} devices, found {fsdp}"
        )
    return Layout(device_mesh(devices, fsdp), _wrap_mesh, _arrange_mesh)


PARALLEL: dict[str, Callable[..., Layout]] = {"jit": jit, "pmap": pmap, "mesh": mesh}


def make_layout(parallel: str = "auto", fsdp: int = 1, *, devices: Devices | None = None) -> Layout:
    """Choose a layout.

    Args:
      parallel: of `PARALLEL`, or "auto": `mesh` if there are several devices, else `jit`.
      fsdp: how many devices share one copy of the state, under `mesh`.
      devices: all of all processes by default.

    Raises:
      ValueError: an unknown name, an `fsdp` that the layout or the devices do not allow, `jit` in one of
        several processes.
    """
    devices = jax.devices() if devices is None else devices
    automatic = mesh if len(devices) > 1 else jit
    factory = choose({"auto": automatic} | PARALLEL, parallel, "config.train.parallel")
    if factory is jit and jax.process_count() > 1:
        raise ValueError(
            f"config.train.parallel: 'jit' is for one device, found {jax.process_count()} processes"
        )
    if factory is mesh:
        return mesh(devices, fsdp)
    if fsdp != 1:
        raise ValueError(
            f"config.train.fsdp: needs parallel = 'mesh', found {fsdp} under {factory.__name__!r}"
        )
    return factory(devices)


def check_batch(layout: Layout, batch_size: int) -> None:
    """Refuse a batch that the devices cannot share.

    Raises:
      ValueError: with the size, the devices and the processes.
    """
    devices, processes = layout.mesh.size, jax.process_count()
    if batch_size % devices:
        raise ValueError(
            f"config.train.batch_size: {batch_size} examples cannot be divided over "
            f"{devices} devices ({processes} process{'es' * (processes > 1)} of {devices // processes})"
        )


def over_steps(step: Step) -> Run:
    """The step over the first `count` of a stack of batches [n, ...]; metrics [n], zeros after them.

    The number is an argument, so that a run whose last stack is shorter compiles once. A stack of one is not
    looped over: on CPUs XLA runs the gradients that JAX derives for convolutions, as networks of one's own may
    have them, tens of times slower inside a loop, even of length one.
    """
    step = jax.jit(step)  # traced once, for the shapes of its metrics and for the loop

    def run(state, batches, count):
        def at(i):
            return jax.tree.map(lambda leaf: leaf[i], batches)

        if len(batches.index) == 1:
            state, metrics = step(state, at(0))
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def body(i, carry):
            state, columns = carry
            state, metrics = step(state, at(i))
            return state, jax.tree.map(lambda c, m: c.at[i].set(m), columns, metrics)

        _, metrics = jax.eval_shape(step, state, at(0))
        n = len(batches.index)
        columns = jax.tree.map(lambda m: jnp.zeros((n, *m.shape), m.dtype), metrics)
        return jax.lax.fori_loop(0, count, body, (state, columns))

    return run


def over_runs(step: Callable[[Any, TrainState, Batch], Any], variants: PyTree, seeds: int) -> Step:
    """Runs side by side: V variants of each of S seeds, R = V·S with the seeds of a variant together.

    What a seed alone decides is not copied: its key, its batch, and so the noise, the latents and all else that
    does not depend on the variant are computed once for all of its runs.

    Args:
      step: (variant, state, batch) of one run.
      variants: what the runs differ in beside their seeds, arrays [V, ...].
      seeds: S.

    Returns:
      The step over states [R, ...] and a batch whose x is [B, S, *d]; its metrics are [R].
    """
    axes: Any = TrainState  # a tree of axes has the shape of a state and none of its types
    run = axes(step=None, params=0, ema_params=0, opt_state=0, model_state=0, key=None)
    seed = run._replace(key=0)
    batch = Batch(x=1, index=None, phase=None)
    of_seeds = jax.vmap(step, (None, seed, batch), (seed, 0))
    of_variants = jax.vmap(of_seeds, (0, run, None), (run, 0))

    def step_all(state, batch):
        grid = jax.tree.map(lambda leaf: leaf.reshape(-1, seeds, *leaf.shape[1:]), state)
        # all of one run are at the same step, and those of one seed have its key
        grid = grid._replace(step=grid.step[0, 0], key=grid.key[0])
        grid, metrics = of_variants(variants, grid, batch)
        grid = grid._replace(step=jnp.broadcast_to(grid.step, state.step.shape), key=state.key)
        flat = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), grid, state)
        return flat, jax.tree.map(lambda column: column.reshape(state.step.shape), metrics)

    return step_all


def compiled(layout: Layout, step: Step, state: PyTree) -> Any:
    """Wrap a step over stacks of batches for a state of these shapes: a `Run` with a `lower` method."""
    return layout.wrap(layout, over_steps(step), shardings(layout, state))


def dispatcher(
    layout: Layout, step: Step, state: PyTree, stack: int
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """Compile a step for stacks of up to `stack` batches [n, b, ...] of this process.

    Args:
      layout: where.
      step: of `make_step`, with the layout's `axis_name`.
      state: or its shapes.
      stack: steps a dispatch.

    Returns:
      (state, batches) -> (state, metrics [stack]); the state is donated.
    """
    run = compiled(layout, step, state)

    def dispatch(state, batches):
        count = len(batches.index)
        missing = stack - count
        if missing:
            batches = jax.tree.map(
                lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], missing, 0)]), batches
            )
        state, metrics = run(state, layout.arrange(layout, batches), np.int32(count))
        if missing:
            metrics = jax.tree.map(lambda column: column[:count], metrics)
        return state, metrics

    return dispatch


def _wrap_mesh(layout: Layout, run: Run, state: PyTree) -> Any:
    same = replicated(layout)
    return jax.jit(
        run,
        donate_argnums=0,
        in_shardings=(state, divided(layout, axis=1), same),
        out_shardings=(state, same),
    )


def _arrange_mesh(layout: Layout, stack: Batch) -> Batch:
    return put(layout, stack, axis=1)


def _wrap_pmap(layout: Layout, run: Run, state: PyTree) -> Any:
    del state  # a copy each
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

    def globally(state, batches, count):
        # each process gets its own copies back, which only together are the array that all can save
        state, metrics = mapped(state, batches, count)
        plain = state._replace(key=jax.random.key_data(state.key))
        plain = jax.tree.map(lambda leaf: _as_one(leaf, replicated(layout)), plain)
        return plain._replace(key=jax.random.wrap_key_data(plain.key)), metrics

    return globally


def _as_one(leaf: Any, sharding: NamedSharding) -> Any:
    copies = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)


def _arrange_pmap(layout: Layout, stack: Batch) -> Batch:
    local = len(layout.mesh.local_devices)

    def split(leaf):
        n, b, *d = leaf.shape
        return np.asarray(leaf).reshape(n, local, b // local, *d)

    return jax.tree.map(split, stack)
