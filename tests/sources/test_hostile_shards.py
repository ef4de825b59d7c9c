"""300 hostile shard sets: read without a crash, a hang or a file outside, every fault listed.

Good shards with a single fault each: truncated at every block, a false size, a name that leads
out, a key that is repeated, labels that are malformed or contradict each other.
"""

import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tar_files import END, header, padded, tar_of

from vit21k.errors import LayoutError
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree

LEAST_SETS = 300
JPEG = b"\xff\xd8\xff" + bytes(600)
WNID = "n01440764"
NUM_SAMPLES = 4
SIZES = (1, 10 << 30, 1 << 40, b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"zzzzzzzzzzzz")
NAMES = (
    b"../../evil.jpg", b"/tmp/evil.jpg", b"a/../../evil.jpg", b"\xff.jpg", b"a\0b.jpg", b"",
)  # fmt: skip
LABELS = (
    b"", b"{", b"[]", b"null", b'"n01440764"', b"\xff\xfe", b"[" * 200_000, b"{" * 100_000,
    b'{"class_name": ""}', b'{"class_name": null, "x": NaN', b'{"class_name": "a\\u0000b"}',
    b'{"class_name": {"a": 1}}', b'{"class_name": [[]]}', b'{"class_name": true}',
    b'{"class_name": 1.5}', b'{"class_name": 7}', b'{"class_name": 1' + b"0" * 5000 + b"}",
    json.dumps({"class_name": "x" * 2000}).encode(), b'{"class_name": "\\ud800"}',
)  # fmt: skip
TYPES = b"123456SMVD"


def _members(labels: bytes = json.dumps({"class_name": WNID}).encode()) -> list[tuple[str, bytes]]:
    """Return the members of a good shard, the labels of the last sample excepted."""
    good = json.dumps({"class_name": WNID}).encode()
    members = []
    for number in range(NUM_SAMPLES):
        members.append((f"{number:08}.jpg", JPEG + bytes([number])))
        members.append((f"{number:08}.json", good if number < NUM_SAMPLES - 1 else labels))
    return members


def _raw(members: list[tuple[bytes, int | bytes, bytes, bytes]]) -> bytes:
    """Return a tar of name, size as it is stored, type and content of each member."""
    blocks = [
        header(name, size, kind=kind) + padded(content) for name, size, kind, content in members
    ]
    return b"".join(blocks) + END


def _good() -> list[tuple[bytes, int | bytes, bytes, bytes]]:
    return [(name.encode(), len(content), b"0", content) for name, content in _members()]


def _truncated() -> Iterator[bytes]:
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        whole = tar_of(_members(), tar_format=tar_format)
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
        for stop in range(512, end + 1, 512):
            yield whole[:stop]
            yield whole[: stop - 100]


def _lying() -> Iterator[bytes]:
    for index in range(2 * NUM_SAMPLES):
        for size in SIZES:
            members = _good()
            members[index] = (members[index][0], size, *members[index][2:])
            yield _raw(members)


def _misnamed() -> Iterator[bytes]:
    for index in range(2 * NUM_SAMPLES):
        for name in NAMES:
            members = _good()
            members[index] = (name, *members[index][1:])
            yield _raw(members)


def _of_other_types() -> Iterator[bytes]:
    for index in range(2 * NUM_SAMPLES):
        for kind in TYPES:
            members = _good()
            members[index] = (*members[index][:2], bytes([kind]), members[index][3])
            yield _raw(members)


def _repeated() -> Iterator[bytes]:
    members = _members()
    for index in range(2 * NUM_SAMPLES):
        yield tar_of([*members, *members[index : index + 1]])
        yield tar_of([*members[: index + 1], *members[index:]])
        yield tar_of([*members[:index], ("00000000.png", JPEG), *members[index:]][:3])
    yield tar_of([*members, *members])


def _mislabelled() -> Iterator[bytes]:
    for labels in LABELS:
        yield tar_of(_members(labels))


def _damaged() -> Iterator[bytes]:
    whole = tar_of(_members())
    for place in range(0, len(whole) - 1024, 512):
        if whole[place + 257 : place + 262] == b"ustar":
            for offset in (0, 124, 148, 156):
                content = bytearray(whole)
                content[place + offset] ^= 0x55
                yield bytes(content)


MAKERS = (_truncated, _lying, _misnamed, _of_other_types, _repeated, _mislabelled, _damaged)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_fault_is_listed_and_nothing_is_written_outside(
    num_workers: int, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.tar").write_bytes(tar_of(_members()))
    shards = [content for make in MAKERS for content in make()]
    for number, content in enumerate(shards):
        (root / f"h{number:03}.tar").write_bytes(content)
    assert len(shards) >= LEAST_SETS
    started = time.monotonic()

    hash_tree(
        root, tmp_path / "m", num_workers=num_workers, layout="webdataset",
        label_from="json:class_name",
    )  # fmt: skip

    assert time.monotonic() - started < 60
    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    listed = {problem["path"].partition("/")[0] for problem in problems}
    assert {path.name for path in root.iterdir()} - listed == {"good.tar"}
    assert {row["wnid"] for row in rows} <= {WNID}
    for row in rows:
        assert not {"..", "."} & set(row["path"].split("/"))
        end = row["offset"] + row["num_bytes"]
        assert end <= (root / row["container"]).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "root"]
    assert not list(Path("/tmp").glob("evil.jpg"))


@pytest.mark.slow
def test_detection_refuses_hostile_shards_or_finds_the_label(tmp_path: Path) -> None:
    for make in MAKERS:
        for number, content in enumerate(make()):
            root = tmp_path / f"{make.__name__}{number}"
            root.mkdir()
            (root / "imagenet-train-0000.tar").write_bytes(content)
            try:
                hash_tree(root, tmp_path / "m", num_workers=1)
            except LayoutError as error:
                assert error.hint  # noqa: PT017 (both are right)
            else:
                rows = read_manifest(tmp_path / "m", DIGESTS, ["wnid"])["wnid"].to_pylist()
                assert set(rows) <= {WNID}
