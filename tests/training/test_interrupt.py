"""Signals as requests: noted once, obeyed at once the second time, and the handlers put back."""

from __future__ import annotations

import signal
import threading

import pytest

from pof.training.interrupt import Interrupts


def test_the_first_interrupt_is_noted_and_the_second_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.requested()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested() and interrupts.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_scheduler_may_send_its_signal_again() -> None:
    with Interrupts() as interrupts:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested() and interrupts.name == "SIGTERM"


def test_handlers_are_put_back_where_the_body_raises() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Interrupts():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def body() -> None:
        with Interrupts():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert handlers == [before]
