"""Members of zips: what other programs write is read, what is wrong is listed."""

import io
import shutil
import struct
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from zip_files import Entry, raw_deflate, zip_of

from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.sources.zip import DEFLATE, ZipMember, read_deflated, read_zip_members

TEXT = b"the quick brown fox " * 40
NOISE = bytes(range(256)) * 3
FILES = {"n1/a.jpg": TEXT, "n1/b.jpg": NOISE, "n2/c.jpg": b"x", "d.jpg": TEXT + NOISE}


def _read(content: bytes) -> list[ZipMember]:
    members = read_zip_members(io.BytesIO(content))  # type: ignore[arg-type]
    return [member._replace(content=bytes(member.content)) for member in members]


def _check_files(content: bytes, files: dict[str, bytes] = FILES) -> None:
    """Check that the members are *files*, and are read at their offsets."""
    found = _read(content)
    assert {member.name.decode(): member.content for member in found} == files
    for member in found:
        assert member.flaw is None
        if member.storage == DEFLATE:
            again = read_deflated(_read_at(content), member.offset, member.num_bytes)
        else:
            again = content[member.offset : member.offset + member.num_bytes]
        assert again == member.content


def _read_at(content: bytes):  # type: ignore[no-untyped-def]
    return lambda num_bytes, offset: content[offset : offset + num_bytes]


def _flaw(content: bytes) -> tuple[ProblemKind, str]:
    (member,) = _read(content)
    assert member.flaw is not None
    assert member.content == b""
    return member.flaw


def _written_by_zipfile(target: io.BytesIO, method: int, *, is_64: bool = False) -> None:
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.mkdir("n1")
        for name, content in FILES.items():
            with archive.open(name, "w", force_zip64=is_64) as member:
                member.write(content)


class _Pipe(io.BytesIO):
    """Cannot seek, so that sizes come after the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("is_64", [False, True])
@pytest.mark.parametrize("target", [io.BytesIO, _Pipe])
def test_what_zipfile_writes(method: int, is_64: bool, target: type[io.BytesIO]) -> None:
    out = target()
    _written_by_zipfile(out, method, is_64=is_64)
    _check_files(out.getvalue())
    _check_files(b"#!/bin/sh\n" * 99 + out.getvalue())  # unpacks itself


@pytest.mark.parametrize(
    "command",
    [
        ["zip", "-qr", "-0", "out.zip", "."],
        ["zip", "-qr", "-9", "out.zip", "."],
        ["zip", "-qr", "-fz", "out.zip", "."],  # zip64 throughout
        ["7zz", "a", "-tzip", "-mx=9", "out.zip", "."],
        ["7z", "a", "-tzip", "-mx=0", "out.zip", "."],
        ["jar", "--create", "--no-manifest", "--file", "out.zip", "."],
        ["bsdtar", "-a", "-cf", "out.zip", "."],
    ],
    ids=" ".join,
)
def test_what_other_programs_write(command: list[str], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    _check_files((tmp_path / "out.zip").read_bytes())


def test_members_are_in_the_order_of_their_offsets() -> None:
    first = Entry(b"a.jpg", b"first")
    num_bytes = len(zip_of(first)) - len(zip_of(Entry(b"a.jpg")))
    second = Entry(b"b.jpg", b"2", header_at=30 + len(b"a.jpg") + num_bytes)
    in_order = zip_of(first, second)
    listed_first = zip_of(
        Entry(b"b.jpg", b"2", writes=False, header_at=second.header_at),
        first,
        Entry(b"b.jpg", b"2"),
    )
    assert [member.name for member in _read(in_order)] == [b"a.jpg", b"b.jpg"]
    names = [(member.name, member.flaw is None) for member in _read(listed_first)]
    assert names == [(b"a.jpg", True), (b"b.jpg", False), (b"b.jpg", True)]


def test_what_is_not_wanted_is_not_read() -> None:
    content = zip_of(Entry(b"a.txt", b"text", crc=0), Entry(b"a.jpg", b"image"))
    members = read_zip_members(io.BytesIO(content), lambda name: name.endswith(b".jpg"))  # type: ignore[arg-type]
    assert [(m.name, m.flaw, bytes(m.content)) for m in members] == [
        (b"a.txt", None, b""),
        (b"a.jpg", None, b"image"),
    ]


_UNICODE_PATH = struct.pack("<HHBI", 0x7075, 5 + 6, 1, zlib.crc32(b"\x84.jpg")) + "ü.jpg".encode()


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (Entry("ä.jpg".encode(), flags=1 << 11), "ä.jpg"),
        (Entry(b"\x84.jpg"), "ä.jpg"),
        (Entry(b"\x84.jpg", system=0), "ä.jpg"),
        (Entry("ä.jpg".encode(), system=3), "ä.jpg"),
        (Entry("ä.jpg".encode(), system=0), "├ñ.jpg"),
        (Entry(b"\x84.jpg", extra=_UNICODE_PATH), "ü.jpg"),
        (Entry(b"\x81.jpg", extra=_UNICODE_PATH), "ü.jpg"),  # its CRC is that of another name
        (Entry(b"n1\\a.jpg", system=0), "n1/a.jpg"),
        (Entry(b"n1\\a.jpg", system=3), "n1\\a.jpg"),
        (Entry(b"./n1//a.jpg"), "n1/a.jpg"),
    ],
)
def test_names(entry: Entry, name: str) -> None:
    entry.content = b"image"
    (member,) = _read(zip_of(entry))
    assert (member.name.decode(), member.flaw) == (name, None)


@pytest.mark.parametrize(
    ("entry", "kind", "detail"),
    [
        (Entry(b"../a.jpg", b"x"), ProblemKind.UNSAFE_NAME, ""),
        (Entry(b"/a.jpg", b"x"), ProblemKind.UNSAFE_NAME, ""),
        (Entry(b"a\0.jpg", b"x"), ProblemKind.UNSAFE_NAME, ""),
        (Entry(b"", b"x"), ProblemKind.UNSAFE_NAME, ""),
        (Entry(b"a.jpg", b""), ProblemKind.EMPTY, ""),
        (Entry(b"a.jpg", b"x", flags=1), ProblemKind.MEMBER_NOT_SUPPORTED, "encrypted"),
        (Entry(b"a.jpg", b"x", method=9), ProblemKind.MEMBER_NOT_SUPPORTED, "deflate64"),
        (Entry(b"a.jpg", b"x", method=12), ProblemKind.MEMBER_NOT_SUPPORTED, "bzip2"),
        (Entry(b"a.jpg", b"x", method=93), ProblemKind.MEMBER_NOT_SUPPORTED, "zstd"),
        (Entry(b"a.jpg", b"x", method=77), ProblemKind.MEMBER_NOT_SUPPORTED, "method 77"),
        (Entry(b"a.jpg", b"x", mode=0o120777), ProblemKind.MEMBER_IS_LINK, "symbolic"),
        (Entry(b"a.jpg", b"x", mode=0o010644), ProblemKind.NOT_A_REGULAR_FILE, ""),
        (Entry(b"a.jpg", b"x", num_bytes=1 << 33), ProblemKind.MEMBER_TOO_LARGE, "8,589,934,592"),
        (Entry(b"a.jpg", b"x", crc=1), ProblemKind.ARCHIVE_DAMAGED, "CRC"),
        (Entry(b"a.jpg", b"x", num_bytes=2), ProblemKind.ARCHIVE_DAMAGED, "1 of 2 bytes"),
        (Entry(b"a.jpg", b"xy", num_bytes=1), ProblemKind.ARCHIVE_DAMAGED, "2 of 1 bytes"),
        (Entry(b"a.jpg", b"x", packed_bytes=2), ProblemKind.ARCHIVE_DAMAGED, "overlap"),
        (Entry(b"a.jpg", TEXT, 8, num_bytes=9), ProblemKind.ARCHIVE_DAMAGED, "inflate to 9 bytes"),
        (Entry(b"a.jpg", TEXT, 8, num_bytes=999), ProblemKind.ARCHIVE_DAMAGED, "of 999 bytes"),
        (Entry(b"a.jpg", TEXT, 8, data=b"\xff"), ProblemKind.ARCHIVE_DAMAGED, "invalid"),
        (Entry(b"a.jpg", b"x", local_name=b"b.jpg"), ProblemKind.ARCHIVE_DAMAGED, "`b.jpg`"),
        (Entry(b"a.jpg", b"x", header_at=2), ProblemKind.ARCHIVE_DAMAGED, "overlap"),
        (Entry(b"a.jpg", b"xx" * 99, header_at=9), ProblemKind.ARCHIVE_DAMAGED, "no header"),
        (Entry(b"a.jpg", b"x", header_at=1 << 31), ProblemKind.ARCHIVE_DAMAGED, "overlap"),
    ],
)
def test_what_is_wrong_with_a_member(entry: Entry, kind: ProblemKind, detail: str) -> None:
    found = _flaw(zip_of(entry))
    assert found[0] is kind
    assert detail in found[1]


def test_a_member_behind_a_flawed_one_is_read() -> None:
    flawed, good = _read(zip_of(Entry(b"a.jpg", TEXT, 8, crc=1), Entry(b"b.jpg", TEXT, 8)))
    assert flawed.flaw is not None
    assert (good.content, good.flaw) == (TEXT, None)


@pytest.mark.parametrize(
    ("content", "kind", "detail"),
    [
        (b"", ProblemKind.EMPTY, ""),
        (b"no zip" * 99, ProblemKind.ARCHIVE_DAMAGED, "not a zip"),
        (zip_of(Entry(b"a.jpg", b"x"))[:-9], ProblemKind.ARCHIVE_TRUNCATED, "no directory"),
        (zip_of(Entry(b"a.jpg", b"x"))[9:], ProblemKind.ARCHIVE_DAMAGED, "where it should be"),
        (
            zip_of(Entry(b"a.jpg", b"x")).replace(b"PK\5\6\0\0", b"PK\5\6\1\0"),
            ProblemKind.ARCHIVE_NOT_SUPPORTED,
            "zip -s 0",
        ),
        (
            zip_of(Entry(b"a.jpg", b"x"), is_64=True).replace(b"PK\6\6", b"PK\6\5"),
            ProblemKind.ARCHIVE_DAMAGED,
            "zip64",
        ),
    ],
)
def test_what_is_wrong_with_a_zip(content: bytes, kind: ProblemKind, detail: str) -> None:
    found = _flaw(content)
    assert found[0] is kind
    assert detail in found[1]


def test_a_directory_with_another_number_of_members_is_detected() -> None:
    member, flaw = _read(zip_of(Entry(b"a.jpg", b"x"), num_members=2))
    assert member.content == b"x"
    assert flaw.flaw is not None
    assert "has 1 members, and says 2" in flaw.flaw[1]


def test_an_end_in_the_comment_is_not_the_end() -> None:
    inner = zip_of(Entry(b"inner.jpg", b"x"))
    (member,) = _read(zip_of(Entry(b"outer.jpg", b"y"), comment=inner[-22:] + b"more"))
    assert member.name == b"outer.jpg"


def test_a_bomb_of_overlapping_members_is_listed_at_once() -> None:
    kernel = raw_deflate(bytes(1 << 24))
    body = zip_of(Entry(b"0.jpg", bytes(1 << 24), 8, data=kernel))
    overlapping = [Entry(b"%d.jpg" % i, bytes(1 << 10), 8, header_at=0) for i in range(999)]
    for entry in overlapping:
        entry.writes, entry.packed_bytes, entry.data = False, len(kernel), b""
    first = Entry(b"0.jpg", bytes(1 << 24), 8, data=kernel)
    started = time.process_time()
    found = _read(zip_of(first, *overlapping))
    assert len(body) < 1 << 15
    assert sum(member.flaw is not None for member in found) >= 999
    assert time.process_time() - started < 1


def test_a_bomb_that_declares_what_it_is_is_not_inflated() -> None:
    kernel = raw_deflate(bytes(1 << 20))
    entries = [Entry(b"%d.jpg" % i, b"", 8, data=kernel, num_bytes=1 << 28) for i in range(40)]
    kind, detail = _flaw(zip_of(*entries))  # 10 GB in 45 kB
    assert kind is ProblemKind.ARCHIVE_BOMB
    assert f"{40 << 28:,}" in detail


@pytest.mark.parametrize("is_64", [False, True])
def test_truncated_at_every_byte(is_64: bool) -> None:
    content = zip_of(Entry(b"a.jpg", TEXT, 8), Entry(b"b.jpg", NOISE), is_64=is_64)
    for end in range(len(content)):
        assert any(member.flaw for member in _read(content[:end]))
    assert not any(member.flaw for member in _read(content))


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xff\xff", raw_deflate(TEXT)[:-5], raw_deflate(TEXT[1:]), raw_deflate(TEXT + b"1")],
)
def test_a_stream_that_inflates_to_something_else_is_an_error(packed: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read_deflated(_read_at(packed), 0, len(TEXT))
    assert "vit21k hash" in (caught.value.hint or "")


def test_a_long_stream_is_inflated_in_steps() -> None:
    content = bytes(1 << 20) + zlib.compress(bytes(1 << 20)) * 900
    packed = b"before" + raw_deflate(content, 1) + b"after"
    assert read_deflated(_read_at(packed), 6, len(content)) == content
