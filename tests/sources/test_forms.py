"""Random trees in every form: each gives the same digests and classes, at offsets that are read."""

import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, LOCATOR_COLUMNS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.sources.read import ImageReader

JPEG = b"\xff\xd8\xff"


class File(NamedTuple):
    """A file of a random tree."""

    wnid: str
    name: str
    content: bytes


def _tree(cells: list[tuple[int, int, int]]) -> list[File]:
    """Return files of class, number and content; several may have the same content."""
    named = {(wnid, number): content for wnid, number, content in cells}
    return [
        File(f"n{wnid:08}", f"n{wnid:08}_{number}.JPEG", JPEG + bytes([content]) * (content * 97))
        for (wnid, number), content in sorted(named.items())
    ]


TREES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(1, 6)), min_size=2, max_size=24
).map(_tree)


def _tar(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _folders(files: list[File], root: Path) -> None:
    for file in files:
        (root / file.wnid).mkdir(parents=True, exist_ok=True)
        (root / file.wnid / file.name).write_bytes(file.content)


def _class_tars(files: list[File], root: Path) -> None:
    for wnid in {file.wnid for file in files}:
        members = [(file.name, file.content) for file in files if file.wnid == wnid]
        _tar(root / f"{wnid}.tar", members)


def _tree_tar(files: list[File], root: Path) -> None:
    members = [(f"{file.wnid}/{file.name}", file.content) for file in reversed(files)]
    _tar(root / "images.tar", members, format=tarfile.PAX_FORMAT)


def _gzip_tar(files: list[File], root: Path) -> None:
    _tree_tar(files, root)
    tar = root / "images.tar"
    (root / "images.tar.gz").write_bytes(gzip.compress(tar.read_bytes(), 1))
    tar.unlink()


def _gzip_tar_in_parts(files: list[File], root: Path) -> None:
    _gzip_tar(files, root)
    content = (root / "images.tar.gz").read_bytes()
    (root / "images.tar.gz").unlink()
    for number in range(3):
        start, end = number * len(content) // 3, (number + 1) * len(content) // 3
        (root / f"images.tar.gz.{number:02}").write_bytes(content[start:end])


def _shards(files: list[File], root: Path, labels: Callable[[int, File], dict[str, bytes]]) -> None:
    """Write two shards in an order of their own, the label before or after its image."""
    order = sorted(enumerate(files), key=lambda pair: pair[1].content)
    for shard in range(2):
        members = []
        for number, file in order[shard::2]:
            found = [*labels(number, file).items(), ("jpg", file.content)]
            key = f"{number:08}"
            members += [(f"{key}.{name}", content) for name, content in found[:: (-1) ** number]]
        if members:
            _tar(root / f"x-train-{shard:04}.tar", members)


def _json_shards(files: list[File], root: Path) -> None:
    _shards(files, root, lambda _, file: {"json": json.dumps({"class_name": file.wnid}).encode()})


def _index_shards(files: list[File], root: Path) -> None:
    names = sorted({file.wnid for file in files})
    _shards(files, root, lambda _, file: {"cls": b"%d" % names.index(file.wnid)})
    (root / "_info.json").write_text(json.dumps({"class_names": names}))


def _zip(files: list[File], root: Path) -> None:
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for number, file in enumerate(reversed(files)):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(f"{file.wnid}/{file.name}", file.content, method)


def _class_zips(files: list[File], root: Path) -> None:
    root.mkdir(parents=True)
    for wnid in {file.wnid for file in files}:
        with zipfile.ZipFile(root / f"{wnid}.zip", "w") as archive:
            for file in files:
                if file.wnid == wnid:
                    archive.writestr(file.name, file.content)


def _parquet(files: list[File], root: Path) -> None:
    root.mkdir(parents=True)
    images = [{"bytes": file.content, "path": file.name} for file in files]
    table = pa.table({"image": images, "label": [file.wnid for file in files]})
    pq.write_table(table, root / "train-00000-of-00001.parquet", row_group_size=5)


FORMS = (
    _folders, _class_tars, _tree_tar, _gzip_tar, _gzip_tar_in_parts, _json_shards, _index_shards,
    _zip, _class_zips, _parquet,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=9, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=TREES)
def test_every_form_of_a_random_tree_gives_the_same_images(
    files: list[File], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = Counter((xxhash.xxh3_128_digest(file.content), file.wnid) for file in files)
    tables = []
    for write in FORMS:
        folder = tmp_path_factory.mktemp("form")
        root, manifests = folder / "root", folder / "m"
        write(files, root)

        hash_tree(root, manifests)
        relabel(manifests)

        rows = read_manifest(manifests, DIGESTS)
        found = zip(rows["digest"].to_pylist(), rows["wnid"].to_pylist(), strict=True)
        assert Counter(found) == expected, write.__name__
        reader = ImageReader(root)
        for row in rows.select(["digest", *LOCATOR_COLUMNS]).to_pylist():
            digest = row.pop("digest")
            assert xxhash.xxh3_128_digest(reader.read(**row)) == digest, (write.__name__, row)
        images = read_manifest(manifests, IMAGES, ["digest", "label_ids", "num_files"])
        tables.append(images.sort_by("digest"))
    assert all(table.equals(tables[0]) for table in tables)
