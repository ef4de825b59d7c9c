"""`scan.c` against Python: the same digests, facts and manifests, on anything it is given."""

import ctypes
import mmap
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import jpeg_kinds
import malformed_images
import numpy as np
import pytest
import xxhash

from vit21k._native import NoExtensionError
from vit21k.prep import scan as module
from vit21k.prep.file_digest import (
    BUFFER_BYTES,
    PROBE_BYTES,
    WHOLE_BYTES,
    FileDigest,
    FileReader,
    image_facts,
)
from vit21k.prep.hash_chunks import ChunkHasher, hash_in_threads
from vit21k.prep.hash_tree import chunks_of, hash_tree
from vit21k.prep.scan import DONE, ROW, ChunkFiles, CompiledReader, FileRows, compiled_reader

NUM_MUTATED = 3_000
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


@pytest.fixture(scope="module")
def library(native_extension: ctypes.CDLL) -> ctypes.CDLL:
    return native_extension


@pytest.fixture
def compiled(library: ctypes.CDLL) -> CompiledReader:
    return CompiledReader(library)


@pytest.mark.parametrize("way", [-1, 0, 1, 2])  # the quickest, plain C, AVX2, AVX-512
def test_digests_are_those_of_the_module_xxhash(library: ctypes.CDLL, way: int) -> None:
    random_ = random.Random(way)
    content = bytearray(random_.randbytes(300_000))
    start = ctypes.addressof((ctypes.c_char * len(content)).from_buffer(content))
    digest = ctypes.create_string_buffer(16)
    library.digest_bytes.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    sizes = [*range(5_001), *(random_.randrange(5_001, 290_000) for _ in range(100))]

    for size in sizes:
        place = random_.randrange(65)
        library.digest_bytes(start + place, size, way, digest)
        assert digest.raw == xxhash.xxh3_128_digest(content[place : place + size]), (size, place)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2, "big") + body


def _with_odd_segments(content: bytes, random_: random.Random) -> bytes:
    """Return a JPEG with some segments after its start marker that may be kept or dropped."""
    some = [
        _segment(0xFE, b"made by a camera"),
        _segment(0xE1, b"Exif\0\0" + bytes(300)),
        _segment(0xE2, b"ICC_PROFILE\0\x01\x01"),
        _segment(0xE2, b"MPF\0"),
        _segment(0xE2, b"ICC_PROFIL"),
        _segment(0xEE, b"Adobe\0d"),
        _segment(0xEE, b"Ado"),
        b"\xff\xff\xff",
        b"\xff\x01\xff\xd3",
        _segment(0xC4, bytes(20)),
        _segment(0xC1, bytes([8, 1, 2, 0, 3, 4])),
        _segment(0xC0, b"\x08"),
        b"\xff\xe5\0\0",
        b"\xff\xfe\xff\xff",
        b"\xff\xfe\0\x01",
        b"\xff\0",
        b"junk",
        _segment(0xEE, b"Adobe\0d\0\0\0\0\x01"),
        _segment(0xE0, b"JFIF\0"),
    ]
    return content[:2] + b"".join(random_.choices(some, k=random_.randrange(6))) + content[2:]


def _hostile() -> Iterator[bytes]:
    """Yield JPEGs with unusual headers, complete and mutated, and other content."""
    random_ = random.Random(7)
    whole = [malformed_images.encoded(size=8), malformed_images.encoded("L", size=8)]
    for number in range(NUM_MUTATED):
        content = bytearray(_with_odd_segments(random_.choice(whole), random_))
        for _ in range(random_.randrange(4)):
            content[random_.randrange(min(len(content), 200))] = random_.choice(
                (0xFF, 0xDA, 0xE2, 0xC0, 0, 1, 2, random_.randrange(256))
            )
        if number % 5 == 0:
            del content[random_.randrange(len(content)) :]
            content += b"\xff\xd9"
        yield bytes(content)
    yield from malformed_images.mutated(300, seed=8)
    yield from (b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xda\xff\xd9")


def test_facts_of_hostile_files_are_those_of_python(library: ctypes.CDLL) -> None:
    num_done = 0
    for content in _hostile():
        found = _described(library, content)
        if found is not None:
            num_done += 1
            assert found.facts == image_facts(content, memoryview(content))
            assert found.digest == xxhash.xxh3_128_digest(content)
    assert num_done > NUM_MUTATED * 0.9


def _others() -> dict[str, bytes]:
    """Return images of other formats, and JPEGs that need more than the fast path once did."""
    encoded = malformed_images.encoded
    png, gif, webp = encoded("RGB", "PNG"), encoded("P", "GIF"), encoded("RGB", "WEBP")
    cmyk = encoded("CMYK")
    adobe_end = cmyk.index(b"Adobe") + 11
    return {
        "PNG with a chunk after its end": png + b"\0\0\0\x04vpAg" + bytes(90),
        "PNG that is cut": png[:-12],
        "PNG of another header": png.replace(b"IHDR", b"CgBI"),
        "GIF with a frame beyond its screen": gif[:6] + b"\1\0\1\0" + gif[10:],
        "GIF with bytes after its end": gif + b"\0",
        "GIF with extensions": gif[:6] + b"\x40\0\x40\0\0\0\0!\xfe\x03abc\x02de\0\0\0" + gif[13:],
        "WebP, lossless": encoded("RGB", "WEBP", lossless=True),
        "WebP with alpha": encoded("RGBA", "WEBP"),
        "WebP that is cut": webp[:-9],
        "BMP of OS/2": b"BM" + bytes(12) + b"\x0c\0\0\0\x30\0\x20\0" + bytes(90),
        "BMP from the top": b"BM" + bytes(12) + b"\x28\0\0\0\x30\0\0\0\xe0\xff\xff\xff" + bytes(90),
        "TIFF with a palette": encoded("P", "TIFF"),
        "TIFF of big-endian numbers": encoded(
            "RGB", "TIFF", big_tiff=False, tiffinfo={270: "words"}
        ),
        "BigTIFF": encoded("L", "TIFF", big_tiff=True),
        "JPEG 2000": encoded("RGB", "JPEG2000"),
        "YCCK": cmyk[:adobe_end] + b"\x02" + cmyk[adobe_end + 1 :],
        "large EXIF": b"".join([cmyk[:2], _segment(0xE1, bytes(65_000)) * 3, cmyk[2:]]),
        **{f"a {kind}": content for kind, content in _in_formats().items()},
    }


def _in_formats() -> dict[str, bytes]:
    formats = ("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG")
    return {
        f"{image_format} in {mode}": malformed_images.encoded(mode, image_format)
        for image_format in formats
        for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1")
        if (image_format, mode) in _WRITABLE
    }


_WRITABLE = {
    *(("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1")),
    *(("GIF", mode) for mode in ("RGB", "L", "P", "1")),
    *(("WEBP", mode) for mode in ("RGB", "L", "RGBA")),
    *(("BMP", mode) for mode in ("RGB", "L", "P", "RGBA", "1")),
    *(("TIFF", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1")),
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
}

KINDS = {
    **_others(),
    **{name: content for name, content in jpeg_kinds.UNUSUAL.items() if "gzip" not in name},
}


def _described(library: ctypes.CDLL, content: bytes) -> FileDigest | None:
    """Return the facts that the compiled code finds in *content*; None if Python must read it."""
    library.describe_bytes.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
    data = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
    row = np.zeros(1, ROW)
    is_done = library.describe_bytes(data, len(content), row.ctypes.data)
    assert bytes(data) == content  # it is written to, and restored
    return FileRows(row)[0] if is_done else None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_done_in_c_as_python_does_it(library: ctypes.CDLL, kind: str) -> None:
    content = KINDS[kind]

    found = _described(library, content)

    assert found is not None
    assert found.facts == image_facts(content, memoryview(content))
    assert found.digest == xxhash.xxh3_128_digest(content)


def test_mutated_images_of_every_kind_are_described_as_python_does_it(
    library: ctypes.CDLL,
) -> None:
    random_ = random.Random(9)
    kinds = list(KINDS.values())
    num_done = 0
    for number in range(NUM_MUTATED):
        content = jpeg_kinds.mutated(random_, random_.choice(kinds))
        if number % 3 == 0:
            content = content[: random_.randrange(len(content))]
        found = _described(library, content)
        if found is not None:
            num_done += 1
            assert found.facts == image_facts(content, memoryview(content)), content[:200]
    assert num_done > NUM_MUTATED * 0.8


_TEXTS = (b"<html>", b"\r\n <!doctype", b"%PDF-1", b"PK\3\4", b"\x1f\x8b", b"P6 3 4 255\n")


@pytest.mark.parametrize("content", [*(text * 40 for text in _TEXTS), b"", b"GIF89a"])
def test_text_and_tiny_files_are_left_to_python(library: ctypes.CDLL, content: bytes) -> None:
    assert _described(library, content) is None


def _tricky(folder: Path) -> list[bytes]:
    """Make files of all sorts and sizes; return their names."""
    jpeg = malformed_images.encoded(size=8)
    padding = _segment(0xFE, bytes(4_000))
    contents = dict(enumerate(_hostile()))
    sizes = (PROBE_BYTES, 2 * PROBE_BYTES - 1, 2 * PROBE_BYTES, 2 * PROBE_BYTES + 1, 20_000)
    sizes += (BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1)
    for size in sizes:
        long = jpeg[:2] + padding * (size // 4_000 - 1) + jpeg[2:-2]
        (folder / f"size {size}.jpg").write_bytes(long.ljust(size - 2, b"\0") + b"\xff\xd9")
    for number in range(0, len(contents), 37):
        (folder / f"{number}.JPEG").write_bytes(contents[number])
    (folder / "a jpeg.png").write_bytes(jpeg)
    (folder / "a gif.jpeg").write_bytes(malformed_images.encoded("P", "GIF"))
    (folder / "page.jpg").write_bytes(b"<html>" + bytes(20_000))
    (folder / "pipe.jpg").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "link.jpg").symlink_to("size 20000.jpg")
    (folder / "\udcff odd\n.jpg").write_bytes(jpeg)
    return [*sorted(map(os.fsencode, os.listdir(folder))), b"gone.jpg"]  # noqa: PTH208


@pytest.mark.parametrize("only_ends", [False, True])
@pytest.mark.parametrize("flags", [FLAGS, FLAGS & ~os.O_NOFOLLOW])
def test_files_that_are_done_are_as_python_says_and_images_are_done(
    compiled: CompiledReader, tmp_path: Path, flags: int, *, only_ends: bool
) -> None:
    reader = FileReader("xxh3_128", flags)
    folder = os.open(tmp_path, os.O_RDONLY)
    files = ChunkFiles(folder, _tricky(tmp_path))

    compiled.read(files, flags, only_ends=only_ends)

    for name, found, is_done in zip(
        files.names, FileRows(files.rows), files.are_done.tolist(), strict=True
    ):
        expected = (reader.probe if only_ends else reader.digest)(name, folder)
        assert not is_done or found == expected, name
        has_followed = name == b"link.jpg" and not flags & os.O_NOFOLLOW
        is_other = name.endswith((b".png", b".jpeg"))
        size = int(name[5:-4]) if name.startswith(b"size") else 0 if is_other else WHOLE_BYTES
        assert not (has_followed or size < WHOLE_BYTES) or is_done, name
    assert files.are_done.sum() > 30
    os.close(folder)


def test_no_descriptor_is_left_open(compiled: CompiledReader, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    files = ChunkFiles(folder, _tricky(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))

    for only_ends in (False, True):
        compiled.prefetch(files, FLAGS, only_ends=only_ends)
        compiled.read(files, FLAGS, only_ends=only_ends)
        files.states[:] = 0

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(folder)


def test_files_are_as_their_rows_say_until_anything_changes(
    compiled: CompiledReader, tmp_path: Path
) -> None:
    for name in "abcdefgh":
        (tmp_path / f"{name}.jpg").write_bytes(malformed_images.encoded(size=8))
    folder = os.open(tmp_path, os.O_RDONLY)
    files = ChunkFiles(folder, [os.fsencode(f"{name}.jpg") for name in "abcdefgh"])
    compiled.read(files, FLAGS, only_ends=False)
    assert files.are_done.all()
    (tmp_path / "b.jpg").unlink()
    os.utime(tmp_path / "c.jpg", ns=(1, 1))
    (tmp_path / "d.jpg").write_bytes(b"shorter")
    (tmp_path / "e.jpg").chmod(0o600)
    (tmp_path / "e.jpg").chmod(0o644)
    (tmp_path / "f.jpg").rename(tmp_path / "f")
    (tmp_path / "f.jpg").symlink_to("f")

    for by_all in (True, False):
        files.states[:] = 0
        compiled.check(files, FLAGS, by_all=by_all)
        in_c = files.states.copy()
        files.states[:] = 0
        files.check(follow_symlinks=False, by_all=by_all)

        assert in_c.tolist() == files.states.tolist()
        done = [name for name, state in zip("abcdefgh", in_c, strict=True) if state == DONE]
        assert "".join(done) == ("agh" if by_all else "aegh")
    os.close(folder)


@pytest.mark.parametrize(
    "odd", ["folder/", "archive.tar", "archive.tgz", "link", "x" * 200 + " many", "no such folder"]
)
def test_folders_are_listed_if_there_are_plain_files_only(
    compiled: CompiledReader, tmp_path: Path, odd: str
) -> None:
    names = sorted(os.fsencode(f"{number:3} \udcff\n.jpg") for number in range(40))
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    assert sorted(compiled.list_files(os.fsencode(tmp_path)) or []) == names

    folder = tmp_path
    if odd.endswith("/"):
        (tmp_path / odd).mkdir()
    elif odd == "link":
        (tmp_path / odd).symlink_to("nothing")
    elif odd.endswith("many"):
        for number in range(BUFFER_BYTES // 200):
            (tmp_path / f"{odd} {number}").touch()
    elif odd.startswith("archive"):
        (tmp_path / odd).touch()
    else:
        folder = tmp_path / odd

    assert compiled.list_files(os.fsencode(folder)) is None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / "tree" / f"n{number}").mkdir(parents=True)
        _tricky(tmp_path / "tree" / f"n{number}")
    (tmp_path / "tree" / "n3").mkdir()
    (tmp_path / "tree" / "n3" / "unlike others.jpg").write_bytes(
        malformed_images.encoded(size=48, quality=30) + bytes(30_000) + b"\xff\xd9"
    )
    return tmp_path / "tree"


@pytest.mark.parametrize("mode", ["full", "quick"])
@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_manifests_are_the_same_with_and_without_the_compiled_part(
    library: ctypes.CDLL,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    *,
    follow_symlinks: bool,
) -> None:
    found = {}
    for way in ("compiled", "python"):
        if way == "python":
            monkeypatch.setattr(module, "compiled_reader", lambda: (None, "not here"))
        for number_of_run in ("first", "again"):
            summary = hash_tree(tree, tmp_path / way, mode=mode, follow_symlinks=follow_symlinks)  # type: ignore[call-overload]
            found[way, number_of_run] = [
                summary.num_files,
                summary.num_bytes,
                summary.num_without_digest,
                summary.problems,
                (tmp_path / way / "digests.parquet").read_bytes(),
                (tmp_path / way / "problems.parquet").read_bytes(),
            ]

    assert len({str(each) for each in found.values()}) == 1
    assert found["compiled", "first"][0] > 100


def test_without_the_extension_python_does_it_and_the_reason_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise NoExtensionError("was not built")

    monkeypatch.setattr(module, "extension", missing)

    assert compiled_reader.__wrapped__() == (None, "was not built")


def test_an_older_extension_is_refused(library: ctypes.CDLL) -> None:
    class Older:
        def __getattr__(self, name: str) -> object:
            if name == "scan_version":
                raise AttributeError(name)
            return getattr(library, name)

    with pytest.raises(NoExtensionError, match="another version"):
        CompiledReader(Older())  # type: ignore[arg-type]


def test_images_mapped_from_a_file_are_not_written_to(
    compiled: CompiledReader, tmp_path: Path
) -> None:
    content = malformed_images.encoded("RGB", comment=b"it is moved")
    (tmp_path / "a.jpg").write_bytes(content)

    with (
        (tmp_path / "a.jpg").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        found = compiled.describe(view, 5)

    assert found == compiled.describe(memoryview(bytearray(content)), 5)
    assert found is not None


def test_other_algorithms_are_left_to_python(tmp_path: Path) -> None:
    assert ChunkHasher(os.fsencode(tmp_path), algorithm="md5").compiled is None


def test_a_digester_finds_the_compiled_part_of_the_machine_it_comes_to(
    library: ctypes.CDLL, tree: Path
) -> None:
    hasher = ChunkHasher(os.fsencode(tree), algorithm="xxh3_128")

    again = pickle.loads(pickle.dumps(hasher))

    assert again.compiled is hasher.compiled is not None
    first, other = (
        [chunk.files for chunk in hash_in_threads(each, chunks_of(each), 2)]
        for each in (hasher, again)
    )
    assert first == other
