"""Gzip files: unpacked by zlib and by rapidgzip alike, and read at random by an index."""

import gzip
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from zip_files import raw_deflate

from vit21k.errors import ImageError
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.container import ReadAt
from vit21k.sources.gzip_tar import (
    BombError,
    GzipIndex,
    GzipReader,
    GzipStream,
    IndexingStream,
    Point,
    StaleIndexError,
    unpack,
)

RNG = random.Random(0)
NOISE = RNG.randbytes(300_000)
TEXT = bytes(RNG.choices(b"abcdefgh \n", k=2_000_000))
MIXED = NOISE + TEXT + NOISE


Unpack = Callable[[Path], GzipStream | IndexingStream]


def _read_at(content: bytes) -> ReadAt:
    return lambda num_bytes, offset: content[offset : offset + num_bytes]


def _zlib(path: Path) -> GzipStream:
    return GzipStream(_read_at(path.read_bytes()))


def _rapidgzip(path: Path) -> IndexingStream:
    return IndexingStream(ArchiveFile(str(path)))


BOTH = [_zlib, _rapidgzip]


def _all_of(stream: GzipStream | IndexingStream) -> tuple[bytes, str]:
    """Return what a stream gives, and the error that ends it."""
    view = memoryview(bytearray(1 << 16))
    content = bytearray()
    try:
        while num_read := stream.read_into(view):
            content += view[:num_read]
    except (EOFError, zlib.error, BombError) as error:
        return bytes(content), type(error).__name__
    finally:
        stream.close()
    return bytes(content), ""


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(MIXED),
        gzip.compress(b""),
        gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(NOISE),
        gzip.compress(MIXED, 0) + bytes(1 << 19),  # padded
        b"".join(gzip.compress(MIXED[at : at + 9999]) for at in range(0, len(MIXED), 9999)),
    ],
    ids=["one", "empty", "three members", "padded", "many members"],
)
def test_unpacked_from_beginning_to_end(make: Unpack, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(packed)
    assert _all_of(make(path)) == (gzip.decompress(packed), "")


def _damaged(packed: bytes) -> list[bytes]:
    middle = bytearray(packed)
    middle[len(packed) // 2] ^= 0x10
    footer = bytearray(packed)
    footer[-6] ^= 1
    return [bytes(middle), bytes(footer), packed[:-1], packed[: len(packed) // 3], packed + b"x"]


@pytest.mark.parametrize("number", range(5))
def test_flaws_do_not_depend_on_what_is_installed(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(_damaged(gzip.compress(MIXED))[number])
    content, error = _all_of(_rapidgzip(path))
    assert (content, error) == _all_of(_zlib(path))
    assert error in {"error", "EOFError"}


@pytest.mark.parametrize("make", BOTH)
def test_a_bomb_is_detected_wherever_it_begins(make: Unpack, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(20)) + packer.flush()
    path.write_bytes(gzip.compress(NOISE * 8, 0) + bomb)
    content, error = _all_of(make(path))
    assert error == "BombError"
    assert len(content) < 3 << 26


def _index_of(path: Path) -> GzipIndex:
    stream = _rapidgzip(path)
    assert _all_of(stream)[1] == ""
    assert stream.index is not None
    return stream.index


@pytest.mark.parametrize("num_members", [1, 300])
def test_read_at_random_by_an_index(num_members: int, tmp_path: Path) -> None:
    content = MIXED * 6
    step = -(-len(content) // num_members)
    packed = b"".join(
        gzip.compress(content[at : at + step], 1) for at in range(0, len(content), step)
    )
    path, index_path = tmp_path / "a.gz", tmp_path / "a.index"
    path.write_bytes(packed)
    _index_of(path).save(index_path, "1 2")
    index = GzipIndex.load(index_path, "1 2")
    assert len(index) > 2
    assert index_path.stat().st_size < 200_000

    _check_reads(GzipReader(_read_at(packed), index), content)


@pytest.mark.parametrize("num_members", [1, 300])
def test_read_at_random_without_an_index(num_members: int) -> None:
    content = NOISE * 40
    step = -(-len(content) // num_members)
    members = [content[at : at + step] for at in range(0, len(content), step)]
    packed = b"".join(gzip.compress(member, 1) for member in members)
    num_read = 0

    def read_at(num_bytes: int, offset: int) -> bytes:
        nonlocal num_read
        num_read += num_bytes
        return packed[offset : offset + num_bytes]

    reader = GzipReader(read_at, None, len(packed))
    _check_reads(reader, content)

    num_read = 0
    for offset in range(len(content) - 1, 0, -1_000_000):
        assert reader.read(offset, 1) == content[offset : offset + 1]
    assert num_read < 12 * 5_000_000  # from the states: not from the beginning


def _check_reads(reader: GzipReader, content: bytes) -> None:
    """Read with several threads at random."""
    rng = random.Random(1)

    def read_some() -> None:
        for _ in range(30):
            offset = rng.randrange(len(content))
            num_bytes = min(rng.choice((1, 999, 100_000)), len(content) - offset)
            assert reader.read(offset, num_bytes) == content[offset : offset + num_bytes]

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(read_some) for _ in range(4)]:
            done.result()
    assert reader.read(0, len(content)) == content


@pytest.mark.parametrize("num_bits", range(8))
def test_a_stream_begins_at_any_bit(num_bits: int) -> None:
    letters = bytes(random.Random(2).choices(range(100), k=1000))  # hardly any repeats
    ends = range(500, 1000)
    content = next(letters[:end] for end in ends if raw_deflate(letters[:end])[-1] >= 0x80)
    stream = raw_deflate(content)  # of whole bytes: its last bit is 1
    footer = struct.pack("<II", zlib.crc32(content), len(content))
    shift = (8 - num_bits) % 8
    bits = int.from_bytes(stream, "little") << shift | (1 << shift) - 1  # others come before
    shifted = bits.to_bytes(len(stream) + (shift > 0), "little")
    packed = b"\xee" + shifted + footer + gzip.compress(b"the next member")
    point = Point(0, 2 if num_bits else 1, num_bits, b"")

    stream_at_point = GzipStream(_read_at(packed), point)

    assert stream_at_point.take(len(content)) == content
    assert stream_at_point.take(15) == b"the next member"
    assert not stream_at_point.read(1)


def test_neighbours_are_read_without_beginning_again() -> None:
    packed = gzip.compress(TEXT)
    num_read = 0

    def read_at(num_bytes: int, offset: int) -> bytes:
        nonlocal num_read
        num_read += 1
        return packed[offset : offset + num_bytes]

    reader = GzipReader(read_at, GzipIndex())
    for offset in range(0, len(TEXT), 50_000):
        assert reader.read(offset, 50_000) == TEXT[offset : offset + 50_000]
    assert num_read < 2 + len(packed) // (1 << 18) + 1


def test_a_small_file_is_unpacked_by_zlib(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"small"))
    assert isinstance(unpack(ArchiveFile(str(path))), GzipStream)


@pytest.mark.parametrize("number", range(4))
def test_a_damaged_file_read_at_random_is_an_error(number: int) -> None:
    packed = _damaged(gzip.compress(TEXT))[number]
    with pytest.raises(ImageError) as caught:
        GzipReader(_read_at(packed), GzipIndex()).read(len(TEXT) - 1, 2)
    assert "vit21k hash" in (caught.value.hint or "")


def _index(*points: Point) -> bytes:
    """Return an index as gztool writes it."""
    content = struct.pack(">8s8sQQ", bytes(8), b"gzipindx", len(points), len(points))
    for unpacked, packed, num_bits, window in points:
        content += struct.pack(">QQII", unpacked, packed, num_bits, len(window)) + window
    return content + struct.pack(">Q", 1 << 22)


POINTS = [
    Point(0, 10, 0, b""),
    Point(1 << 20, 999, 3, zlib.compress(b"window")),
    Point(1 << 21, 2000, 0, b""),
]


def test_an_index_is_of_one_version_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.index"
    GzipIndex(_index(*POINTS)).save(path, "5 7")

    index = GzipIndex.load(path, "5 7")

    packed = [index.before(offset).packed for offset in (0, (1 << 20) - 1, 1 << 20, 1 << 30)]
    assert packed == [0, 0, 999, 2000]
    with pytest.raises(StaleIndexError, match="another version"):
        GzipIndex.load(path, "5 8")


def test_a_damaged_index_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    GzipIndex(_index(*POINTS)).save(path, "")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + b"?" + content[place + 1 :])
        with pytest.raises(StaleIndexError):
            GzipIndex.load(path, "")
    path.write_bytes(b"")
    with pytest.raises(StaleIndexError):
        GzipIndex.load(path, "")


@pytest.mark.parametrize("content", [b"", _index(*POINTS[::-1]), _index(*POINTS)[:70], bytes(99)])
def test_a_malformed_index_is_refused(content: bytes) -> None:
    with pytest.raises(StaleIndexError):
        GzipIndex(content)
