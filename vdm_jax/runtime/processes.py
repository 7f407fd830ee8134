"""The processes of a run: connect them, exchange values, and end all of them if one is stuck."""

import faulthandler
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.runtime.console import end

HEARTBEAT_SECONDS = 25
"""Time without a heartbeat after which JAX considers a process dead and ends the others, in seconds."""

STALL_SECONDS = 15.0
"""Shortest time without progress after which a process counts as stuck, in seconds; see `Watchdog`."""

ALONE = 20
"""Factor on that time for a single process, where only the device and the files can be stuck."""

AGREE_SECONDS = 1800.0
"""Allowed difference between processes in the time to read data and compile, in seconds."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: float = 300.0,
) -> None:
    """Connect this process with the others; call it before the first computation.

    Args:
      coordinator_address: host:port of process 0. On a TPU pod or under SLURM no argument is needed.
      num_processes, process_id: number of processes, and index of this one.
      seconds: time limit to connect; after it this process ends, with one line and exit status 1.

    Raises:
      ValueError: some arguments without the others, or out of range; no arguments where they are needed.
    """
    arguments = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in arguments.items() if value is None]
    if 0 < len(missing) < len(arguments):
        raise ValueError(f"--distributed: {', '.join(missing)} missing, expected all three or none")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes: expected at least 1, found {num_processes}")
    if process_id is not None and not 0 <= process_id < (num_processes or 0):
        raise ValueError(
            f"--process_id: expected one of 0 to {(num_processes or 0) - 1}, found {process_id}"
        )
    if not seconds > 0:
        raise ValueError(f"--connect_seconds: expected a number above 0, found {seconds}")
    host, _, port = (coordinator_address or "host:1").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"--coordinator_address: expected host:port, found {coordinator_address!r}"
        )
    who = f"the {num_processes} processes" if num_processes else "all processes"
    where = f" at {coordinator_address}" if coordinator_address else ""
    with deadline(seconds, f"{who} did not meet{where} within {seconds:.0f} s"):
        try:
            # JAX's preemption service would handle SIGTERM, which `runtime/interrupt.py` does
            jax.config.update("jax_enable_preemption_service", False)
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=int(seconds)
                + 60,  # later than ours, whose message is clearer
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            hint = f"; outside a TPU pod or SLURM give {', '.join(arguments)}"
            advice = "" if coordinator_address else hint
            raise ValueError(f"--distributed: {str(error).rstrip('.')}{advice}") from error


def is_first() -> bool:
    """Return True in process 0, which writes logs and plots."""
    return jax.process_index() == 0


def all_gather_json(value: object) -> list[Any]:
    """Gather a JSON value from every process, in the order of the processes; each waits for all others."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with deadline(AGREE_SECONDS, f"another process did not arrive within {AGREE_SECONDS:.0f} s"):
        # the rows of an array have one length: gather the lengths first, then the padded texts
        sizes = _gather(np.asarray([len(text)], np.int32))[:, 0]
        texts = _gather(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(texts, sizes, strict=True)]


def max_over_processes(value: int) -> Any:
    """Start to compute the largest value of all processes; `int` of the result waits for it."""
    if jax.process_count() == 1:
        return value
    values = np.full(jax.local_device_count(), value, np.int32)  # one per device, as in `_gather`
    _, divided, largest = _programs()
    return largest(jax.make_array_from_process_local_data(divided, values))


def on_process_0(action: Callable[[], Any]) -> Any:
    """Call a function in process 0 only, and return its JSON result in every process.

    Raises:
      ValueError, OSError: raised in every process if the function raised it.
    """
    if jax.process_count() == 1:
        return action()
    outcome = None
    if is_first():
        try:
            outcome = {"value": action()}
        except tuple(SHARED_ERRORS.values()) as error:
            kind = next(name for name, kind in SHARED_ERRORS.items() if isinstance(error, kind))
            outcome = {"error": str(error), "kind": kind}
    outcome = all_gather_json(outcome)[0]
    if "error" in outcome:
        raise SHARED_ERRORS[outcome["kind"]](outcome["error"])
    return outcome["value"]


SHARED_ERRORS = {"file": FileNotFoundError, "system": OSError, "value": ValueError}
"""Errors of process 0 that `on_process_0` raises in every process: the first of these types that matches."""


def _gather(row: np.ndarray) -> np.ndarray:
    """Gather a row [n] of equal length from every process: [processes, n]."""
    replicate, divided, _ = _programs()
    # an array is divided over devices, not processes: one copy per device, of which the first is taken
    rows = np.tile(row, (jax.local_device_count(), 1))
    gathered = np.asarray(replicate(jax.make_array_from_process_local_data(divided, rows)))
    owners = [device.process_index for device in jax.devices()]
    return gathered[[owners.index(i) for i in range(jax.process_count())]]


@cache
def _programs() -> tuple[Any, NamedSharding, Any]:
    """Return, over all devices: a program that replicates rows, the sharding of the rows, and their maximum."""
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    replicated = NamedSharding(mesh, PartitionSpec())
    return (
        jax.jit(lambda rows: rows, out_shardings=replicated),
        NamedSharding(mesh, PartitionSpec("all")),
        jax.jit(jnp.max, out_shardings=replicated),
    )


@contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """End the process, with one line and exit status 1, if a block that cannot be interrupted takes longer."""
    timer = threading.Timer(seconds, end, (f"\nerror: {message}", 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Watchdog:
    """Watchdog over waits for the device, the data or other processes: it ends the process if one is stuck.

    A collective that one process never joins blocks the others for ever, as does a device or a file system that
    hangs. The limit is adaptive: five times the longest wait so far, but at least `seconds`, or twenty times
    `seconds` in a single process. The first two waits, one of which contains a compilation, may take
    `AGREE_SECONDS`, and any time in a single process; the second is the first that is measured. Time in which
    the process itself is suspended does not count. A context manager, in which a thread watches.

    Args:
      seconds: the shortest limit of a measured wait.
      command: True if a single process may be ended; False for a notebook.
    """

    def __init__(self, seconds: float, *, command: bool = False):
        self.alone = jax.process_count() == 1
        self.command = command
        self.seconds = seconds * ALONE if self.alone else seconds
        self.longest, self.waits = 0.0, 0
        self.current: _Wait | None = None
        self.closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.command or not self.alone:  # a notebook must not be ended
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    @property
    def settling(self) -> bool:
        """True for the first two waits of several processes, which must include the results of a dispatch."""
        return not self.alone and self.waits < 2

    @property
    def limit(self) -> float:
        """Time limit of the next wait, in seconds."""
        if self.waits < 2:
            return math.inf if self.alone else AGREE_SECONDS
        return max(self.seconds, 5 * self.longest)

    @contextmanager
    def wait(self, activity: str, seconds: float | None = None) -> Iterator[None]:
        """Limit the time of a block, the `activity`, to `limit`, or to `seconds` without measuring it."""
        began = time.monotonic()
        self.current = _Wait(activity, self.limit if seconds is None else seconds)
        try:
            yield
        finally:
            self.current = None
        if seconds is not None:
            return
        if self.waits > 0:
            self.longest = max(self.longest, time.monotonic() - began)
        self.waits += 1

    def _watch(self) -> None:
        tick = min(0.5, self.seconds / 4)
        while not self.closed.wait(tick):
            if (wait := self.current) is None:
                continue
            # not a difference of times: the clock runs while the process is suspended
            wait.waited += tick
            if wait.waited > wait.limit:
                with suppress(Exception):  # shows where the process is stuck
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
                who = "it" if self.alone else "another process"
                end(
                    f"\nerror: {wait.activity}: no progress for {wait.limit:.3g} s; {who} is stuck",
                    1,
                )


@dataclass
class _Wait:
    activity: str
    limit: float
    waited: float = 0.0
