"""`lock`: one writer per folder, for as long as it lives."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from vit21k.errors import LockedError
from vit21k.lock import is_locked, locked

_HOLD = """
import sys, time
from pathlib import Path
from vit21k.lock import locked
with locked(Path(sys.argv[1]), command="hash"):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(folder: Path) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def test_a_second_process_learns_who_holds_the_folder(tmp_path: Path) -> None:
    with _holder(tmp_path) as holder:
        with pytest.raises(LockedError) as caught, locked(tmp_path, command="relabel"):
            pass
        holder.kill()

    assert f"is in use by `vit21k hash` (process {holder.pid} on " in caught.value.message
    assert caught.value.exit_code == 75


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    with _holder(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    with locked(tmp_path, command="relabel"):
        pass


def test_the_lock_ends_with_the_block_and_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), locked(tmp_path, command="hash"):
        raise ValueError("no")

    with locked(tmp_path, command="hash"):
        pass


def test_the_folder_is_made(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b", command="hash"):
        assert (tmp_path / "a" / "b").is_dir()


def test_a_note_that_cannot_be_read_does_not_hide_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path, command="hash"):
        (tmp_path / ".lock").write_bytes(b"\xff{")
        with (
            pytest.raises(LockedError, match="another process"),
            locked(tmp_path, command="relabel"),
        ):
            pass


def test_whether_a_folder_is_held_can_be_asked_without_holding_it(tmp_path: Path) -> None:
    before = is_locked(tmp_path)
    with _holder(tmp_path) as holder:
        while_held = is_locked(tmp_path)
        holder.kill()

    assert (before, while_held, is_locked(tmp_path)) == (False, True, False)
    with locked(tmp_path, command="hash"):
        assert is_locked(tmp_path)


def test_a_folder_that_was_made_for_nothing_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), locked(tmp_path / "a" / "b", command="hash"):
        raise ValueError("no")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_has_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    def begin(folder: Path) -> NoReturn:
        with locked(folder, command="hash"):
            (tmp_path / "new").mkdir(exist_ok=True)
            (tmp_path / "new" / "part").touch()
            raise ValueError("no")

    for name in ("old", "new"):
        with pytest.raises(ValueError, match="no"):
            begin(tmp_path / name)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert (tmp_path / "new" / "part").is_file()


def test_whoever_waits_for_a_folder_that_is_removed_makes_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    held = threading.Event()

    def wait() -> None:
        held.wait(10)
        with locked(folder, command="second", wait=True):
            (folder / "done").touch()

    def begin() -> NoReturn:
        with locked(folder, command="first"):
            held.set()
            time.sleep(0.1)
            raise ValueError("no")

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(wait)
        with pytest.raises(ValueError, match="no"):
            begin()
        second.result(10)

    assert (folder / "done").is_file()
    assert is_locked(folder) is False
