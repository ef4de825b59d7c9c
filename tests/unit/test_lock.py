"""`lock`: one writer per folder, for as long as it lives."""

import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
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
