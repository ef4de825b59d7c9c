"""`vit21k.sources.tar`: what a tar holds, block by block; `tarfile` and GNU tar are the oracles."""

import gzip
import io
import os
import random
import resource
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tar_files import END, header, padded, tar_of

from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import LOCATOR_COLUMNS
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.gzip_tar import GzipStream
from vit21k.sources.read import ImageReader, Locator
from vit21k.sources.tar import (
    Member,
    Window,
    parse_header,
    parse_number,
    parse_pax,
    plain_name,
    read_members,
)

LONG = "d" * 60 + "/" + "e" * 60 + "/" + "f" * 120 + ".JPEG"
FILES = {
    "n1_1.JPEG": b"tench",
    "n1_2.JPEG": b"",
    "a b/ü.JPEG": random.randbytes(3000),
    LONG: b"long",
    "./dot//double.JPEG": b"x" * 512,
}
PLAIN_NAMES = ["n1_1.JPEG", "n1_2.JPEG", "a b/ü.JPEG", LONG, "dot/double.JPEG"]


def _members(path: Path, window_bytes: int = 4096) -> list[tuple[Member, bytes]]:
    with ArchiveFile(str(path)) as file:
        window = Window(file, window_bytes=window_bytes)
        return [
            (member, b"" if member.flaw else bytes(window.take(member.num_bytes)))
            for member in read_members(window)
        ]


def _from_bytes(tmp_path: Path, content: bytes) -> list[tuple[Member, bytes]]:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    return _members(path)


def _kinds(found: list[tuple[Member, bytes]]) -> list[str]:
    return [str(member.flaw[0]) if member.flaw else "" for member, _ in found]


@pytest.mark.parametrize("window_bytes", [512, 700, 4096, 1 << 20])
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_wrote(
    tmp_path: Path, tar_format: int, window_bytes: int
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(FILES, tar_format=tar_format))

    found = _members(path, window_bytes)

    assert [member.name.decode() for member, _ in found] == PLAIN_NAMES
    assert [content for _, content in found] == list(FILES.values())
    content = path.read_bytes()
    for member, data in found:
        assert content[member.offset : member.offset + member.num_bytes] == data


@pytest.mark.parametrize("tar_format", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_members_are_those_that_gnu_tar_wrote(tmp_path: Path, tar_format: str) -> None:
    names = ["n1/n1_1.JPEG", "n1/ü.JPEG", "n2/" + "y" * 90 + ".JPEG"]
    names += [] if tar_format == "v7" else ["d" * 80 + "/" + "e" * 90 + ".JPEG"]
    for number, name in enumerate(names):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(random.randbytes(1000 * number + 1))
    command = ["tar", f"--format={tar_format}", "-C", tmp_path / "tree", "-cf", tmp_path / "x.tar"]
    subprocess.run([*command, "."], check=True)

    found = _members(tmp_path / "x.tar")

    assert {member.name.decode() for member, _ in found} == set(names)
    for member, content in found:
        assert content == (tmp_path / "tree" / member.name.decode()).read_bytes()


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 700, 1023])
def test_a_truncated_archive_is_a_flaw_and_what_came_before_is_kept(
    tmp_path: Path, cut: int
) -> None:
    whole = header(b"a.jpg", 5) + padded(b"first") + header(b"b.jpg", 600) + padded(b"x" * 600)

    found = _from_bytes(tmp_path, whole[: 1024 + cut])

    assert found[0][1] == b"first"
    assert _kinds(found)[0] == ""
    assert _kinds(found)[1:] == ["archive_truncated"]


def test_an_archive_without_its_last_padding_is_whole_but_has_no_end_mark(tmp_path: Path) -> None:
    found = _from_bytes(tmp_path, header(b"a.jpg", 5) + b"first")

    assert found[0][1] == b"first"
    assert _kinds(found) == ["", "archive_truncated"]


def test_a_damaged_header_costs_its_member_alone(tmp_path: Path) -> None:
    blocks = [header(b"a.jpg", 1), padded(b"a"), header(b"b.jpg", 1), padded(b"b")]
    blocks += [header(b"c.jpg", 1), padded(b"c"), END]
    blocks[2] = blocks[2][:10] + b"#" + blocks[2][11:]

    found = _from_bytes(tmp_path, b"".join(blocks))

    assert [member.name for member, _ in found] == [b"a.jpg", b"", b"c.jpg"]
    assert _kinds(found) == ["", "archive_damaged", ""]
    assert found[1][0].flaw == (
        ProblemKind.ARCHIVE_DAMAGED,
        "at offset 1,024: no header where one is expected; 1,024 bytes are skipped",
    )


def test_bytes_after_the_end_mark_are_reported_as_not_read(tmp_path: Path) -> None:
    found = _from_bytes(tmp_path, tar_of({"a.jpg": b"a"}) + tar_of({"b.jpg": b"b"}))

    assert _kinds(found) == ["", "archive_damaged"]


@pytest.mark.parametrize(
    ("kind", "flaw"),
    [
        (b"1", "member_is_link"),
        (b"2", "member_is_link"),
        (b"3", "not_a_regular_file"),
        (b"4", "not_a_regular_file"),
        (b"6", "not_a_regular_file"),
        (b"S", "member_not_supported"),
        (b"M", "member_not_supported"),
        (b"?", "member_not_supported"),
    ],
)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, kind: bytes, flaw: str) -> None:
    content = header(b"a.jpg", 0, kind=kind) + header(b"b.jpg", 1) + padded(b"b") + END

    found = _from_bytes(tmp_path, content)

    assert _kinds(found) == [flaw, ""]
    assert found[0][0].name == b"a.jpg"


@pytest.mark.parametrize(
    "name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "a/..", "x" * 5000, "a\0b.jpg", "//x.jpg"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert plain_name(name.encode()) is None


@pytest.mark.parametrize(
    ("name", "plain"),
    [("./a/./b.jpg", "a/b.jpg"), ("a//b.jpg", "a/b.jpg"), ("..a/b..jpg", "..a/b..jpg")],
)
def test_a_name_is_brought_to_one_form(name: str, plain: str) -> None:
    assert plain_name(name.encode()) == plain.encode()


@given(st.text(st.sampled_from("./ab"), max_size=12))
def test_no_plain_name_leaves_its_folder(name: str) -> None:
    plain = plain_name(name.encode())

    if plain is not None:
        assert os.path.normpath(b"/r/" + plain) in {b"/r", b"/r/" + plain.rstrip(b"/")}


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"00000000017\0", 15),
        (b"         17 ", 15),
        (b"17\0garbage..", 15),
        (b"\0" * 12, 0),
        (b" " * 12, 0),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), 1 << 40),
        (b"\xff" * 12, -1),
        (b"0x17\0\0\0\0\0\0\0\0", None),
        (b"-17\0\0\0\0\0\0\0\0\0", None),
        (b"89\0\0\0\0\0\0\0\0\0\0", None),
        (b"1_7\0\0\0\0\0\0\0\0\0", None),
    ],
)
def test_numbers_are_octal_or_of_base_256(field: bytes, number: int | None) -> None:
    assert parse_number(field) == number


@given(st.integers(0, (1 << 62) - 1))
def test_sizes_are_read_as_tarfile_writes_them(size: int) -> None:
    block = tarfile.TarInfo("x.jpg")
    block.size = size

    found = parse_header(memoryview(block.tobuf(tarfile.GNU_FORMAT)[:512]))

    assert found is not None
    assert found.num_bytes == size


def test_a_checksum_of_signed_bytes_is_taken_too() -> None:
    name = "ü.jpg".encode()

    assert parse_header(memoryview(header(name, signed=True)))
    assert header(name) != header(name, signed=True)


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_byte_makes_a_header_none(place: int, change: int) -> None:
    block = bytearray(header(b"a.jpg", 5))
    block[place] ^= change

    found = parse_header(memoryview(bytes(block)))

    if not 148 <= place < 156:  # the checksum itself may be written in several ways
        assert found is None


@given(st.dictionaries(st.sampled_from(["path", "size", "x"]), st.text("aä=\n", max_size=9)))
def test_pax_records_are_read_back(records: dict[str, str]) -> None:
    block = tarfile.TarInfo._create_pax_generic_header(records, b"x", "utf-8")
    size = parse_number(block[124:136])

    expected = {key.encode(): value.encode() for key, value in records.items()}
    assert parse_pax(block[512 : 512 + (size or 0)]) == expected


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_no_bytes_stop_the_pax_reader(content: bytes) -> None:
    parse_pax(content)


def test_a_size_that_pax_gives_counts(tmp_path: Path) -> None:
    record = b"11 size=5\n"
    record = b"%d size=5\n" % len(record)
    content = header(b"x", len(record), kind=b"x") + padded(record)
    content += header(b"a.jpg", 0) + padded(b"first") + END

    found = _from_bytes(tmp_path, content)

    assert [data for _, data in found] == [b"first"]


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_name_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    content = header(b"x", b"77777777777\0", kind=kind) + END

    found = _from_bytes(tmp_path, content)

    assert "archive_truncated" in _kinds(found)


def test_a_size_beyond_the_end_is_said_with_what_is_there(tmp_path: Path) -> None:
    found = _from_bytes(tmp_path, header(b"a.jpg", 1 << 30) + padded(b"short") + END)

    assert [member.flaw for member, _ in found] == [
        (ProblemKind.ARCHIVE_TRUNCATED, "has 1,536 of 1,073,741,824 bytes")
    ]


@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_gzip_file_is_unpacked_on_the_way(tmp_path: Path, num_parts: int) -> None:
    whole = tar_of({f"{i}.jpg": random.randbytes(5000) for i in range(50)})
    step = -(-len(whole) // num_parts)
    parts = [whole[start : start + step] for start in range(0, len(whole), step)]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(b"".join(gzip.compress(part) for part in parts))

    with ArchiveFile(str(path)) as file:
        window = Window(GzipStream(file.read_at), window_bytes=3000)
        found = [
            whole[member.offset :][:5000] == bytes(window.take(5000))
            for member in read_members(window)
        ]

    assert found == [True] * 50


def test_members_are_read_from_many_archives_by_many_threads(tmp_path: Path) -> None:
    contents = [random.randbytes(2000) for _ in range(20)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.tar").write_bytes(tar_of({"a.jpg": content}))
    reader = ImageReader(tmp_path, max_open=3)
    wrong: list[int] = []

    def read(start: int) -> None:
        for step in range(200):
            number = (start * 7 + step) % len(contents)
            if reader.read("x", f"{number}.tar", 512, 2000) != contents[number]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    before = _num_open()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert _num_open() - before <= 3


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, 25), (1024, 256), (1 << 20, 256), (resource.RLIM_INFINITY, 256), (3, 1)],
)
def test_archives_kept_open_stay_within_what_a_process_may_open(
    limit: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, limit))
    for number in range(2 * expected):
        (tmp_path / f"{number}.tar").write_bytes(tar_of({"a.jpg": b"a"}))
    reader, before = ImageReader(tmp_path), _num_open()

    for number in range(2 * expected):
        reader.read("x", f"{number}.tar", 512, 1)

    assert _num_open() - before == expected


def test_archives_are_closed_where_others_have_opened_too_many_files(tmp_path: Path) -> None:
    """120 class tars, and a limit that permits ten more descriptors."""
    for number in range(120):
        (tmp_path / f"{number}.tar").write_bytes(tar_of({"a.jpg": b"%03d" % number}))
    reader = ImageReader(tmp_path, max_open=256)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    try:
        found = [reader.read("x", f"{number}.tar", 512, 3) for number in (*range(120), *range(120))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert found == [b"%03d" % number for number in range(120)] * 2


def _num_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_an_archive_that_is_not_there_or_too_short_or_compressed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"a.jpg": b"a"}))
    (tmp_path / "z.tar").write_bytes(tar_of({"a.jpg": b"a"}, compressed=True))
    reader = ImageReader(tmp_path)

    for archive, offset, words in [
        ("b.tar", 512, "is not there"),
        ("a.tar", 1 << 20, "ends before"),
        ("z.tar", 512, "is compressed, and was not"),
    ]:
        with pytest.raises(ImageError, match=words):
            reader.read("x", archive, offset, 10)


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=30), st.data())
@settings(max_examples=150)
def test_no_bytes_stop_the_reader(changes: list[tuple[int, int]], data: st.DataObject) -> None:
    content = bytearray(tar_of({f"n/{i}.jpg": bytes([i]) * 700 for i in range(8)}))
    for place, value in changes:
        content[place % len(content)] = value
    content = content[: data.draw(st.integers(0, len(content)))]
    source = _Bytes(bytes(content))

    found = list(read_members(Window(source, window_bytes=2048)))

    assert len(found) <= len(content) // 512 + 1
    for member in found:
        assert member.flaw is not None or member.offset + member.num_bytes <= len(content)


class _Bytes:
    """A source in memory."""

    def __init__(self, content: bytes) -> None:
        self.num_bytes: int | None = len(content)
        self._content = content

    def read_into(self, view: memoryview, offset: int) -> int:
        return io.BytesIO(self._content[offset:]).readinto(view)

    def can_jump(self) -> bool:
        return True


def test_a_manifest_has_the_columns_of_a_locator() -> None:
    assert list(Locator._fields) == LOCATOR_COLUMNS


def test_a_storage_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"`n1/a\.jpg` is stored as `lzma`"):
        ImageReader(tmp_path).read("n1/a.jpg", "n1.tar", 512, 10, "lzma")


def test_first_bytes_are_those_of_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("short")
    os.mkfifo(tmp_path / "pipe")
    reader = ImageReader(tmp_path)

    assert reader.first_bytes("short", 2) == b"ab"
    assert reader.first_bytes("short", 24) == b"abc"
    for name in ("link", "pipe", "gone", "."):
        assert reader.first_bytes(name, 24) == b""


def test_a_compressed_tar_is_read_as_it_was_hashed(tmp_path: Path) -> None:
    content = tar_of({"a.jpg": b"one", "b.jpg": b"two"})
    (tmp_path / "n1.tar.gz").write_bytes(gzip.compress(content))
    where = ("n1/b.jpg", "n1.tar.gz", content.index(b"two"), 3)

    for unpacks in (False, True):
        reader = ImageReader(tmp_path, unpacks=unpacks)
        assert reader.read(*where, "gzip") == b"two"
        with pytest.raises(ImageError, match=r"`n1\.tar\.gz` is compressed, and was not"):
            reader.read(*where)
    (tmp_path / "n1.tar.gz").write_bytes(content)
    with pytest.raises(ImageError, match=r"`n1\.tar\.gz` is not compressed, and was"):
        ImageReader(tmp_path).read(*where, "gzip")
