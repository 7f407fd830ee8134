"""Several processes of one run: how they find each other, agree, and end together."""

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
"""After which JAX counts a silent process as dead, and ends the others."""

STALL_SECONDS = 15.0
"""Without progress in work that all processes share, after which one of them counts as stuck."""

ALONE = 20
"""Times as long in a single process, where nothing but the device and the files can be stuck."""

AGREE_SECONDS = 1800.0
"""Seconds by which the processes may differ in reading data and compiling."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: float = 300.0,
) -> None:
    """Connect this process with the others; before anything is computed.

    Args:
      coordinator_address: host:port of process 0. On a TPU pod or under SLURM no argument is needed.
      num_processes, process_id: how many there are, and which of them this is.
      seconds: for the processes to find each other; after them this one gives up, with one line and exit
        status 1.

    Raises:
      ValueError: some arguments without the others, or out of range; no arguments where they are needed.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
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
            # its service takes SIGTERM over, which is `runtime/interrupt.py`'s
            jax.config.update("jax_enable_preemption_service", False)
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=int(seconds) + 60,  # JAX ends a process without a clear line
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            advice = (
                ""
                if coordinator_address
                else f"; outside a TPU pod or SLURM give {', '.join(given)}"
            )
            raise ValueError(f"--distributed: {str(error).rstrip('.')}{advice}") from error


def is_first() -> bool:
    """Return True in the process that writes logs and plots."""
    return jax.process_index() == 0


def all_gather_json(value: Any) -> list[Any]:
    """Collect a JSON value from every process, in their order; each waits for all."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with deadline(AGREE_SECONDS, f"another process did not come along in {AGREE_SECONDS:.0f} s"):
        sizes = _gather(np.asarray([len(text)], np.int32))[:, 0]
        texts = _gather(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(texts, sizes, strict=True)]


def max_over_processes(value: int) -> Any:
    """Begin to find the largest value of all processes; `int` of what is returned waits for it."""
    if jax.process_count() == 1:
        return value
    values = np.full(jax.local_device_count(), value, np.int32)
    _, divided, largest = _programs()
    return largest(jax.make_array_from_process_local_data(divided, values))


def on_process_0(action: Callable[[], Any]) -> Any:
    """Let process 0 alone do something; all get its JSON result.

    Raises:
      ValueError, OSError: what the action raised, in every process.
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
"""Errors of process 0 that `on_process_0` raises in every process; the first kind that fits."""


def _gather(row: np.ndarray) -> np.ndarray:
    """Rows [n] of one length, of all processes: [processes, n]."""
    same, divided, _ = _programs()
    rows = np.tile(row, (jax.local_device_count(), 1))
    owners = [device.process_index for device in jax.devices()]
    found = np.asarray(same(jax.make_array_from_process_local_data(divided, rows)))
    return found[[owners.index(i) for i in range(jax.process_count())]]


@cache
def _programs() -> tuple[Any, NamedSharding, Any]:
    """Return, over all devices, a program that copies rows, the rows' sharding, and the largest of numbers."""
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return (
        jax.jit(lambda rows: rows, out_shardings=everywhere),
        NamedSharding(mesh, PartitionSpec("all")),
        jax.jit(jnp.max, out_shardings=everywhere),
    )


@contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """End the process, with one line and exit status 1, if the block takes longer.

    For waits inside libraries, which cannot be interrupted.
    """
    timer = threading.Timer(seconds, end, (f"\nerror: {message}", 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Watchdog:
    """Watches waits for the device, the data or other processes, and ends the process if one of them is stuck.

    A collective that one process never joins blocks the others for ever, as does a device or a file system that
    hangs. What counts as stuck is measured: five times the longest wait so far, at least `seconds`, and twenty
    times that in a process that is alone. The first two waits, one of them with a compilation, may take
    `AGREE_SECONDS`, or as long as they like in one that is alone; the second is the first that is measured.
    Time in which the process itself is suspended does not count. A context manager: one thread watches.

    Args:
      seconds: see above.
      command: whether a process that is alone may be ended; a notebook may not.
    """

    def __init__(self, seconds: float, *, command: bool = False):
        self.alone = jax.process_count() == 1
        self.command = command
        self.seconds = seconds * ALONE if self.alone else seconds
        self.longest, self.waits, self.watched = 0.0, 0, None
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.command or not self.alone:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()

    @property
    def settling(self) -> bool:
        """True while the results of a wait have to arrive within it; it would measure nothing otherwise."""
        return not self.alone and self.waits < 2

    @property
    def limit(self) -> float:
        """Limit of the next wait, in seconds."""
        if self.waits < 2:
            return math.inf if self.alone else AGREE_SECONDS
        return max(self.seconds, 5 * self.longest)

    @contextmanager
    def wait(self, what: str, seconds: float | None = None) -> Iterator[None]:
        """Wait for the block; `seconds` are a limit of its own, and it is not measured then."""
        began = time.monotonic()
        self.watched = _Wait(what, self.limit if seconds is None else seconds)
        try:
            yield
        finally:
            self.watched = None
        if seconds is not None:
            return
        if self.waits > 0:
            self.longest = max(self.longest, time.monotonic() - began)
        self.waits += 1

    def _watch(self) -> None:
        tick = min(0.5, self.seconds / 4)
        while not self.over.wait(tick):
            if (wait := self.watched) is None:
                continue
            wait.waited += tick  # not by the clock, which goes on while a process is suspended
            if wait.waited > wait.limit:
                with suppress(Exception):
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
                who = "it" if self.alone else "another process"
                end(f"\nerror: {wait.what}: no progress for {wait.limit:.3g} s; {who} is stuck", 1)


@dataclass
class _Wait:
    what: str
    limit: float
    waited: float = 0.0
