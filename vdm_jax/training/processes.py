"""Several processes of one run: how they find each other, agree, and end together."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HEARTBEAT_SECONDS = 25
"""After which JAX counts a silent process as dead, and ends the others."""

STALL_SECONDS = 15.0
"""Without progress in work that all processes share, after which one of them counts as stuck."""

AGREE_SECONDS = 1800.0
"""That the processes may differ by in reading data and compiling."""


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
    """Whether this is the process that writes logs and pictures."""
    return jax.process_index() == 0


def everyone(value: Any) -> list[Any]:
    """Collect a JSON value from every process, in their order; each waits for all."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with deadline(AGREE_SECONDS, f"another process did not come along in {AGREE_SECONDS:.0f} s"):
        sizes = _gather(np.asarray([len(text)], np.int32))[:, 0]
        texts = _gather(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(texts, sizes, strict=True)]


def by_first(action: Callable[[], Any]) -> Any:
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
        except (ValueError, OSError) as error:
            outcome = {"error": str(error), "of the system": isinstance(error, OSError)}
    outcome = everyone(outcome)[0]
    if "error" in outcome:
        raise (OSError if outcome["of the system"] else ValueError)(outcome["error"])
    return outcome["value"]


def _gather(row: np.ndarray) -> np.ndarray:
    """Rows [n] of one length, of all processes: [processes, n]."""
    devices = jax.devices()
    mesh = Mesh(np.asarray(devices), ("all",))
    rows = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec("all")), np.tile(row, (jax.local_device_count(), 1))
    )
    same = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    owners = [device.process_index for device in devices]
    return np.asarray(same(rows))[[owners.index(i) for i in range(jax.process_count())]]


@contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """End the process, with one line and exit status 1, if the block takes longer.

    For waits inside libraries, which cannot be interrupted.
    """

    def end():
        print(f"\nerror: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Patience:
    """Waits for work that all processes share, and gives up when one of them is stuck.

    A collective that one process never joins blocks the others for ever. What counts as stuck is measured: five
    times the longest wait so far, at least `seconds`. The first two waits, one of them with a compilation, may
    take `AGREE_SECONDS`, and the second is the first that is measured.
    """

    def __init__(self, seconds: float):
        self.seconds, self.longest, self.waits = seconds, 0.0, 0

    @property
    def settling(self) -> bool:
        """Whether the results of this wait have to be waited for within it, or it measures nothing."""
        return jax.process_count() > 1 and self.waits < 2

    @contextmanager
    def wait(self, what: str) -> Iterator[None]:
        """Wait for the block; nothing happens to a single process."""
        if jax.process_count() == 1:
            yield
            return
        limit = AGREE_SECONDS if self.settling else max(self.seconds, 5 * self.longest)
        began = time.monotonic()
        with deadline(limit, f"{what}: no progress for {limit:.0f} s; another process is stuck"):
            yield
        if self.waits > 0:
            self.longest = max(self.longest, time.monotonic() - began)
        self.waits += 1
