"""SIGTERM and SIGINT: a run ends where nothing is lost.

    listening   takes the signals over while a block runs
    deferred    a signal in the block waits until `check` is called, or the block is left
    unsaved     there is something that only a save can keep

Everywhere else a signal raises `Interrupted` at once. A second signal changes nothing.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vdm_jax.training.processes import vote

SIGNALS = signal.SIGTERM, signal.SIGINT

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
    """What this process is doing; signals are a process's own, so there is one of it."""

    signum: int = 0
    listening: bool = False
    deferring: bool = False
    unsaved: bool = False


_now = _Now()


@contextmanager
def listening(*, leave: bool = False) -> Iterator[None]:
    """Take SIGTERM and SIGINT over while the block runs; nothing changes outside the main thread.

    Args:
      leave: end the process `GRACE_SECONDS` after a signal that the interpreter does not come to, if nothing
        is unsaved; for a command, not for a notebook.
    """
    if _now.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.signum, _now.listening = 0, True
    before = {signum: signal.signal(signum, _take) for signum in SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    if leave:
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_leave, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        if leave:
            signal.set_wakeup_fd(wakeup)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        theirs.close()  # which ends the thread
        _now.listening = False


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for `check` or for the end of the block."""
    outer, _now.deferring = _now.deferring, True
    try:
        yield
    finally:
        _now.deferring = outer
    if _now.signum and not outer:
        raise Interrupted(_now.signum)


@contextmanager
def unsaved() -> Iterator[None]:
    """Say that the block holds what only a save can keep."""
    _now.unsaved = True
    try:
        yield
    finally:
        _now.unsaved = False


def asked() -> int:
    """The signal that asked this process to end, or 0."""
    return _now.signum


def check() -> None:
    """Raise `Interrupted` if any process was asked to end; all of them have to call it."""
    if signum := int(vote(_now.signum)):
        raise Interrupted(signum)


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


def _leave(signals: socket.socket) -> None:
    with signals:
        while received := signals.recv(1):
            if received[0] not in SIGNALS:
                continue
            until = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < until:
                time.sleep(0.1)
                if not _now.listening:
                    return
            if not _now.unsaved:
                _say(f"ended by {signal.Signals(received[0]).name}; nothing was unsaved")
                os._exit(128 + received[0])


def _say(line: str) -> None:
    os.write(2, f"\n{line}\n".encode())  # print cannot be called from where it may be interrupted
