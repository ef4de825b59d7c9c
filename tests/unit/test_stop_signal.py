"""The first signal is noted, the second one works as before."""

import os
import signal

import pytest

from vit21k.training.stop_signal import StopSignal


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_a_second_one_is_as_before(signum):
    second = []
    before = signal.signal(signum, lambda *_: second.append(signum))
    try:
        with StopSignal() as stop:
            assert stop.received is None
            os.kill(os.getpid(), signum)
            assert stop.received == signum
            assert second == []
            os.kill(os.getpid(), signum)
        assert second == [signum]
    finally:
        signal.signal(signum, before)


def test_leaving_it_puts_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)

    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before
