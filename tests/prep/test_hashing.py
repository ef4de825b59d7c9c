"""`prep.hashing`: the same tree gives the same bytes, and everything in it is accounted for."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_FILES, MakeTree

from vit21k.errors import ImageTreeError, LockedError, UsageError
from vit21k.lock import locked
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep import hash_chunks
from vit21k.prep import hash_chunks as digest_module
from vit21k.prep.file_digest import ALGORITHMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.sources import folders as walk_module


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def _large_tree(make_tree: MakeTree) -> Path:
    files = {f"images/n{number % 7}/{number}.JPEG": b"%d" % (number % 250) for number in range(500)}
    bad = {"images/n3/empty.JPEG": b"", "images/n5/notes.txt": b"notes", "stray.jpg": b"stray"}
    return make_tree({**files, **bad})


def test_rows_are_files_in_path_order(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()

    assert [row["path"] for row in rows] == sorted(TINY_FILES)
    assert [row["wnid"] for row in rows] == [path.split("/")[0] for path in sorted(TINY_FILES)]
    for row in rows:
        content = TINY_FILES[row["path"]]
        assert row["num_bytes"] == len(content)
        assert row["mtime_ns"] == (tiny_tree / row["path"]).stat().st_mtime_ns
        assert row["digest"] == ALGORITHMS["xxh3_128"].at_once(memoryview(content))


def test_the_header_says_how_and_of_what(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m", algorithm="md5", follow_symlinks=True)

    header = open_manifest(tmp_path / "m", DIGESTS).header

    assert header.algorithm == "md5"
    assert header.root == str(tiny_tree)
    assert header.options == {"follow_symlinks": True}


def test_a_class_is_the_name_of_the_folder_at_any_depth(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"images/n1/x.jpg": b"1", "n2/x.jpg": b"2", "a/b/c/airplane/x.jpg": b"3"})

    summary = hash_tree(root, tmp_path / "m", label_from="folder")
    top = hash_tree(root, tmp_path / "top", label_from="top")

    assert read_manifest(tmp_path / "m", DIGESTS)["wnid"].to_pylist() == ["airplane", "n1", "n2"]
    assert summary.wnids == {"airplane", "n1", "n2"}
    assert read_manifest(tmp_path / "top", DIGESTS)["wnid"].to_pylist() == ["a", "images", "n2"]
    assert top.wnids == {"a", "images", "n2"}


@pytest.mark.parametrize("num_workers", [2, 8])
def test_the_number_of_workers_does_not_change_a_byte(
    make_tree: MakeTree, tmp_path: Path, num_workers: int
) -> None:
    root = _large_tree(make_tree)

    hash_tree(root, tmp_path / "one", num_workers=1)
    hash_tree(root, tmp_path / "many", num_workers=num_workers)

    assert _bytes_of(tmp_path / "one") == _bytes_of(tmp_path / "many") != {}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_file_system_does_not_change_a_byte(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    root = _large_tree(make_tree)
    hash_tree(root, tmp_path / "one")
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: bytes) -> None:
            self._path = path

        def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
            with scandir(self._path) as entries:
                listed = list(entries)
            random.Random(seed).shuffle(listed)
            return iter(listed)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(walk_module.os, "scandir", Shuffled)
    hash_tree(root, tmp_path / "two")

    assert _bytes_of(tmp_path / "one") == _bytes_of(tmp_path / "two") != {}


def test_the_size_of_chunks_and_batches_does_not_change_a_byte(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _large_tree(make_tree)
    hash_tree(root, tmp_path / "one")

    monkeypatch.setattr(walk_module, "CHUNK_FILES", 3)
    monkeypatch.setattr(hash_chunks, "_BATCH_ROWS", 10)
    hash_tree(root, tmp_path / "two")

    assert _bytes_of(tmp_path / "one") == _bytes_of(tmp_path / "two") != {}


def test_hashing_again_gives_the_same_bytes(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    first = _bytes_of(tmp_path / "m")

    hash_tree(tiny_tree, tmp_path / "m")

    assert _bytes_of(tmp_path / "m") == first


def test_every_entry_is_a_row_of_one_of_the_two(make_tree: MakeTree, tmp_path: Path) -> None:
    root = _large_tree(make_tree)
    (root / "images" / "link.jpg").symlink_to("nowhere")
    os.mkfifo(root / "images" / "n1" / "pipe.jpg")

    summary = hash_tree(root, tmp_path / "m")

    digests, problems = (read_manifest(tmp_path / "m", kind) for kind in (DIGESTS, PROBLEMS))
    paths = digests["path"].to_pylist() + problems["path"].to_pylist()
    on_disk = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert sorted(paths) == sorted(str(path.relative_to(root)) for path in on_disk)
    assert summary.num_files == digests.num_rows == 500
    assert summary.num_bad == 3
    assert summary.num_skipped == 2
    assert summary.num_entries == summary.num_files + summary.num_bad + summary.num_skipped
    assert problems["path"].to_pylist() == sorted(problems["path"].to_pylist())
    assert problems["kind"].to_pylist() == [
        "symlink",
        "not_a_regular_file",
        "empty",
        "other_suffix",
        "not_in_class_folder",
    ]


def test_problems_met_while_reading_keep_path_order(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({f"n1/{name}": b"x" for name in ("1.jpg", "2.txt", "3.jpg", "4.txt")})
    opened = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if path == b"3.jpg":
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(digest_module.os, "open", refuse)
    summary = hash_tree(root, tmp_path / "m")

    rows = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert [(row["path"], row["kind"], row["detail"]) for row in rows] == [
        ("n1/2.txt", "other_suffix", ""),
        ("n1/3.jpg", "unreadable", "Permission denied"),
        ("n1/4.txt", "other_suffix", ""),
    ]
    assert summary.problems == {ProblemKind.OTHER_SUFFIX: 2, ProblemKind.UNREADABLE: 1}


def test_hard_links_are_files_of_their_own(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"a/x.jpg": b"x", "b/keep.jpg": b"y"})
    os.link(root / "a" / "x.jpg", root / "b" / "x.jpg")

    hash_tree(root, tmp_path / "m")

    digests = read_manifest(tmp_path / "m", DIGESTS)["digest"].to_pylist()
    assert len(digests) == 3
    assert digests[0] == digests[2]


def test_a_tree_in_which_everything_is_bad_is_still_written(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1/x.jpg": b"", "n1/y.jpg": b""})

    summary = hash_tree(root, tmp_path / "m")

    assert (summary.num_files, summary.num_bad) == (0, 2)
    assert read_manifest(tmp_path / "m", DIGESTS).num_rows == 0
    assert read_manifest(tmp_path / "m", PROBLEMS).num_rows == 2


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ({"x.jpg": b"x"}, "holds no class folders", "n01440764/"),
        ({}, "holds no class folders", "n01440764/"),
        ({"a/x.txt": b"x"}, "no images below", ".JPEG"),
        ({".git/x.jpg": b"x"}, "holds no class folders", "n01440764/"),
    ],
)
def test_a_root_without_images_is_refused_and_the_old_manifests_stay(
    make_tree: MakeTree, tmp_path: Path, files: dict[str, bytes], message: str, hint: str
) -> None:
    (tmp_path / "good" / "n1").mkdir(parents=True)
    (tmp_path / "good" / "n1" / "x.jpg").write_bytes(b"x")
    hash_tree(tmp_path / "good", tmp_path / "m")
    before = _bytes_of(tmp_path / "m")

    with pytest.raises(ImageTreeError, match=message) as caught:
        hash_tree(make_tree(files), tmp_path / "m")

    assert hint in (caught.value.hint or "")
    assert _bytes_of(tmp_path / "m") == before
    assert [path.name for path in (tmp_path / "m").iterdir() if "partial" in path.name] == []


def test_links_instead_of_folders_are_pointed_out(make_tree: MakeTree, tmp_path: Path) -> None:
    make_tree({"a/x.jpg": b"x"})
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "n1").symlink_to(tmp_path / "tree" / "a")

    with pytest.raises(ImageTreeError) as caught:
        hash_tree(tmp_path / "links", tmp_path / "m")
    summary = hash_tree(tmp_path / "links", tmp_path / "m", follow_symlinks=True)

    assert "--follow-symlinks" in (caught.value.hint or "")
    assert summary.wnids == {"n1"}


def test_a_missing_root_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ImageTreeError, match=r"`.*/nowhere` does not exist"):
        hash_tree(tmp_path / "nowhere", tmp_path / "m")
    with pytest.raises(ImageTreeError, match=r"`.*/file` is a file, not a folder"):
        hash_tree(tmp_path / "file", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["", "m", "n01440764/m"])
def test_nothing_is_written_below_the_image_root(tiny_tree: Path, name: str) -> None:
    before = sorted(tiny_tree.rglob("*"))

    with pytest.raises(UsageError, match="is inside the image root"):
        hash_tree(tiny_tree, tiny_tree / name)

    assert sorted(tiny_tree.rglob("*")) == before


def test_a_link_to_the_image_root_is_the_image_root(tiny_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_tree)

    with pytest.raises(UsageError, match="is inside the image root"):
        hash_tree(tiny_tree, tmp_path / "link" / "m")


def test_the_tree_is_left_as_it_was(tiny_tree: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, int, int]]:
        statuses = {path: path.stat() for path in tiny_tree.rglob("*")}
        return {path: (s.st_mtime_ns, s.st_ctime_ns, s.st_size) for path, s in statuses.items()}

    before = state()
    hash_tree(tiny_tree, tmp_path / "m")

    assert state() == before


def test_a_folder_in_use_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "m", command="relabel"), pytest.raises(LockedError, match="relabel"):
        hash_tree(tiny_tree, tmp_path / "m")


def test_a_run_that_is_stopped_leaves_the_old_manifests(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = _large_tree(make_tree)
    hash_tree(root, tmp_path / "m")
    before = _bytes_of(tmp_path / "m")
    (root / "images" / "n0" / "new.jpg").write_bytes(b"new")

    def stop(_chunk: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_tree(root, tmp_path / "m", on_chunk=stop)

    assert _bytes_of(tmp_path / "m") == before
    assert {path.suffix for path in (tmp_path / "m").iterdir()} == {".parquet", ""}
