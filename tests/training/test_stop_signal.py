"""Signals are noted: the first one, whatever sends it again, and who may insist."""

import signal

import pytest

from vit21k.training.loop import StopSignal

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_noted_and_so_is_its_echo_from_torchrun(signum):
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(signum)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signum)

        assert stop.received == signum


@pytest.fixture
def in_foreground():
    """A shell has what it starts in the background ignore Ctrl-C, and what that starts in turn."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_foreground")
def test_a_second_ctrl_c_some_seconds_later_interrupts():
    with pytest.raises(KeyboardInterrupt), StopSignal(same_request_seconds=-1.0):  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_never_ends_a_run_that_is_saving():
    with StopSignal(same_request_seconds=-1.0) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

        assert stop.received == signal.SIGTERM


@pytest.mark.parametrize("signum", SIGNALS)
def test_leaving_it_puts_the_handlers_back(signum):
    before = signal.getsignal(signum)

    with StopSignal():
        assert signal.getsignal(signum) != before

    assert signal.getsignal(signum) == before
