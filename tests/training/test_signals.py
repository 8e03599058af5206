"""The first signal asks, the second acts; what was set before comes back."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from xpformer.training.signals import Interrupted, StopRequest, stop_on_signals

BOTH = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.fixture
def caught() -> Any:
    """Notes the signals that come through."""
    seen: list[int] = []
    before = handlers()
    for number in BOTH:
        signal.signal(number, lambda number, _frame: seen.append(number))
    yield seen
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_first_and_second(caught: list[int], number: signal.Signals) -> None:
    before = handlers()
    with stop_on_signals() as stop:
        assert not stop
        assert stop.name == ""
        assert handlers() != before
        os.kill(os.getpid(), number)
        assert stop
        assert (stop.signal_number, stop.name) == (number, number.name)
        assert caught == []
        assert handlers() == before  # of both: another kind of second signal ends the process too
        os.kill(os.getpid(), BOTH[number == signal.SIGINT])
        assert caught == [BOTH[number == signal.SIGINT]]
        assert stop.signal_number == number
    assert handlers() == before


def test_handlers_come_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        _ = 1 / 0
    assert handlers() == before


def test_an_ignored_signal_stays_ignored(caught: list[int]) -> None:
    """As in a job that a shell started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_cannot_take_signals() -> None:
    before, stops = handlers(), []

    def work() -> None:
        with stop_on_signals() as stop:
            stops.append((bool(stop), handlers() == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stops == [(False, True)]


def test_what_it_becomes() -> None:
    assert not StopRequest()
    error = Interrupted("SIGTERM at step 3: saved", signal.SIGTERM)
    assert error.exit_code == 143
    assert Interrupted("", signal.SIGINT).exit_code == 130
    assert str(error) == "SIGTERM at step 3: saved"
