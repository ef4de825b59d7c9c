"""`prep.shards`: each machine a share of the folders; together the bytes of one machine."""

import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_FILES, MakeTree
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import DataError, LayoutError, LockedError, UsageError
from vit21k.lock import locked
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import write_manifest
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.shards import FOLDER, Shard, merge_shards


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def _hash_shards(root: Path, manifests: Path, count: int, **options: str) -> list[Path]:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for shard in shards:
        hash_tree(root, manifests, shard=shard, num_workers=2, **options)
    return [shard.folder(manifests) for shard in shards]


def _many_files(num_folders: int, num_files: int) -> dict[str, bytes]:
    return {
        f"images/n{folder}/{'deep/' * (folder % 3)}{number}{suffix}": b"%d" % (number % 9)
        for folder in range(num_folders)
        for number, suffix in enumerate([".JPEG"] * num_files + [".txt"])
    }


@pytest.mark.parametrize("count", [1, 5, 17])
def test_shards_merged_in_any_order_are_the_bytes_of_one_run(
    make_tree: MakeTree, tmp_path: Path, count: int
) -> None:
    root = make_tree({**_many_files(15, 20), "stray.jpg": b"1", "images/n3/empty.jpg": b""})
    (root / os.fsdecode(b"images/n2/\xe9.jpg")).touch()  # sorts after all names in ASCII
    (root / "images" / "n2" / "zero.txt").touch()
    hash_tree(root, tmp_path / "whole", label_from="folder")
    folders = _hash_shards(root, tmp_path / "m", count, label_from="folder")
    random.Random(count).shuffle(folders)

    num_files = merge_shards(folders, tmp_path / "m")

    assert num_files == open_manifest(tmp_path / "whole", DIGESTS).num_rows == 300
    assert open_manifest(tmp_path / "m", PROBLEMS).num_rows == 19
    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "files", [["dog/2021/1.jpg", "cat/2021/1.jpg"], ["val_a/1.jpg", "val_b/1.jpg"]]
)
def test_folders_that_cannot_be_classes_are_refused_when_shards_are_merged(
    files: list[str], make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({**dict.fromkeys(files, b"x"), "empty/README": b"x"})
    shards = [Shard(number, 9) for number in range(1, 10)]
    assert len({s.number for s in shards for f in files if s.has(f[:-5].encode())}) == 2
    folders = _hash_shards(root, tmp_path / "m", 9)

    with pytest.raises(LayoutError):
        merge_shards(folders, tmp_path / "m")

    assert not (tmp_path / "m" / "digests.parquet").exists()


def test_more_shards_than_files_may_be_open_are_merged(tiny_tree: Path, tmp_path: Path) -> None:
    folders = _hash_shards(tiny_tree, tmp_path / "m", 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
    try:
        num_files = merge_shards(folders, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert num_files == len(TINY_FILES)


def test_row_groups_do_not_matter(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(_many_files(9, 30))
    hash_tree(root, tmp_path / "whole", label_from="folder")
    monkeypatch.setattr("vit21k.prep.shards._LEAST_ROW_GROUP_ROWS", 3)
    monkeypatch.setattr("vit21k.prep.shards.ROW_GROUP_ROWS", 12)
    folders = _hash_shards(root, tmp_path / "m", 4, label_from="folder")

    merge_shards(folders, tmp_path / "m")

    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "whole")


def test_every_folder_belongs_to_one_shard_and_shards_are_of_about_one_size() -> None:
    shards = [Shard(number, 8) for number in range(1, 9)]
    folders = [f"images/n{number:08}/".encode() for number in range(8000)]

    owners = [[shard.number for shard in shards if shard.has(folder)] for folder in folders]

    assert {len(owner) for owner in owners} == {1}
    sizes = [owners.count([shard.number]) for shard in shards]
    assert min(sizes) > 850
    assert max(sizes) < 1150


def test_which_shard_a_folder_belongs_to_does_not_change_between_releases() -> None:
    assert [
        next(number for number in range(1, 6) if Shard(number, 5).has(folder))
        for folder in (b"", b"n01440764/", b"images/n01440764/")
    ] == [4, 1, 1]


def test_a_shard_without_files_is_one(tiny_tree: Path, tmp_path: Path) -> None:
    folders = _hash_shards(tiny_tree, tmp_path / "m", 20)

    counts = [open_manifest(folder, DIGESTS).num_rows for folder in folders]

    assert 0 in counts
    assert sum(counts) == len(TINY_FILES)


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "1/0", "a/b", "1/2/3", "-1/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shard"):
        Shard.parse(text)


@given(st.integers(1, 999), st.integers(1, 999))
@settings(max_examples=30)
def test_a_shard_is_written_as_it_is_read(number: int, count: int) -> None:
    if number <= count:
        assert str(Shard.parse(f"{number}/{count}")) == f"{number}/{count}"


def _drop_first(folders: list[Path]) -> list[Path]:
    return folders[1:]


def _repeat_first(folders: list[Path]) -> list[Path]:
    return [folders[0], *folders]


def _mix_with_whole(folders: list[Path]) -> list[Path]:
    return [folders[0].parents[1] / "whole", *folders]


def _mix_with_another_count(folders: list[Path]) -> list[Path]:
    return [*folders, folders[0].parent / "0001-of-0001"]


def _mix_with_another_root(folders: list[Path]) -> list[Path]:
    return [folders[0].parents[1] / "other" / FOLDER / folders[0].name, *folders[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_first, "shards are missing: 1"),
        (_repeat_first, "are both shard 1/3"),
        (_mix_with_whole, "is not of a shard"),
        (_mix_with_another_count, "these are shards of 1 and of 3"),
        (_mix_with_another_root, "is of another run: image root"),
    ],
)
def test_shards_that_are_not_all_of_one_tree_are_refused(
    tiny_tree: Path, tmp_path: Path, change: Callable[[list[Path]], list[Path]], message: str
) -> None:
    other = tmp_path / "copy"
    tiny_tree.rename(other)
    _hash_shards(other, tmp_path / "other", 3)
    other.rename(tiny_tree)
    hash_tree(tiny_tree, tmp_path / "whole")
    _hash_shards(tiny_tree, tmp_path, 1)
    folders = _hash_shards(tiny_tree, tmp_path, 3)

    with pytest.raises(DataError, match=message):
        merge_shards(change(folders), tmp_path / "m")

    assert _bytes_of(tmp_path / "m") == {}


def test_shards_of_another_algorithm_are_refused(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path, shard=Shard(1, 2), algorithm="md5")
    hash_tree(tiny_tree, tmp_path, shard=Shard(2, 2))

    with pytest.raises(DataError, match="algorithm xxh3_128 instead of md5"):
        merge_shards([Shard(n, 2).folder(tmp_path) for n in (1, 2)], tmp_path / "m")


def test_a_file_in_two_shards_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    folders = _hash_shards(tiny_tree, tmp_path, 1)
    parts = _hash_shards(tiny_tree, tmp_path / "two", 2)
    full = open_manifest(folders[0], DIGESTS)
    for folder in parts:  # as if a folder had been renamed while the shards ran
        rows = full.read()
        header = open_manifest(folder, DIGESTS).header
        write_manifest(rows, DIGESTS, folder, header)

    with pytest.raises(DataError, match="is in two shards"):
        merge_shards(parts, tmp_path / "m")


def test_no_images_in_any_shard_is_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({})
    (root / "n1").mkdir()

    with pytest.raises(DataError, match="no images in any of the shards"):
        merge_shards(_hash_shards(root, tmp_path, 2), tmp_path / "m")


def test_shards_run_at_a_time_and_one_shard_once(tiny_tree: Path, tmp_path: Path) -> None:
    with locked(Shard(1, 2).folder(tmp_path), command="hash"):
        hash_tree(tiny_tree, tmp_path, shard=Shard(2, 2))
        with pytest.raises(LockedError):
            hash_tree(tiny_tree, tmp_path, shard=Shard(1, 2))


def test_nothing_is_written_below_the_image_root(tiny_tree: Path, tmp_path: Path) -> None:
    folders = _hash_shards(tiny_tree, tmp_path, 2)

    with pytest.raises(UsageError, match="is inside the image root"):
        merge_shards(folders, tiny_tree / "m")
    assert not (tiny_tree / "m").exists()
