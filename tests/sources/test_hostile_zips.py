"""300 hostile zips and compressed tars: no crash, no hang, nothing outside, each with a problem.

They are good ones with random changes to their bytes, truncated at every block, and zips with
records that no honest program writes: wrong sizes, offsets and counts, `..` in names, overlapping
members, 10 GB in a kilobyte.
"""

import gzip
import io
import random
import resource
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from tar_files import tar_of
from zip_files import Entry, raw_deflate, zip_of

from vit21k.manifest.io import read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.sources.read import ImageReader, Locator

NUM_ARCHIVES = 300
BLOCK_BYTES = 512
SMOOTH = bytes(range(256)) * 8
FILES = {f"n{i % 2}/{i}.jpg": bytes([i]) + SMOOTH for i in range(5)}
NAMES = [b"n0/a.jpg", b"../../evil.jpg", b"/tmp/evil.jpg", b"n0/../../e.jpg", b"n0/b.jpg", b""]
NUMBERS = [0, 1, 5, 1 << 16, 0xFFFFFFFF, 1 << 33, (1 << 64) - 1]
BOMB = raw_deflate(bytes(1 << 20))


def _good_zip(rng: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as zip_:
        for name, content in FILES.items():
            with zip_.open(name, "w", force_zip64=rng.random() < 0.3) as member:
                member.write(content)
    return out.getvalue()


def _mutated(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        place = rng.randrange(len(changed))
        if rng.random() < 0.6:  # in the directory, at the end
            place = len(changed) - 1 - rng.randrange(min(400, len(changed)))
        changed[place] = rng.choice((0, 0xFF, changed[place] ^ 1, rng.randrange(256)))
    return bytes(changed)


def _assembled(rng: random.Random) -> bytes:
    entries = []
    for _ in range(rng.randrange(1, 9)):
        entry = Entry(rng.choice(NAMES), rng.randbytes(rng.randrange(700)))
        entry.method = rng.choice((0, 8, 8, 9, 12, 93))
        for name in ("num_bytes", "packed_bytes", "header_at", "crc"):
            if rng.random() < 0.2:
                number = rng.choice(NUMBERS)
                setattr(entry, name, number & 0xFFFFFFFF if name == "crc" else number)
        entry.header_at = min(entry.header_at, 1 << 40) if entry.header_at is not None else None
        entry.flags = rng.choice((0, 0, 1, 1 << 3, 1 << 11, 1 << 13))
        entry.mode = rng.choice((0o100644, 0, 0o120777, 0o040755, 0o010644))
        if rng.random() < 0.3:
            entry.data, entry.method, entry.num_bytes = BOMB, 8, rng.choice((1 << 20, 1 << 28))
        entries.append(entry)
    is_64 = any(max(e.num_bytes or 0, e.header_at or 0) > 0xFFFFFFF0 for e in entries)
    return zip_of(*entries, is_64=is_64 or rng.random() < 0.3)


def _overlapping(rng: random.Random) -> bytes:
    kernel = Entry(b"n0/k.jpg", b"", 8, data=BOMB, num_bytes=1 << 20)
    others = [
        Entry(b"n0/%d.jpg" % i, b"", 8, data=b"", num_bytes=10 << 20, packed_bytes=len(BOMB))
        for i in range(rng.randrange(1, 2000))
    ]
    for other in others:
        other.writes, other.header_at = False, rng.choice((0, 0, 0, rng.randrange(1000)))
    return zip_of(kernel, *others)


def _compressed(rng: random.Random) -> bytes:
    packed = gzip.compress(tar_of(FILES), rng.choice((1, 9)))
    return rng.choice((_mutated(rng, packed), packed[: rng.randrange(len(packed) - 8)]))


def _hostile(rng: random.Random, number: int) -> tuple[str, bytes]:
    """Return the suffix and the content of an archive."""
    good = _good_zip(rng)
    truncated = good[: number * BLOCK_BYTES % len(good)]
    return rng.choice(
        (
            (".zip", _mutated(rng, good)),
            (".zip", truncated),
            (".zip", _assembled(rng)),
            (".zip", _overlapping(rng)),
            (".tar.gz", _compressed(rng)),
        )
    )


@pytest.fixture
def _all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have rapidgzip, if it is installed, unpack small files, too."""
    monkeypatch.setattr("vit21k.sources.gzip_tar.NEEDS_INDEX_BYTES", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("_all_files_are_large")
def test_hostile_archives_are_listed_and_touch_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    root = tmp_path / "root"
    root.mkdir()
    honest = set()
    for number in range(NUM_ARCHIVES):
        suffix, content = _hostile(rng, number)
        (root / f"h{number:03}{suffix}").write_bytes(content)
    before = {path: path.read_bytes() for path in root.iterdir()}
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    hash_tree(root, tmp_path / "m", label_from="folder")

    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    listed = {row["path"].partition("/")[0].partition(".")[0] for row in problems}
    for path in root.iterdir():
        stem = path.name.partition(".")[0]
        of_it = [row for row in rows if row["container"] == path.name]
        honest |= {stem} if _is_honest(of_it, stem) else set()
        assert stem in listed | honest
    assert len(honest) < NUM_ARCHIVES / 10  # a change to a time stamp, say
    assert {row["kind"] for row in problems} <= {str(kind) for kind in ProblemKind}
    _check_rows(root, rows)
    assert {path: path.read_bytes() for path in root.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"root", "m"}
    assert not list(Path("/tmp").glob("evil.jpg"))
    assert seconds < 60
    assert grown < 600  # MB, mostly Arrow's
    kinds = Counter(row["kind"] for row in problems)
    print(  # noqa: T201 (a figure for docs/internals/reliability.md)
        f"{NUM_ARCHIVES} hostile zips and compressed tars: {seconds:.1f} s, {grown} MB, "
        f"{len(rows)} rows, {len(problems)} problems of {len(kinds)} kinds, {len(honest)} unharmed"
    )


def _is_honest(rows: list[dict[str, object]], stem: str) -> bool:
    """Return whether all files are there with the right sizes: nothing was harmed."""
    sizes = {str(row["path"]).removeprefix(f"{stem}/"): row["num_bytes"] for row in rows}
    return sizes == {name: len(content) for name, content in FILES.items()}


def _check_rows(root: Path, rows: list[dict[str, object]]) -> None:
    """Check that images can be read at their locators, and none is outside of its archive."""
    reader = ImageReader(root)
    for row in rows:
        assert ".." not in str(row["path"]).split("/")
        locator = Locator(**{name: row[name] for name in Locator._fields})  # type: ignore[arg-type]
        assert len(reader.read(*locator)) == row["num_bytes"]


@pytest.mark.slow
def test_a_zip_and_a_compressed_tar_truncated_at_every_block(tmp_path: Path) -> None:
    rng = random.Random(1)
    root = tmp_path / "root"
    root.mkdir()
    zipped, packed = _good_zip(rng), gzip.compress(tar_of(FILES), 1)
    for end in range(0, len(zipped), BLOCK_BYTES):
        (root / f"z{end}.zip").write_bytes(zipped[:end])
    for end in range(0, len(packed), BLOCK_BYTES // 8):
        (root / f"t{end}.tar.gz").write_bytes(packed[:end])

    hash_tree(root, tmp_path / "m", label_from="folder")

    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    listed = {row["path"].partition("/")[0] for row in problems}
    assert {path.name for path in root.iterdir()} <= listed
