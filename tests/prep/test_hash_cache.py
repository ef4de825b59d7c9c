"""`prep.hash_cache`: an unchanged file is not read again, and nothing else is treated as it."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from tar_files import tar_of

from vit21k.errors import UsageError
from vit21k.machine import file_system_of
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS
from vit21k.prep import hash_cache as memory_module
from vit21k.prep import hash_tree as hash_tree_module
from vit21k.prep.file_digest import FileReader, ImageFacts
from vit21k.prep.hash_cache import CACHE, JOURNAL, HashCache
from vit21k.prep.hash_chunks import FileDigest, HashedChunk
from vit21k.prep.hash_tree import HashSummary, hash_tree
from vit21k.prep.scan import HEAD, FileRows, NamedRows, decode, encode
from vit21k.sources.folders import CHUNK_FILES, is_remote

NUM_KILLS = 20
OPTIONS = {"algorithm": "xxh3_128", "root": "/r"}
SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


def _digest(number: int = 1, **fields: object) -> FileDigest:
    facts = ImageFacts(bytes([number]) * 16, "jpeg", 500, 375, 3, True)
    return FileDigest(number, 2, bytes(16), facts, 3, 4)._replace(**fields)  # type: ignore[arg-type]


def _named(files: dict[bytes, FileDigest]) -> NamedRows:
    return NamedRows(list(files), FileRows.of(files.values()).array)


def _unnamed(files: NamedRows) -> dict[bytes, FileDigest]:
    return dict(zip(files.names, FileRows(files.rows), strict=True))


def test_what_the_latest_run_noted_of_a_file_counts(tmp_path: Path) -> None:
    for number, names in enumerate(([b"a", b"b", b"c"], [b"b", b"d"])):
        cache = HashCache(tmp_path, OPTIONS)
        cache.add(b"f/", _named({name: _digest(number + 1) for name in names}), NOW)
        cache.close() if number else cache.finish()
        cache.close()

    again = HashCache(tmp_path, OPTIONS)

    known = _unnamed(again.recall(b"f/", b"a", b"d"))
    assert {name: file.num_bytes for name, file in known.items()} == {
        b"a": 1,
        b"b": 2,
        b"c": 1,
        b"d": 2,
    }
    assert list(known) == [b"a", b"b", b"c", b"d"]
    again.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders with 700 files in six chunks, settled: no test may change them."""
    root = tmp_path_factory.mktemp("images") / "tree"
    for number in range(700):
        path = root / f"n0000000{number % 3}" / f"{number:04}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff%d" % (number // 2) + bytes(number % 50))
    time.sleep(0.06)  # what has changed just now is not taken for settled
    return root


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> Path:
    shutil.copytree(images, tmp_path / "tree")
    time.sleep(0.06)
    return tmp_path / "tree"


def _bytes_of(manifests: Path) -> bytes:
    return b"".join(
        (manifests / name).read_bytes() for name in ("digests.parquet", "problems.parquet")
    )


def test_an_unchanged_tree_is_not_read(images: Path, tmp_path: Path) -> None:
    first = hash_tree(images, tmp_path)
    before = _bytes_of(tmp_path)

    again = hash_tree(images, tmp_path)

    assert (first.num_known, first.num_bytes_read) == (0, first.num_bytes)
    assert (again.num_known, again.num_bytes_read) == (700, 0)
    assert again.num_bytes == first.num_bytes > 0
    assert _bytes_of(tmp_path) == before


def test_no_file_of_an_unchanged_tree_is_opened(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_tree(images, tmp_path)
    opened = []
    real = os.open

    def spy(path: object, flags: int, *args: object, **options: object) -> int:
        opened.append(path)
        return real(path, flags, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hash_tree_module.os, "open", spy)
    hash_tree(images, tmp_path)

    assert not [path for path in opened if isinstance(path, bytes) and path.endswith(b".JPEG")]


def _rewrite(path: Path) -> None:
    path.write_bytes(b"other, and of another size")


def _swap_keeping_size_and_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(random.randbytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace_keeping_size_and_time(path: Path) -> None:
    """What `cp -a` of a file of the same size and time does."""
    status = path.stat()
    path.unlink()
    path.write_bytes(random.randbytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _add_beside(path: Path) -> None:
    path.with_name("0000a.JPEG").write_bytes(b"new")


CHANGES: list[tuple[Callable[[Path], None], int]] = [
    (_rewrite, 1),
    (_swap_keeping_size_and_time, 1),
    (_replace_keeping_size_and_time, 1),
    (lambda path: path.unlink(), 0),
    (_add_beside, 1),
    (lambda path: path.rename(path.with_name("9999.JPEG")), 1),
]


@pytest.mark.parametrize(("change", "num_read"), CHANGES)
def test_what_has_changed_is_read_and_nothing_else(
    tree: Path, tmp_path: Path, change: Callable[[Path], None], num_read: int
) -> None:
    hash_tree(tree, tmp_path / "m")
    change(tree / "n00000000" / "0300.JPEG")

    again = hash_tree(tree, tmp_path / "m")
    hash_tree(tree, tmp_path / "fresh")

    assert again.num_files - again.num_known == num_read
    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "fresh")


def test_a_file_that_changed_just_before_it_was_read_is_read_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree / "n00000000" / "0300.JPEG"
    os.utime(path)
    just_after = path.stat().st_ctime_ns + SECOND // 25  # however slow the machine is
    monkeypatch.setattr(HashCache, "now", lambda _self: just_after)

    hash_tree(tree, tmp_path / "m")

    assert hash_tree(tree, tmp_path / "m").num_known == 699


@pytest.mark.parametrize(
    ("changed_at", "age_s", "is_remote", "is_remembered"),
    [
        (NOW + 1, 0.04, False, False),  # within a tick of the kernel's clock
        (NOW + 1, 0.06, False, True),
        (NOW, 0.9, False, False),  # a time in whole seconds may stand for two of them
        (NOW, 2.0, False, False),
        (NOW, 2.06, False, True),
        (NOW, -5.0, False, False),  # a clock that was put back
        (NOW + 1, 59.0, True, False),  # the clock of a file server may be slow
        (NOW, 62.0, True, False),
        (NOW, 63.0, True, True),
    ],
)
def test_a_file_is_remembered_if_its_times_are_older_than_their_granularity(
    changed_at: int, age_s: float, is_remote: bool, is_remembered: bool, tmp_path: Path
) -> None:
    column = "mtime_ns" if is_remote else "ctime_ns"
    old = NOW - 1000 * SECOND + 1
    files = {"mtime_ns": old, "ctime_ns": old, column: changed_at}
    cache = HashCache(tmp_path, OPTIONS, is_remote=is_remote)

    cache.add(b"f/", _named({b"a": _digest(**files)}), changed_at + int(age_s * SECOND))
    cache.include_current()

    [file] = _unnamed(cache.recall(b"f/", b"a", b"a")).values()
    assert (file.mtime_ns == files["mtime_ns"]) is is_remembered
    cache.close()


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_a_change_within_a_second_of_the_file_system_is_seen(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose times are whole seconds: a change in place of equal size keeps them."""
    path = tmp_path / "t" / (f"n1{suffix}" if suffix else "n1/a.jpg")
    path.parent.mkdir(parents=True)
    clock = iter([NOW + SECOND // 3, NOW + 100 * SECOND, NOW + 200 * SECOND])
    monkeypatch.setattr(HashCache, "now", lambda _self: now)
    monkeypatch.setattr(hash_tree_module, "is_remote", lambda _root: True)
    monkeypatch.setattr(memory_module, "_SKEW_NS", 0)
    known = []
    for content in (b"first", b"other", b"other"):
        path.write_bytes(tar_of({"a.jpg": content}) if suffix else content)
        os.utime(path, ns=(NOW, NOW))
        now = next(clock)
        known.append(hash_tree(tmp_path / "t", tmp_path / "m").num_known)
        [digest] = read_manifest(tmp_path / "m", DIGESTS)["digest"].to_pylist()
        assert digest == xxhash.xxh3_128_digest(content)

    assert known == [0, 0, 1]


def test_the_time_is_that_before_reading(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [path.stat().st_ctime_ns for path in images.rglob("*.JPEG")]
    read = FileReader.digest
    monkeypatch.setattr(HashCache, "now", lambda _self: min(times) + 1)

    def slowly(*args: object) -> object:
        monkeypatch.setattr(HashCache, "now", lambda _self: max(times) + SECOND)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(FileReader, "digest", slowly)
    hash_tree(images / "n00000000" / "..", tmp_path, algorithm="md5", num_workers=1)

    assert hash_tree(images, tmp_path, algorithm="md5").num_known < 700


def test_fresh_forgets(images: Path, tmp_path: Path) -> None:
    hash_tree(images, tmp_path)

    assert hash_tree(images, tmp_path, is_fresh=True).num_known == 0


@pytest.mark.parametrize(
    "options", [{"algorithm": "md5"}, {"follow_symlinks": True}, {"mode": "quick"}]
)
def test_a_run_of_another_kind_knows_nothing(
    images: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    hash_tree(images, tmp_path)

    assert hash_tree(images, tmp_path, **options).num_known == 0  # type: ignore[arg-type]


def test_rechecking_finds_what_changed_without_a_sign(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hash_tree_module, "is_remote", lambda _folder: True
    )  # status-change times count not
    monkeypatch.setattr(memory_module, "_SKEW_NS", 0)
    hash_tree(tree, tmp_path / "m")
    _swap_keeping_size_and_time(tree / "n00000001" / "0301.JPEG")

    unnoticed = hash_tree(tree, tmp_path / "m")
    noticed = hash_tree(tree, tmp_path / "m", recheck=1.0)
    hash_tree(tree, tmp_path / "fresh")

    assert (unnoticed.num_known, unnoticed.silently_changed) == (700, [])
    assert (noticed.num_known, noticed.silently_changed) == (0, ["n00000001/0301.JPEG"])
    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "fresh")


def test_a_share_is_rechecked(images: Path, tmp_path: Path) -> None:
    hash_tree(images, tmp_path)

    summary = hash_tree(images, tmp_path, recheck=0.5)

    assert 200 < summary.num_known < 500
    assert summary.silently_changed == []


def _stop_after(num_chunks: int) -> Callable[[HashedChunk], None]:
    def on_chunk(_chunk: HashedChunk) -> None:
        nonlocal num_chunks
        num_chunks -= 1
        if num_chunks < 0:
            raise KeyboardInterrupt

    return on_chunk


def test_a_stopped_run_resumes_and_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    hash_tree(images, tmp_path / "whole")
    known = []

    for num_chunks in (2, 1, 4):  # the second comes less far than the first
        with pytest.raises(KeyboardInterrupt):
            hash_tree(images, tmp_path / "m", num_workers=1, on_chunk=_stop_after(num_chunks))
        assert not (tmp_path / "m" / "digests.parquet").exists()
    summary = hash_tree(
        images, tmp_path / "m", on_chunk=lambda chunk: known.append(chunk.num_known)
    )

    assert summary.num_known >= 4 * CHUNK_FILES
    assert sum(known) == summary.num_known
    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_a_memory_with_any_byte_flipped_or_cut_gives_the_same_bytes(
    images: Path, tmp_path: Path
) -> None:
    hash_tree(images, tmp_path)
    expected, cache = _bytes_of(tmp_path), (tmp_path / CACHE).read_bytes()
    random_ = random.Random(0)

    for number in range(60):
        damaged = bytearray(cache)
        place = random_.randrange(len(cache))
        if number % 3:
            damaged[place] ^= 1 << random_.randrange(8)
        else:
            del damaged[place:]
        (tmp_path / CACHE).write_bytes(damaged)

        hash_tree(images, tmp_path, num_workers=1)

        assert _bytes_of(tmp_path) == expected, (number, place)


def test_records_come_back_as_they_were() -> None:
    files = {
        b"a": _digest(1),
        b"b": _digest(2, facts=ImageFacts(None, "unknown"), probe=b"p" * 16),
        b"c\n\xff": _digest(3, digest=None, facts=None, probe=b"q" * 16),
        b"d": _digest(4, facts=ImageFacts(None, "png", 1, 2, 4, False)),
        b"e": _digest(5, facts=ImageFacts(None, "gzip", 1 << 31, None, None, None)),
    }
    record = encode(b"folder/", _named(files))
    body_bytes, label_bytes, checksum = HEAD.unpack_from(record)

    assert _unnamed(decode(record[HEAD.size :], label_bytes, checksum)) == files
    assert len(record) == HEAD.size + body_bytes


def test_names_are_found_wherever_chunks_began_before(tmp_path: Path) -> None:
    names = [b"%03d" % number for number in range(300)]
    cache = HashCache(tmp_path, OPTIONS)
    for start in (200, 0, 100):  # threads end in any order
        cache.add(b"f/", _named({name: _digest() for name in names[start : start + 100]}), NOW)
    cache.add(b"g/", _named({b"050": _digest(9)}), NOW)
    cache.close()

    again = HashCache(tmp_path, OPTIONS)

    assert again.recall(b"f/", names[150], names[159]).names == names[100:200]
    assert again.recall(b"f/", names[99], names[100]).names == names[:200]
    assert _unnamed(again.recall(b"g/", b"000", b"999")) == {b"050": _digest(9)}
    assert again.recall(b"h/", b"000", b"999").names == []
    assert again.recall(b"g/", b"051", b"999").names == []
    again.close()


def test_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = HashCache(tmp_path, OPTIONS)
    cache.close()
    monkeypatch.setattr(cache, "_journal", open("/dev/full", "wb", buffering=0))  # noqa: PTH123, SIM115

    with pytest.raises(OSError, match="No space left"):
        cache.add(b"f/", _named({b"a": _digest()}), NOW)
    cache._journal.close()


def test_nothing_is_left_of_a_run_that_noted_nothing(tmp_path: Path) -> None:
    HashCache(tmp_path, OPTIONS).close()

    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def archives(images: Path, tmp_path: Path) -> Path:
    """The images in a tar for each class."""
    root = tmp_path / "root"
    root.mkdir()
    for folder in sorted(images.iterdir()):
        subprocess.run(["tar", "cf", root / f"{folder.name}.tar", "-C", folder, "."], check=True)
    time.sleep(0.06)
    return root


def test_rechecking_finds_the_members_that_changed_without_a_sign(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_tree_module, "is_remote", lambda _folder: True)
    monkeypatch.setattr(memory_module, "_SKEW_NS", 0)
    hash_tree(archives, tmp_path / "m")
    member = read_manifest(tmp_path / "m", DIGESTS).to_pylist()[300]
    archive = archives / member["container"]
    status = archive.stat()
    with archive.open("r+b") as file:
        file.seek(member["offset"])
        file.write(random.randbytes(member["num_bytes"]))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    time.sleep(0.06)  # what has just changed is not remembered

    unnoticed = hash_tree(archives, tmp_path / "m")
    noticed = hash_tree(archives, tmp_path / "m", recheck=1.0)

    assert (unnoticed.num_known, unnoticed.silently_changed) == (700, [])
    assert (noticed.num_known, noticed.silently_changed) == (0, [member["path"]])


def test_archives_are_remembered_by_their_own_state(archives: Path, tmp_path: Path) -> None:
    root = archives
    first = hash_tree(root, tmp_path / "m")
    before = _bytes_of(tmp_path / "m")

    again = hash_tree(root, tmp_path / "m")
    same = _bytes_of(tmp_path / "m")
    os.utime(root / "n00000001.tar")
    after = hash_tree(root, tmp_path / "m")

    assert (first.num_files, first.num_known) == (700, 0)
    assert (again.num_known, again.num_bytes_read) == (700, 0)
    assert same == before
    assert after.num_known == 700 - 233


KILLER = """
import os, random, signal, sys, time
from contextlib import suppress
from pathlib import Path
from vit21k.prep.hash_tree import hash_tree

root, manifests, mode, num_kills, journal = sys.argv[1:]
random_ = random.Random(int(num_kills))

def has_begun(started_at):  # whether a run has begun to write its journal since then
    with suppress(FileNotFoundError):  # the run moves them about
        journals = Path(manifests).glob(f"{journal}*")
        return any(path.stat().st_ctime_ns > started_at for path in journals)
    return False

def has_ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

for _ in range(int(num_kills)):
    started_at = time.time_ns() - 10_000_000
    child = os.fork()
    if child == 0:
        hash_tree(Path(root), Path(manifests), num_workers=2, mode=mode)
        os._exit(0)
    while not has_begun(started_at) and not has_ended(child):
        time.sleep(0.001)  # a run that neither begins nor ends would be the system's fault
    time.sleep(random_.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
"""Kills runs at random moments: children of a process that has imported what they need."""


def _kill_at_random(root: Path, manifests: Path, mode: str, num_kills: int) -> HashSummary:
    """Kill runs at random moments; check what each leaves, and return the counts of the last."""
    command = [sys.executable, "-c", KILLER, root, manifests, mode, str(num_kills), JOURNAL]
    subprocess.run(command, check=True)
    return hash_tree(root, manifests, mode=mode)  # type: ignore[arg-type]


def _check_kills(root: Path, tmp_path: Path, mode: str, num_kills: int) -> None:
    hash_tree(root, tmp_path / "whole", mode=mode)  # type: ignore[arg-type]
    left = {path.name for path in (tmp_path / "whole").iterdir()}

    _kill_at_random(root, tmp_path / "m", mode, num_kills)

    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "m").iterdir()} == left


@pytest.mark.parametrize("mode", ["full", "quick"])
def test_runs_killed_at_random_moments_end_as_one_that_was_not(
    images: Path, tmp_path: Path, mode: str
) -> None:
    _check_kills(images, tmp_path, mode, NUM_KILLS // 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "quick"])
def test_a_hundred_killed_runs_end_as_one_that_was_not(
    images: Path, tmp_path: Path, mode: str
) -> None:
    _check_kills(images, tmp_path, mode, 50)


def test_a_run_on_another_engine_leaves_no_memory(images: Path, tmp_path: Path) -> None:
    hash_tree(images, tmp_path, engine=hash_tree_module.hash_in_threads)

    assert not (tmp_path / CACHE).exists()
    with pytest.raises(UsageError, match="this machine only"):
        hash_tree(images, tmp_path, engine=hash_tree_module.hash_in_threads, mode="quick")


def test_file_systems_are_detected(tmp_path: Path) -> None:
    printed = subprocess.run(
        ["stat", "-f", "-c", "%T", "/proc"], capture_output=True, text=True, check=True
    )

    assert file_system_of(Path("/proc")) == printed.stdout.strip() == "proc"
    assert file_system_of(tmp_path) not in ("unknown", "proc")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 0 0:1 / / rw - ext4 /dev/sda rw", False),
        ("1 0 0:1 / / rw - nfs4 host:/x rw", True),
        ("1 0 0:1 / / rw - fuse.sshfs host:/x rw", True),
        (r"1 0 0:1 / / rw - ext4 /dev/sda rw" + "\n" + r"2 1 0:2 / /a\040b rw - lustre x rw", True),
    ],
)
def test_remote_file_systems_are_detected(tmp_path: Path, line: str, expected: bool) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "mountinfo").write_text(line + "\n")

    assert is_remote(Path("/a b/c"), tmp_path) is expected


def test_digests_of_a_resumed_run_hold_all_columns(images: Path, tmp_path: Path) -> None:
    hash_tree(images, tmp_path)

    digest = hashlib.sha256((tmp_path / DIGESTS.file_name).read_bytes()).digest()
    hash_tree(images, tmp_path)

    assert hashlib.sha256((tmp_path / DIGESTS.file_name).read_bytes()).digest() == digest
