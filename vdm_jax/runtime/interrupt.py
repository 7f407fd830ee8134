"""Signals: a run ends where nothing is lost.

    listening       take the signals over while a block runs
    defer_signals   let a signal in the block wait until `check` is called, or the block is left
    unsaved_work    there is something that only a save can keep

Everywhere else a signal raises `Interrupted` at once. A second signal changes nothing.

SIGTERM and SIGINT are always taken over. The others are so only where they would kill the process: `nohup`
ignores SIGHUP, and a scheduler's plugin may have a handler for its warning, which both keep their meaning.
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
"""A closed terminal, and what clusters send before they end a job."""

GRACE_SECONDS = 5.0
"""For the interpreter to come to a signal, if nothing is unsaved: it does not while it compiles."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; whatever was trained is saved.

    Attributes:
      signum: which signal.
    """

    def __init__(self, signum: int, where: str = ""):
        super().__init__(f"ended by {signal.Signals(signum).name}{where}")
        self.signum = signum


@dataclass
class _Now:
    """The state of this process; signals belong to the process, so that there is one instance."""

    signum: int = 0
    taken: tuple[int, ...] = ()
    listening: bool = False
    command: bool = False
    deferring: bool = False
    unsaved: bool = False


_now = _Now()


@contextmanager
def listening(*, leave: bool = False) -> Iterator[None]:
    """Take signals over while the block runs; nothing changes outside the main thread.

    Args:
      leave: end the process `GRACE_SECONDS` after a signal that the interpreter does not come to, if nothing
        is unsaved, and ignore signals once one has ended the block; for a command, not for a notebook.
    """
    if _now.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.listening, _now.command = True, leave
    free = [signum for signum in WARNINGS if signal.getsignal(signum) is signal.SIG_DFL]
    _now.taken = (*ALWAYS, *free)
    before = {signum: signal.signal(signum, _take) for signum in _now.taken}
    try:
        if leave:
            with _watched():
                yield
        else:
            yield
    finally:
        for signum, handler in before.items():  # a command that is leaving is not to be hurried
            signal.signal(signum, signal.SIG_IGN if leave and _now.signum else handler)
        _now.signum, _now.taken, _now.listening, _now.command = 0, (), False, False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let signals wait for `check` or for the end of the block."""
    outer, _now.deferring = _now.deferring, True
    try:
        yield
    finally:
        _now.deferring = outer
    if _now.signum and not outer:
        raise Interrupted(_now.signum)


@contextmanager
def unsaved_work() -> Iterator[None]:
    """Mark the block as holding work that only a save can keep."""
    _now.unsaved = True
    try:
        yield
    finally:
        _now.unsaved = False


def pending_signal() -> int:
    """Return the signal that asked this process to end, or 0."""
    return _now.signum


def check() -> None:
    """Raise `Interrupted` if any process was asked to end; all of them have to call it."""
    if signum := int(max_over_processes(_now.signum)):
        raise Interrupted(signum)


def is_command() -> bool:
    """Return True if `os._exit` may end this process: a command, not a notebook."""
    return _now.command


def _take(signum: int, frame: object) -> None:
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
    """Let a thread see the signals too, which Python's handlers do not while the interpreter waits."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()  # which ends the thread


def _leave(signals: socket.socket) -> None:
    with signals:
        while received := signals.recv(1):
            if received[0] not in _now.taken:
                continue
            until = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < until:
                time.sleep(0.1)
                if not _now.listening:
                    return
            if not _now.unsaved:
                name = signal.Signals(received[0]).name
                end(f"\nended by {name}; nothing was unsaved", 128 + received[0])


def _say(line: str) -> None:
    with suppress(OSError):  # print cannot be called from where it may be interrupted
        os.write(2, f"\n{line}\n".encode())
