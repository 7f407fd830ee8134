"""Signals: taken over and given back, raised at once or where it is safe, once."""

import os
import signal
import threading

import pytest

from vdm_jax.training import interrupt
from vdm_jax.training.interrupt import Interrupted, asked, check, deferred, listening, unsaved


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


def handlers():
    return [signal.getsignal(signum) for signum in interrupt.SIGNALS]


@pytest.mark.parametrize("leave", [False, True])
def test_handlers_are_given_back(leave):
    before = handlers()
    with listening(leave=leave):
        inside = handlers()
        with listening():  # already
            assert handlers() == inside != before
        assert handlers() == inside
    assert handlers() == before
    with pytest.raises(Interrupted), listening(leave=leave):
        send()
    try:
        assert handlers() == ([signal.SIG_IGN] * 2 if leave else before)
        assert asked() == 0
        with deferred():  # of an evaluation afterwards
            check()
    finally:
        for signum, handler in zip(interrupt.SIGNALS, before, strict=True):
            signal.signal(signum, handler)


@pytest.mark.parametrize("signum", interrupt.SIGNALS)
def test_a_signal_is_raised_at_once(signum):
    with pytest.raises(KeyboardInterrupt, match=f"^ended by {signum.name}$") as caught, listening():
        send(signum)
    assert caught.value.signum == signum


def test_a_deferred_signal_waits(capfd):
    done = []

    def work():
        send(signal.SIGINT)
        done.append(asked())
        with deferred():  # of an evaluation inside
            send()
        done.append(asked())

    with pytest.raises(Interrupted) as caught, listening(), deferred():
        work()
    assert done == [signal.SIGINT] * 2 and caught.value.signum == signal.SIGINT
    said = [line for line in capfd.readouterr().err.splitlines() if line]
    assert said == ["SIGINT: ending after this step", "SIGTERM again: already ending"]


def test_check_raises_where_it_is_called():
    def work():
        send()
        check()

    with listening():
        check()
        with pytest.raises(Interrupted), deferred():
            work()
    with listening():  # a new one has not been asked
        check()
        assert asked() == 0


def test_other_threads_take_nothing_over():
    before = handlers()
    seen = []

    def run():
        with listening():
            seen.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("risk", [False, True])
def test_a_command_leaves_unless_something_is_unsaved(monkeypatch, risk):
    """When the interpreter does not come to the signal: here, because the handler is deferred for long."""
    left = threading.Event()
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(interrupt, "end", lambda line, status: left.set())
    monkeypatch.setattr(interrupt.signal, "SIG_IGN", signal.default_int_handler)  # after it

    def work():
        send()
        return left.wait(1)

    def careful():
        with unsaved():
            return work()

    with pytest.raises(Interrupted), listening(leave=True), deferred():
        assert (careful if risk else work)() != risk
