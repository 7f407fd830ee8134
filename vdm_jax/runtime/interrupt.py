"""Signals: end a run where no work is lost.

    listening       handle signals while a block runs
    defer_signals   defer a signal in the block until `check` is called or the block ends
    unsaved_work    mark a block as having work that only a save can keep

Elsewhere a signal raises `Interrupted` immediately. A second signal has no effect.

SIGTERM and SIGINT are always handled. The other signals are handled only if they would kill the process: under
`nohup` SIGHUP is ignored, and a scheduler's plugin may have a handler for its own warning; both stay in effect.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vdm_jax.runtime.console import end
from vdm_jax.runtime.processes import max_over_processes

ALWAYS = signal.SIGTERM, signal.SIGINT

WARNINGS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # Windows has none of them
    if hasattr(signal, name)
)
"""Signals of a closed terminal, and those that clusters send before they end a job."""

GRACE_SECONDS = 5.0
"""Time for the interpreter to run its signal handler, if nothing is unsaved; compilation delays the handler."""


class Interrupted(KeyboardInterrupt):
    """Error for a run that was ended by a signal, with its work saved.

    Attributes:
      signum: the number of the signal.
    """

    def __init__(self, signum: int, where: str = ""):
        super().__init__(f"ended by {signal.Signals(signum).name}{where}")
        self.signum = signum


@dataclass
class _Now:
    """State of the signal handling of this process, in a single instance: signals belong to the process.

    Attributes:
      signum: the signal that asked the process to end, or 0.
      taken: the signals that are handled.
      listening: True in a block of `listening`.
      command: True if the process is a command, which may be ended by `os._exit`.
      deferring: True in a block of `defer_signals`.
      unsaved: True in a block of `unsaved_work`.
    """

    signum: int = 0
    taken: tuple[int, ...] = ()
    listening: bool = False
    command: bool = False
    deferring: bool = False
    unsaved: bool = False


_now = _Now()


@contextmanager
def listening(*, leave: bool = False) -> Iterator[None]:
    """Handle signals while the block runs; has no effect outside the main thread.

    Args:
      leave: True for a command, False for a notebook. With True, a process whose interpreter does not run the
        handler within `GRACE_SECONDS` ends if nothing is unsaved, and further signals are ignored after one has
        ended the block.
    """
    if _now.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.listening, _now.command = True, leave
    unhandled = [signum for signum in WARNINGS if signal.getsignal(signum) is signal.SIG_DFL]
    _now.taken = (*ALWAYS, *unhandled)
    before = {signum: signal.signal(signum, _take) for signum in _now.taken}
    try:
        if leave:
            with _watched():
                yield
        else:
            yield
    finally:
        # a command that is shutting down ignores further signals
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_IGN if leave and _now.signum else handler)
        _now.signum, _now.taken, _now.listening, _now.command = 0, (), False, False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals until `check` is called or the block ends."""
    outer, _now.deferring = _now.deferring, True
    try:
        yield
    finally:
        _now.deferring = outer
    if _now.signum and not outer:
        raise Interrupted(_now.signum)


@contextmanager
def unsaved_work() -> Iterator[None]:
    """Mark the block as having work that only a save can keep."""
    _now.unsaved = True
    try:
        yield
    finally:
        _now.unsaved = False


def pending_signal() -> int:
    """Return the signal that asked this process to end, or 0."""
    return _now.signum


def check() -> None:
    """Raise `Interrupted` if any process has a pending signal; a collective, which all processes must call."""
    if signum := int(max_over_processes(_now.signum)):
        raise Interrupted(signum)


def is_command() -> bool:
    """Return True if this process is a command, which `os._exit` may end, and not a notebook."""
    return _now.command


def _take(signum: int, frame: object) -> None:
    """Handle a signal: raise `Interrupted`, or defer it."""
    del frame
    first, name = not _now.signum, signal.Signals(signum).name
    _now.signum = _now.signum or signum
    if not first:
        _say(f"{name} again: already ending")
    elif _now.deferring:
        _say(f"{name}: ending after this step")
    else:
        raise Interrupted(signum)


@contextmanager
def _watched() -> Iterator[None]:
    """Notify a thread of signals too: Python runs no handlers while a C call blocks the main thread."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)  # required by set_wakeup_fd
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave, args=(receiver,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()  # this ends the thread


def _leave(signals: socket.socket) -> None:
    """End the process if the main thread has not handled a signal within `GRACE_SECONDS`; runs in a thread."""
    with signals:
        while received := signals.recv(1):
            if received[0] not in _now.taken:
                continue
            grace_end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < grace_end:
                time.sleep(0.1)
                if not _now.listening:
                    return
            if not _now.unsaved:
                name = signal.Signals(received[0]).name
                end(f"\nended by {name}; nothing was unsaved", 128 + received[0])


def _say(line: str) -> None:
    with suppress(OSError):  # unlike print, os.write is safe if the handler has interrupted a print
        os.write(2, f"\n{line}\n".encode())
