"""500 hostile archives: hashed without a crash or a hang, each with rows or a listed problem.

They are made from good ones of every format by random changes to their bytes, and by putting
together members of every type with names, sizes and orders that no honest program writes.
"""

import gzip
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from tar_files import END, header, padded, tar_of, tar_of_tars

from vit21k.manifest.io import read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree

NUM_ARCHIVES = 500
KINDS = {str(kind) for kind in ProblemKind}
FILES = {f"n{i}/n{i}_{j}.jpg": bytes([i, j]) * 300 for i in range(3) for j in range(3)}
NAMES = [
    b"a.jpg",
    b"../../evil.jpg",
    b"/tmp/evil.jpg",
    b"n/../../e.jpg",
    b"",
    b"\xff.jpg",
    b"n1.tar",
]
SIZES: list[int | bytes] = [0, 5, 1 << 20, 1 << 33, b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"zz"]


def _good(rng: random.Random) -> bytes:
    tar_format = rng.choice((0, 1, 2))
    if rng.random() < 0.4:
        return tar_of(FILES, tar_format=tar_format)
    folders = {f"n{i}": {f"n{i}_{j}.jpg": bytes([i, j]) * 300 for j in range(3)} for i in range(3)}
    return tar_of_tars(folders)


def _mutated(rng: random.Random) -> bytes:
    content = bytearray(_good(rng))
    for _ in range(rng.choice((1, 5, 50))):
        place = rng.randrange(len(content))
        if rng.random() < 0.5:
            place -= place % 512 - rng.randrange(160)  # in what may be a header
        content[min(place, len(content) - 1)] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


def _assembled(rng: random.Random) -> bytes:
    parts = []
    for _ in range(rng.randrange(1, 8)):
        data = rng.randbytes(rng.randrange(700))
        size = rng.choice([len(data), *SIZES])
        kind = rng.choice((b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"K", b"x", b"g"))
        parts.append(header(rng.choice(NAMES), size, kind=kind) + padded(data))
    return b"".join(parts) + END * rng.randrange(2)


def _compressed(rng: random.Random) -> bytes:
    content = bytearray(gzip.compress(_mutated(rng)))
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


@pytest.mark.slow
def test_hostile_archives_give_rows_or_listed_problems_and_touch_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    root = tmp_path / "root"
    root.mkdir()
    for number in range(NUM_ARCHIVES):
        make = rng.choice((_mutated, _assembled, _compressed))
        suffix = ".tgz" if make is _compressed else ".tar"
        (root / f"h{number:03}{suffix}").write_bytes(make(rng))
    before = _state(tmp_path)
    started = time.monotonic()

    hash_tree(root, tmp_path / "m", label_from="folder")
    seconds = time.monotonic() - started

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    spoken_of = {row["container"].partition(".")[0] for row in rows}
    spoken_of |= {problem["path"].partition("/")[0].partition(".")[0] for problem in problems}
    assert spoken_of == {path.name.partition(".")[0] for path in root.iterdir()}
    assert {problem["kind"] for problem in problems} <= KINDS
    for row in rows:
        assert row["path"].startswith("h")
        assert ".." not in row["path"].split("/")
        if row["container"].endswith(".tar"):
            assert row["offset"] + row["num_bytes"] <= (root / row["container"]).stat().st_size
    assert {path: state for path, state in _state(tmp_path).items() if path in before} == before
    assert set(_state(tmp_path)) - set(before) <= set((tmp_path / "m").rglob("*")) | {
        tmp_path / "m"
    }
    assert not list(Path("/tmp").glob("evil.jpg"))
    assert seconds < 60
    kinds = Counter(problem["kind"] for problem in problems)
    print(  # noqa: T201 (a figure for docs/internals/reliability.md)
        f"{NUM_ARCHIVES} hostile archives: {seconds:.1f} s, {len(rows)} rows, "
        f"{len(problems)} problems of {len(kinds)} kinds, 0 crashes, nothing created outside"
    )


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte_for_hostile_archives(tmp_path: Path) -> None:
    rng = random.Random(1)
    root = tmp_path / "root"
    root.mkdir()
    for number in range(60):
        (root / f"h{number:02}.tar").write_bytes(rng.choice((_mutated, _assembled))(rng))

    for num_workers in (1, 2, 8):
        hash_tree(root, tmp_path / str(num_workers), num_workers=num_workers, label_from="folder")

    for name in ("digests.parquet", "problems.parquet"):
        first, *others = ((tmp_path / str(n) / name).read_bytes() for n in (1, 2, 8))
        assert all(other == first for other in others)


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }
