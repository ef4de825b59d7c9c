"""An index gives the rows that the manifest gives, whoever makes it, wherever it is stored."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from vit21k.data import dataset
from vit21k.data.dataset import ImageDataset
from vit21k.errors import ImageTreeError, ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest
from vit21k.manifest.schema import TRAIN, VAL
from vit21k.manifest.writer import manifest_writer

NUM_ROWS = 1000


def rows_of(num_rows, seed=0, archives=(), storage=None):
    random = np.random.default_rng(seed)
    labels = [sorted(random.choice(6, random.integers(0, 4), False)) for _ in range(num_rows)]
    rows = {
        "digest": pa.array([i.to_bytes(16, "big") for i in range(num_rows)], pa.binary(16)),
        "path": [f"n{i % 7}/é ü{i}.JPEG" for i in range(num_rows)],
        "label_ids": pa.array(labels, pa.list_(pa.int64())),
    }
    if archives:
        picked = random.integers(0, len(archives) + 1, num_rows)
        rows["container"] = pa.array([(*archives, None)[i] for i in picked], pa.string())
        rows["offset"] = pa.array(random.integers(0, 1 << 40, num_rows), pa.int64())
        rows["num_bytes"] = pa.array(random.integers(1, 1 << 20, num_rows), pa.int64())
        storages = [storage if i < len(archives) else None for i in picked]
        rows["storage"] = pa.array(storages, pa.string())
    return pa.table(rows)


def write(folder, rows, kind=TRAIN):
    header = ManifestHeader(algorithm="xxh3_128", root=str(folder), classes="x")
    with manifest_writer(
        kind, folder, header, ClassList(tuple("abcdef")), row_group_rows=64
    ) as writer:
        writer.write(rows)
    return open_manifest(folder, kind)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "MIN_ROWS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def everything(images):
    rows = np.arange(len(images))
    return (
        [images.path(row) for row in rows],
        [images.label_ids(row) for row in rows],
        [part.tolist() for part in images.labels_of(rows[::-1])],
        images.num_multi_label,
        len(images),
    )


def test_a_user_without_a_home_has_the_index_next_to_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "user_cache", lambda: None)

    images = ImageDataset.from_manifest(write(tmp_path, rows_of(NUM_ROWS)), mapped=True)

    assert images.index.folder.parent == tmp_path / ".rows"


@pytest.mark.parametrize("archives", [(), ("b.tar",), ("z/é.tar", "a.tar", "m.tar")])
def test_mapped_rows_are_those_of_the_manifest(tmp_path, archives):
    manifest = write(tmp_path, rows_of(NUM_ROWS, archives=archives))

    said = []

    made = ImageDataset.from_manifest(manifest, mapped=True, note=said.append)
    found = ImageDataset.from_manifest(manifest, mapped=True, note=said.append)

    assert [line.split()[0] for line in said] == ["indexing", "indexed"]
    assert made.index.seconds is not None
    assert found.index.seconds is None
    assert made.index.folder == found.index.folder == tmp_path / ".rows" / manifest.fingerprint
    plain = ImageDataset.from_manifest(manifest)
    assert plain.index is None
    assert everything(made) == everything(found) == everything(plain)


def test_members_of_archives_are_read_by_mapped_rows(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "é ü1.JPEG").write_bytes(b"a file")
    rows = rows_of(2, archives=("a.tar",))
    for name, values in (("container", ["a.tar", None]), ("offset", [3, None])):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.array(values, rows.schema.field(name).type))
    place = rows.schema.get_field_index("num_bytes")
    rows = rows.set_column(place, "num_bytes", pa.array([4, None], pa.int64()))

    images = ImageDataset.from_manifest(write(tmp_path, rows), mapped=True)

    assert images.index is not None
    assert images.read_bytes(0) == b"3456"
    assert images.read_bytes(1) == b"a file"


def test_a_large_compressed_archive_is_refused_without_rapidgzip(tmp_path, monkeypatch):
    manifest = write(tmp_path, rows_of(50, archives=("a.tar.gz",), storage="gzip"))
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    for name in ("NEEDS_INDEX_BYTES", "MAX_WITHOUT_INDEX_BYTES"):
        monkeypatch.setattr(f"vit21k.sources.read.{name}", 1)
    monkeypatch.setattr("vit21k.sources.read.rapidgzip", lambda: None)

    for _ in range(2):
        with pytest.raises(ImageTreeError, match=r"`a\.tar\.gz` is compressed"):
            ImageDataset.from_manifest(manifest, mapped=True)


def test_a_manifest_of_few_rows_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MIN_ROWS", NUM_ROWS + 1)

    images = ImageDataset.from_manifest(write(tmp_path, rows_of(NUM_ROWS)), mapped=True)

    assert images.index is None
    assert not (tmp_path / ".rows").exists()


def test_an_empty_manifest_can_be_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MIN_ROWS", 0)
    manifest = write(tmp_path, rows_of(0))

    assert everything(ImageDataset.from_manifest(manifest, mapped=True)) == ([], [], [[], []], 0, 0)


def test_another_manifest_has_another_index_and_stale_ones_are_removed(tmp_path):
    val = ImageDataset.from_manifest(write(tmp_path, rows_of(30, 1), VAL), mapped=True)
    first = ImageDataset.from_manifest(write(tmp_path, rows_of(NUM_ROWS, 2)), mapped=True)
    before = everything(first)

    second = ImageDataset.from_manifest(write(tmp_path, rows_of(NUM_ROWS, 3)), mapped=True)

    assert {folder.name for folder in (tmp_path / ".rows").iterdir() if folder.is_dir()} == {
        val.index.folder.name,
        second.index.folder.name,
    }
    assert everything(first) == before  # who still has it open goes on with it


@pytest.mark.parametrize("damage", ["card", "version", "short", "gone", "half"])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    manifest = write(tmp_path, rows_of(NUM_ROWS))
    folder = ImageDataset.from_manifest(manifest, mapped=True).index.folder
    if damage == "card":
        (folder / "index.json").write_bytes(b"{")
    elif damage == "version":
        card = (folder / "index.json").read_text().replace('"version": 2', '"version": 1')
        (folder / "index.json").write_text(card)
    elif damage == "short":
        os.truncate(folder / "label_ids", 4)
    elif damage == "gone":
        (folder / "path_text").unlink()
    else:
        shutil.rmtree(folder)
        (tmp_path / ".rows" / f".{folder.name}.host-1.partial").mkdir()

    images = ImageDataset.from_manifest(manifest, mapped=True)

    assert images.index.seconds is not None
    assert everything(images) == everything(ImageDataset.from_manifest(manifest))


def test_where_nothing_can_be_written_the_cache_of_the_user_is_taken(tmp_path):
    manifest = write(tmp_path / "manifests", rows_of(NUM_ROWS))
    (tmp_path / "manifests" / ".rows").write_bytes(b"in the way, for root too")

    images = ImageDataset.from_manifest(manifest, mapped=True)

    folder = tmp_path / "cache" / "vit21k" / "rows" / manifest.fingerprint
    assert images.index.folder == folder
    assert ImageDataset.from_manifest(manifest, mapped=True).index.seconds is None


def test_where_nothing_at_all_can_be_written_rows_are_read_into_memory(tmp_path):
    manifest = write(tmp_path / "manifests", rows_of(NUM_ROWS))
    (tmp_path / "manifests" / ".rows").write_bytes(b"")
    (tmp_path / "cache").write_bytes(b"")

    images = ImageDataset.from_manifest(manifest, mapped=True)

    assert images.index is None
    assert len(images) == NUM_ROWS


def test_a_damaged_manifest_leaves_no_index(tmp_path):
    manifest = write(tmp_path, rows_of(NUM_ROWS))
    content = bytearray(manifest.path.read_bytes())
    content[100] ^= 1
    manifest.path.write_bytes(content)

    with pytest.raises(ManifestError, match="damaged"):
        ImageDataset.from_manifest(open_manifest(tmp_path, TRAIN), mapped=True)

    assert not (tmp_path / ".rows").exists()


def test_those_that_want_an_index_at_once_make_one(tmp_path, monkeypatch):
    made = []
    writer = dataset.IndexWriter
    monkeypatch.setattr(dataset, "IndexWriter", lambda at: made.append(at) or writer(at))
    write(tmp_path, rows_of(NUM_ROWS))
    together = threading.Barrier(4)

    def opened(_):
        together.wait(20)
        return ImageDataset.from_manifest(open_manifest(tmp_path, TRAIN), mapped=True)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(opened, range(4)))

    assert len(made) == 1
    assert all(everything(images) == everything(found[0]) for images in found)
