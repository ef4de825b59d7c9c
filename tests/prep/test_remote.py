"""`prep.remote`: a tree behind a URL gives the rows that it gives on a disk."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_FILES, needs_extra

fsspec = needs_extra("fsspec")

from vit21k.errors import ImageTreeError, LayoutError, MissingExtraError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS
from vit21k.prep import hash_remote as hash_remote_module
from vit21k.prep.hash_remote import hash_remote, is_url
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel

Upload = Callable[[Mapping[str, bytes]], str]
ODD = {
    "images/n1/a b.JPEG": b"1",
    "images/n1/\u00e9.jpg": b"2",
    "images/n1.5/x.jpg": b"3",
    "images/n1/deep/x.png": b"4",
    "images/n1/empty.jpg": b"",
    "images/n1/README": b"read me",
    "images/n1/.hidden/x.jpg": b"5",
    "stray.jpg": b"6",
    "n2.tar": b"7",
}


@pytest.fixture
def upload() -> Upload:
    """A function that puts files into fsspec's file system in memory; returns the URL."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]

    def put(content: Mapping[str, bytes]) -> str:
        for name, data in content.items():
            files.pipe_file(f"/bucket/in21k/{name}", data)
        return "memory://bucket/in21k"

    return put


def _rows(folder: Path, kind: Any) -> list[dict[str, Any]]:
    return [{**row, "mtime_ns": None} for row in read_manifest(folder, kind).to_pylist()]


@pytest.mark.parametrize("files", [TINY_FILES, {**TINY_FILES, **ODD}])
def test_rows_are_those_of_the_same_tree_on_a_disk(
    upload: Upload, make_tree: Callable[[Mapping[str, bytes]], Path], tmp_path: Path, files: Any
) -> None:
    files = {name: content for name, content in files.items() if not name.endswith(".tar")}
    hash_tree(make_tree(files), tmp_path / "disk", label_from="folder")

    summary = hash_remote(upload(files), tmp_path / "remote", num_workers=3, label_from="folder")

    assert _rows(tmp_path / "remote", DIGESTS) == _rows(tmp_path / "disk", DIGESTS)
    assert _rows(tmp_path / "remote", PROBLEMS) == _rows(tmp_path / "disk", PROBLEMS)
    assert summary.num_entries == len(files)


@pytest.mark.parametrize("files", [["train/n1/a.jpg", "val/n1/b.jpg"], ["val/a.jpg", "val/b.jpg"]])
def test_folders_that_cannot_be_classes_are_refused(
    files: list[str], upload: Upload, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError):
        hash_remote(upload(dict.fromkeys(files, b"x")), tmp_path)

    assert not list(tmp_path.glob("*.parquet"))


def test_what_comes_after_runs_on_them(upload: Upload, tmp_path: Path) -> None:
    hash_remote(upload(TINY_FILES), tmp_path)

    relabel(tmp_path)

    assert open_manifest(tmp_path, IMAGES).header.root == "memory://bucket/in21k"
    assert open_manifest(tmp_path, IMAGES).num_rows == 4


def test_archives_behind_a_url_are_problems(upload: Upload, tmp_path: Path) -> None:
    hash_remote(upload({**TINY_FILES, "n2.tar": b"7"}), tmp_path)

    [problem] = read_manifest(tmp_path, PROBLEMS).to_pylist()

    assert (problem["path"], problem["kind"]) == ("n2.tar", "archive_not_read")


def test_a_large_object_is_read_in_pieces(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload({"n1/x.JPEG": b"\xff\xd8\xff" + bytes(1000)})
    hash_remote(url, tmp_path / "whole")
    monkeypatch.setattr(hash_remote_module, "WHOLE_BYTES", 100)
    monkeypatch.setattr(hash_remote_module, "_PIECE_BYTES", 64)

    hash_remote(url, tmp_path / "pieces")

    [whole], [pieces] = (_rows(tmp_path / name, DIGESTS) for name in ("whole", "pieces"))
    assert pieces == {**whole, "content_digest": None, "has_end": None}


def test_an_object_that_keeps_changing_is_a_problem(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(TINY_FILES)
    files = fsspec.filesystem("memory")
    info = type(files).info

    def changing(self: Any, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = info(self, path, **options)
        return {**found, "created": datetime.now(UTC)} if "_9" in path else found

    monkeypatch.setattr(type(files), "info", changing)

    summary = hash_remote(url, tmp_path)

    assert summary.num_files == len(TINY_FILES) - 1
    [problem] = read_manifest(tmp_path, PROBLEMS).to_pylist()
    assert (problem["path"], problem["kind"]) == (
        "n02512053/n02512053_9.JPEG",
        "changed_while_read",
    )


def test_what_cannot_be_read_is_listed(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(TINY_FILES)
    files = fsspec.filesystem("memory")
    cat_file = type(files).cat_file

    def failing(self: Any, path: str, **options: Any) -> bytes:
        if path.endswith("_9.JPEG"):
            raise PermissionError(13, "Access Denied")
        content: bytes = cat_file(self, path, **options)
        return content

    monkeypatch.setattr(type(files), "cat_file", failing)

    hash_remote(url, tmp_path)

    [problem] = read_manifest(tmp_path, PROBLEMS).to_pylist()
    assert (problem["kind"], problem["detail"]) == ("unreadable", "Access Denied")


@pytest.mark.parametrize("url", ["memory://nowhere", "unheardof://bucket"])
def test_a_url_without_a_tree_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ImageTreeError):
        hash_remote(url, tmp_path)


def test_a_tree_without_images_is_refused(upload: Upload, tmp_path: Path) -> None:
    with pytest.raises(ImageTreeError, match="no images below"):
        hash_remote(upload({"n1/README": b"1"}), tmp_path)

    assert not list(tmp_path.glob("*.parquet"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str, **_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)

    with pytest.raises(MissingExtraError, match="Install s3fs") as caught:
        hash_remote("s3://bucket", tmp_path)
    assert "vit21k[s3]" in (caught.value.hint or "")


def test_a_url_is_told_from_a_folder() -> None:
    assert is_url("s3://bucket/in21k")
    assert not is_url("/data/s3:/in21k")
