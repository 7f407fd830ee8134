"""Signals: taken over and given back, raised at once or where it is safe, once."""

import os
import signal
import threading
import time

import pytest

from vdm_jax.runtime import interrupt
from vdm_jax.runtime.interrupt import (
    Interrupted,
    check,
    defer_signals,
    listening,
    pending_signal,
    unsaved_work,
)


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


SIGNALS = (*interrupt.ALWAYS, *interrupt.WARNINGS)


@pytest.fixture(autouse=True)
def handlers_of_a_terminal():
    """The handlers of a process that nobody prepared; pytest itself may run under nohup."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in interrupt.WARNINGS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def handlers():
    return [signal.getsignal(signum) for signum in SIGNALS]


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
        assert handlers() == ([signal.SIG_IGN] * len(SIGNALS) if leave else before)
        assert pending_signal() == 0
        with defer_signals():  # of an evaluation afterwards
            check()
    finally:
        for signum, handler in zip(SIGNALS, before, strict=True):
            signal.signal(signum, handler)


def test_closed_terminals_and_warnings_of_clusters_are_signals():
    assert {signum.name for signum in SIGNALS} == {
        *("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    }


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_raised_at_once(signum):
    with pytest.raises(KeyboardInterrupt, match=f"^ended by {signum.name}$") as caught, listening():
        send(signum)
    assert caught.value.signum == signum


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_signal_can_be_deferred(signum):
    done = []

    def work():
        send(signum)
        done.append(pending_signal())

    with pytest.raises(Interrupted) as caught, listening(), defer_signals():
        work()
    assert done == [signum] and caught.value.signum == signum


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("signum", interrupt.WARNINGS)
def test_what_is_ignored_or_handled_stays_so(monkeypatch, signum, leave):
    """nohup ignores SIGHUP; submitit has a handler for its warning."""
    ended, seen = [], []
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(interrupt, "end", lambda line, status: ended.append(line))

    def own(number, frame):
        seen.append(number)

    for handler in (signal.SIG_IGN, own):
        signal.signal(signum, handler)
        with listening(leave=leave):
            send(signum)
            time.sleep(0.2 if leave else 0)  # for the thread that would end the process
            assert signal.getsignal(signum) is handler and pending_signal() == 0
        assert signal.getsignal(signum) is handler
    assert (seen, ended) == ([signum], [])


def test_a_deferred_signal_waits(capfd):
    done = []

    def work():
        send(signal.SIGINT)
        done.append(pending_signal())
        with defer_signals():  # of an evaluation inside
            send()
        done.append(pending_signal())

    with pytest.raises(Interrupted) as caught, listening(), defer_signals():
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
        with pytest.raises(Interrupted), defer_signals():
            work()
    with listening():  # a new one has not been asked
        check()
        assert pending_signal() == 0


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
        with unsaved_work():
            return work()

    with pytest.raises(Interrupted), listening(leave=True), defer_signals():
        assert (careful if risk else work)() != risk
