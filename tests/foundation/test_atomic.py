"""`atomic`: the old file or the new one, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, NoReturn

import pytest

from vit21k import atomic
from vit21k.atomic import atomic_file, atomic_folder, write_atomic


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"

    with atomic_file(path) as file:
        file.write(b"content")
        assert not path.exists()

    assert path.read_bytes() == b"content"
    assert _names(path.parent) == ["file"]


def _write_then_raise(file: IO[bytes], error: type[BaseException]) -> NoReturn:
    file.write(b"new")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_atomic(tmp_path / "file", b"old")

    with pytest.raises(error), atomic_file(tmp_path / "file") as file:
        _write_then_raise(file, error)

    assert (tmp_path / "file").read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    write_atomic(tmp_path / "pipe", b"content")

    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(atomic.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_the_bytes_are_on_disk_before_the_name_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("move"), replace(a, b)))

    write_atomic(tmp_path / "file", b"content")

    assert calls == ["fsync", "move", "fsync"]


_WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from vit21k.atomic import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def _killed_writer(path: Path) -> None:
    command = [sys.executable, "-c", _WRITE_AND_WAIT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    write_atomic(tmp_path / "[file]*", b"old")
    _killed_writer(tmp_path / "[file]*")
    assert len(_names(tmp_path)) == 2
    assert (tmp_path / "[file]*").read_bytes() == b"old"

    write_atomic(tmp_path / "[file]*", b"new")

    assert (tmp_path / "[file]*").read_bytes() == b"new"
    assert _names(tmp_path) == ["[file]*"]


def test_what_a_living_writer_is_writing_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".file.{os.uname().nodename}-{os.getppid()}.partial"
    other.touch()

    write_atomic(tmp_path / "file", b"new")

    assert other.exists()


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "a").write_bytes(b"a")
        assert not (tmp_path / "folder").exists()

    assert (tmp_path / "folder" / "a").read_bytes() == b"a"
    assert _names(tmp_path) == ["folder"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        atomic_folder(tmp_path / "folder") as partial,
        (partial / "a").open("wb") as file,
    ):
        _write_then_raise(file, KeyError)

    assert _names(tmp_path) == []


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "folder"):
        pass
