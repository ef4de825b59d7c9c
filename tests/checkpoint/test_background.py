"""Writing in the background: order, back-pressure, and that no error is lost."""

import threading

import pytest

from vit21k.checkpoint.store import BackgroundWriter


def fail():
    raise OSError(28, "No space left on device")


def test_nothing_waits_for_a_write_but_the_next_one():
    done, may_end = [], threading.Event()

    def slow():
        may_end.wait(10)
        done.append("first")

    with BackgroundWriter() as writer:
        writer.submit(slow)
        writer.check()
        assert done == []
        may_end.set()
        writer.submit(lambda: done.append("second"))
        assert done[0] == "first"

    assert done == ["first", "second"]


@pytest.mark.parametrize("call", ["check", "wait", "submit"])
def test_an_error_surfaces_at_the_next_call_once(call):
    with BackgroundWriter() as writer:
        writer.submit(fail)
        writer._pending.exception()  # it is done
        with pytest.raises(OSError, match="No space"):
            getattr(writer, call)(*([fail] if call == "submit" else []))
        writer.check()


def test_an_error_surfaces_at_the_end():
    with pytest.raises(OSError, match="No space"), BackgroundWriter() as writer:
        writer.submit(fail)


def test_an_error_of_the_caller_is_not_hidden_and_the_write_is_finished():
    done = []
    with pytest.raises(ValueError, match="mine"), BackgroundWriter() as writer:  # noqa: PT012
        writer.submit(lambda: done.append(1))
        raise ValueError("mine")

    assert done == [1]
