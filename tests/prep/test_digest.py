"""`prep.digest`: one file, read to its end; and what is said when it cannot be."""

import errno
import os
import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vit21k.prep import hash_chunks as digest_module
from vit21k.prep.file_digest import ALGORITHMS
from vit21k.prep.hash_chunks import BUFFER_BYTES, ChunkHasher, HashedChunk
from vit21k.sources.folders import Chunk

SIZES = [1, 100, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES + 7]


def _digest(root: Path, *names: str, algorithm: str = "xxh3_128", **options: bool) -> HashedChunk:
    entries = [(os.fsencode(name), None) for name in names]
    hasher = ChunkHasher(os.fsencode(root), algorithm=algorithm, **options)
    return hasher(Chunk(b"a/", list(entries), 1.0))


def _problems(chunk: HashedChunk) -> list[tuple[str, str, str]]:
    return [(problem.path, str(problem.kind), problem.detail) for problem in chunk.problems]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    return tmp_path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("algorithm", "command"),
    [("md5", ["md5sum"]), ("blake2b_128", ["b2sum", "-l", "128"])],
)
def test_digests_are_those_that_coreutils_print(
    root: Path, algorithm: str, command: list[str], size: int
) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(random.randbytes(size))
    printed = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout

    [file] = _digest(root, "x.jpg", algorithm=algorithm).files

    assert file.digest.hex() == printed.split()[0]
    assert file.num_bytes == size


@pytest.mark.parametrize(
    ("content", "hexdigest"),
    [  # seed 0; what `printf a | xxhsum -H2` prints
        (b"", "99aa06d3014798d86001c324468d497f"),
        (b"a", "a96faf705af16834e6c632b61e964e1f"),
    ],
)
def test_xxh3_is_in_the_byte_order_that_xxhsum_prints(content: bytes, hexdigest: str) -> None:
    assert ALGORITHMS["xxh3_128"].at_once(memoryview(content)).hex() == hexdigest


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_a_file_in_pieces_has_the_digest_of_the_whole(
    root: Path, algorithm: str, size: int
) -> None:
    content = random.randbytes(size)
    (root / "a" / "x.jpg").write_bytes(content)

    [file] = _digest(root, "x.jpg", algorithm=algorithm).files

    assert file.digest == ALGORITHMS[algorithm].at_once(memoryview(content))
    assert len(file.digest) == 16


def test_reads_that_return_less_than_asked_are_continued(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.randbytes(1000)
    (root / "a" / "x.jpg").write_bytes(content)
    readv = os.readv
    monkeypatch.setattr(digest_module.os, "readv", lambda fd, views: readv(fd, [views[0][:7]]))

    [file] = _digest(root, "x.jpg").files

    assert (file.num_bytes, file.digest) == (
        1000,
        ALGORITHMS["xxh3_128"].at_once(memoryview(content)),
    )


def test_size_and_time_are_those_of_the_file(root: Path) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))

    chunk = _digest(root, "x.jpg")

    assert chunk.paths == ["a/x.jpg"]
    assert chunk.wnid == "a"
    assert chunk.files[0][:2] == (5, 1_234_567_890_123_456_789)


def test_an_empty_file_is_a_problem(root: Path) -> None:
    (root / "a" / "x.jpg").touch()

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "empty", "")]


def test_a_file_that_has_gone_is_a_problem(root: Path) -> None:
    (root / "a" / "y.jpg").write_bytes(b"y")

    chunk = _digest(root, "x.jpg", "y.jpg")

    assert _problems(chunk) == [("a/x.jpg", "vanished", "No such file or directory")]
    assert chunk.paths == ["a/y.jpg"]


def test_a_folder_that_has_gone_takes_all_its_files(tmp_path: Path) -> None:
    chunk = _digest(tmp_path, "x.jpg", "y.jpg")

    assert _problems(chunk) == [
        ("a/x.jpg", "vanished", "No such file or directory"),
        ("a/y.jpg", "vanished", "No such file or directory"),
    ]


def test_a_pipe_that_took_the_place_of_a_file_does_not_stop_the_run(root: Path) -> None:
    os.mkfifo(root / "a" / "x.jpg")

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "not_a_regular_file", "")]


def test_a_folder_that_took_the_place_of_a_file_is_a_problem(root: Path) -> None:
    (root / "a" / "x.jpg").mkdir()

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "not_a_regular_file", "")]


def test_a_link_that_took_the_place_of_a_file_is_not_followed(root: Path) -> None:
    (root / "secret").write_bytes(b"secret")
    (root / "a" / "x.jpg").symlink_to(root / "secret")

    [(_, kind, _)] = _problems(_digest(root, "x.jpg"))
    followed = _digest(root, "x.jpg", follow_symlinks=True)

    assert kind == "changed_while_read"
    assert followed.paths == ["a/x.jpg"]


def _failing(function: Callable[..., Any], number: int, on_call: int) -> Callable[..., Any]:
    calls = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == on_call:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("function", ["open", "readv", "fstat"])
def test_what_the_system_refuses_is_a_problem_and_the_next_file_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    for name in ("x.jpg", "y.jpg"):
        (root / "a" / name).write_bytes(b"x")
    on_call = 2 if function == "open" else 1  # the first file: `open` opens its folder first
    failing = _failing(getattr(os, function), number, on_call)
    monkeypatch.setattr(digest_module.os, function, failing)

    chunk = _digest(root, "x.jpg", "y.jpg")

    assert _problems(chunk) == [("a/x.jpg", "unreadable", os.strerror(number))]
    assert chunk.paths == ["a/y.jpg"]


def test_running_out_of_descriptors_is_not_the_files_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a" / "x.jpg").write_bytes(b"x")
    monkeypatch.setattr(digest_module.os, "open", _failing(os.open, errno.EMFILE, 2))

    with pytest.raises(OSError, match="Too many open files"):
        _digest(root, "x.jpg")


def _write_while_read(path: Path, num_times: int) -> Callable[..., int]:
    readv = os.readv
    times_left = [num_times]

    def read(descriptor: int, views: list[memoryview]) -> int:
        num_read = readv(descriptor, views)
        if len(views[0]) == BUFFER_BYTES and times_left[0]:  # the first read of a try
            times_left[0] -= 1
            with path.open("ab") as file:
                file.write(b"+")
        return num_read

    return read


def test_a_file_that_changed_once_while_it_was_read_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(b"x")
    monkeypatch.setattr(digest_module.os, "readv", _write_while_read(path, 1))

    [file] = _digest(root, "x.jpg").files

    assert file.digest == ALGORITHMS["xxh3_128"].at_once(memoryview(b"x+"))


def test_a_file_that_keeps_changing_is_a_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(b"x")
    monkeypatch.setattr(digest_module.os, "readv", _write_while_read(path, 100))

    chunk = _digest(root, "x.jpg")

    assert _problems(chunk) == [("a/x.jpg", "changed_while_read", "")]
    assert chunk.files == []


def test_a_file_that_grows_for_ever_does_not_stop_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(b"x")
    readv = os.readv

    def read(descriptor: int, views: list[memoryview]) -> int:
        with path.open("ab") as file:
            file.write(bytes(len(views[0])))
        return readv(descriptor, views)

    monkeypatch.setattr(digest_module.os, "readv", read)

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "changed_while_read", "")]


def test_a_change_that_keeps_size_and_mtime_is_noticed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a" / "x.jpg"
    path.write_bytes(b"x")
    readv = os.readv

    def read(descriptor: int, views: list[memoryview]) -> int:
        status = path.stat()
        path.write_bytes(b"y")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return readv(descriptor, views)

    monkeypatch.setattr(digest_module.os, "readv", read)

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "changed_while_read", "")]


def test_a_file_that_ends_before_its_size_is_a_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a" / "x.jpg").write_bytes(b"12345")
    counts = iter([3, 0])
    monkeypatch.setattr(digest_module.os, "readv", lambda _fd, _views: next(counts))

    assert _problems(_digest(root, "x.jpg")) == [("a/x.jpg", "unreadable", "only 3 of 5 bytes")]


def test_a_file_whose_size_is_said_to_be_zero_is_read(root: Path) -> None:
    # Files of /proc have content, and a size of 0.
    entries = [(b"version", None)]

    chunk = ChunkHasher(b"/", algorithm="md5")(Chunk(b"proc/", list(entries), 1.0))

    assert chunk.files[0].num_bytes == len(Path("/proc/version").read_bytes()) > 0


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "a" / "x.jpg").write_bytes(b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(5):
        _digest(root, "x.jpg", "gone.jpg")

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_are_opened_for_reading_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a" / "x.jpg").write_bytes(b"x")
    flags = []
    opened = os.open

    def spy(path: bytes, flag: int, **kwargs: Any) -> int:
        flags.append(flag)
        return opened(path, flag, **kwargs)

    monkeypatch.setattr(digest_module.os, "open", spy)
    _digest(root, "x.jpg")

    assert len(flags) == 2
    assert all(flag & os.O_ACCMODE == os.O_RDONLY for flag in flags)


def test_what_is_certainly_no_image_is_a_problem_and_what_may_be_one_is_not(root: Path) -> None:
    (root / "a" / "page.JPEG").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (root / "a" / "what.JPEG").write_bytes(b"\0" * 100)

    chunk = _digest(root, "page.JPEG", "what.JPEG")

    assert _problems(chunk) == [
        ("a/page.JPEG", "not_an_image", "its first bytes are those of html")
    ]
    assert [file.facts.format for file in chunk.files if file.facts] == ["unknown"]


def test_large_files_wait_for_room_and_are_read_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit21k.prep.file_digest.MAX_BYTES", 3 * BUFFER_BYTES)
    content = b"\xff\xd8\xff\xfe\0\2\xff\xda\0\2" + bytes(2 * BUFFER_BYTES) + b"\xff\xd9"
    for number in range(6):
        (root / "a" / f"{number}.jpg").write_bytes(content)

    with ThreadPoolExecutor(6) as pool:
        chunks = list(pool.map(lambda number: _digest(root, f"{number}.jpg"), range(6)))

    files = [file for chunk in chunks for file in chunk.files]
    assert {file.digest for file in files} == {ALGORITHMS["xxh3_128"].at_once(memoryview(content))}
    assert all(file.facts and file.facts.has_end for file in files)
