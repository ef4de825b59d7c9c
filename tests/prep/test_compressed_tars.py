"""Compressed tars: their index is made by `hash`, found by later stages, and made again."""

import gzip
import random
from pathlib import Path

import pytest
from tar_files import tar_of

from vit21k.data.dataset import ImageDataset
from vit21k.errors import ImageTreeError
from vit21k.labels.select import reduce
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN
from vit21k.prep.hash_tree import HashSummary, hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.sources import gzip_tar
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.gzip_tar import INDEX_FOLDER, IndexFolder

RNG = random.Random(0)
WNIDS = ["n01440764", "n01443537", "n01484850"]
FILES = {f"{WNIDS[i % 3]}/{i}.jpg": b"\xff\xd8\xff" + RNG.randbytes(200_000) for i in range(60)}


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gzip_tar", "read"):
        monkeypatch.setattr(f"vit21k.sources.{module}.NEEDS_INDEX_BYTES", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tree with a compressed tar, and one in parts."""
    packed = gzip.compress(tar_of(dict(reversed(FILES.items()))), 1)
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "root/deep/a.tar.gz").write_bytes(packed)
    for index, start in enumerate(range(0, len(packed), 5_000_000)):
        part = packed[start : start + 5_000_000]
        (tmp_path / f"root/b.tgz.part{index + 1}").write_bytes(part)
    return tmp_path / "root"


def _hash(root: Path, **options: bool) -> HashSummary:
    return hash_tree(root, root.parent / "m", label_from="folder", **options)  # type: ignore[arg-type]


def _check_images(manifests: Path, num_expected: int = len(FILES)) -> None:
    images = ImageDataset.from_manifest(open_manifest(manifests, IMAGES))
    assert len(images) == num_expected
    for row in random.Random(1).sample(range(len(images)), len(images)):
        name = "/".join(images.path(row).split("/")[-2:])
        assert images.read_bytes(row) == FILES[name]


def _indices(manifests: Path) -> list[Path]:
    return sorted((manifests / INDEX_FOLDER).rglob("*.index"))


def test_images_are_read_by_the_index_that_hash_makes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = _hash(root)
    relabel(tmp_path / "m")

    assert summary.num_files == 2 * len(FILES)
    assert not summary.problems
    assert [path.name for path in _indices(tmp_path / "m")] == [
        "b.tgz.part1.index",
        "a.tar.gz.index",
    ]
    monkeypatch.setattr("vit21k.sources.read.made_index", None)  # it is not made again
    monkeypatch.setattr(gzip_tar, "rapidgzip", lambda: None)  # nor needed any more
    _check_images(tmp_path / "m")


def test_an_index_is_made_again_where_it_is_missing_or_stale(root: Path, tmp_path: Path) -> None:
    _hash(root)
    relabel(tmp_path / "m")
    used, other = sorted(_indices(tmp_path / "m"), key=lambda path: path.name, reverse=True)
    before = used.read_bytes()

    used.unlink()
    _check_images(tmp_path / "m")
    assert used.read_bytes() == before
    used.write_bytes(b"damaged")
    _check_images(tmp_path / "m")
    assert used.read_bytes() == before

    other.unlink()
    indices, file = IndexFolder(tmp_path / "m"), ArchiveFile(str(root / "deep/a.tar.gz"))
    assert indices.lacks("deep/a.tar.gz", file)  # so that the cache of `hash` is not used
    _hash(root)
    assert not indices.lacks("deep/a.tar.gz", file)


def test_a_manifest_elsewhere_finds_the_index_of_its_inputs(root: Path, tmp_path: Path) -> None:
    _hash(root)
    relabel(tmp_path / "m")
    reduce(tmp_path / "m", tmp_path / "out")
    make_val(tmp_path / "out", per_class=1)
    _check_images(tmp_path / "out")
    images = ImageDataset.from_manifest(open_manifest(tmp_path / "out", TRAIN))
    assert images.read_bytes(0).startswith(b"\xff\xd8\xff")
    assert not (tmp_path / "out" / INDEX_FOLDER).exists()


def test_without_rapidgzip_they_are_hashed_and_read_all_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit21k.sources.gzip_tar.rapidgzip", lambda: None)
    monkeypatch.setattr("vit21k.sources.read.rapidgzip", lambda: None)

    summary = _hash(root)
    relabel(tmp_path / "m")

    assert summary.num_files == 2 * len(FILES)
    assert not _indices(tmp_path / "m")
    _check_images(tmp_path / "m")
    notes: list[str] = []
    ImageDataset.from_manifest(open_manifest(tmp_path / "m", IMAGES), note=notes.append)
    assert notes == ["`b.tgz.part1` is compressed: slow without `pip install 'vit21k[gzip]'`"]
    monkeypatch.setattr("vit21k.sources.read.MAX_WITHOUT_INDEX_BYTES", 1)
    with pytest.raises(ImageTreeError, match="compressed") as caught:
        ImageDataset.from_manifest(open_manifest(tmp_path / "m", IMAGES))
    for way in ("vit21k[gzip]", "vit21k pack", "gunzip"):
        assert way in (caught.value.hint or "")


def test_the_manifests_do_not_depend_on_rapidgzip(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray((root / "deep/a.tar.gz").read_bytes())
    content[len(content) // 2] ^= 0x55
    (root / "damaged.tar.gz").write_bytes(content)
    (root / "truncated.tar.gz").write_bytes(content[: len(content) // 3])
    hash_tree(root, tmp_path / "fast", label_from="folder")
    monkeypatch.setattr("vit21k.sources.gzip_tar.rapidgzip", lambda: None)
    hash_tree(root, tmp_path / "slow", label_from="folder")

    for name in ("digests.parquet", "problems.parquet"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "slow" / name).read_bytes()
