"""`prep.quick`: the same groups as a full run, from a fraction of the bytes."""

import random
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import DataError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import COPIES, DIGESTS, IMAGES
from vit21k.manifest.writer import write_manifest
from vit21k.prep.file_digest import PROBE_BYTES
from vit21k.prep.hash_tree import HashSummary, hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.split import make_val

START = b"\xff\xd8\xff"
SIZES = (100, 2 * PROBE_BYTES, 2 * PROBE_BYTES + 1, 3 * PROBE_BYTES, 50_000)


def _content(size: int, where: int | None, value: int, start: bytes = START) -> bytes:
    """Return *size* bytes that differ from others at most at *where* (a share), by *value*."""
    content = bytearray(start + bytes(size - len(start)))
    if where is not None:
        content[len(start) + (size - len(start) - 1) * where // 4] = value
    return bytes(content)


contents_strategy = st.builds(
    _content,
    st.sampled_from(SIZES),
    st.sampled_from([None, 0, 1, 2, 3, 4]),
    st.integers(1, 2),
    st.sampled_from([START, b"\x89PNG\r\n\x1a\n", b"unknown"]),
)


def _groups(manifests: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return images and copies without the digests."""
    relabel(manifests)
    images, copies = (read_manifest(manifests, kind) for kind in (IMAGES, COPIES))
    return images.drop_columns("digest").to_pylist(), copies.drop_columns("digest").to_pylist()


def _lay_out(root: Path, contents: list[bytes]) -> Path:
    for number, content in enumerate(contents):
        path = root / f"n{number % 3}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@settings(max_examples=15)
@given(st.lists(contents_strategy, min_size=1, max_size=40))
def test_groups_are_those_of_a_full_run(contents: list[bytes]) -> None:
    with TemporaryDirectory() as name:
        root = _lay_out(Path(name) / "tree", contents)

        quick = hash_tree(root, Path(name) / "quick", mode="quick", num_workers=2)
        full = hash_tree(root, Path(name) / "full", num_workers=2)

        assert _groups(Path(name) / "quick") == _groups(Path(name) / "full")
        assert (quick.num_files, quick.num_bytes) == (full.num_files, full.num_bytes)
        assert quick.problems == full.problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Forty images of one size that differ in the middle only or at an end, and two copies."""
    random_ = random.Random(0)
    contents = [START + random_.randbytes(50_000) for _ in range(40)]
    middles = [START + bytes(20_000) + bytes([value]) + bytes(20_000) for value in (1, 2)]
    root = _lay_out(tmp_path / "tree", [*contents, *middles, contents[0], contents[1]])
    time.sleep(0.06)  # what has changed just now is not taken for settled
    return root


def test_only_candidates_are_read_to_their_end(tree: Path, tmp_path: Path) -> None:
    summary = hash_tree(tree, tmp_path / "m", mode="quick")

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    has_digest = {int(Path(row["path"]).stem) for row in rows if row["digest"] is not None}
    assert has_digest == {0, 1, 40, 41, 42, 43}
    assert all(row["probe"] is not None for row in rows)
    assert summary.num_without_digest == 38
    assert summary.num_bytes_read == 44 * 2 * PROBE_BYTES + 4 * 50_003 + 2 * 40_004
    assert open_manifest(tmp_path / "m", DIGESTS).header.options["mode"] == "quick"


def test_both_walks_report_progress(tree: Path, tmp_path: Path) -> None:
    looked: list[str] = []
    done: list[str] = []

    hash_tree(
        tree,
        tmp_path,
        mode="quick",
        on_look=lambda chunk: looked.extend(chunk.paths),
        on_chunk=lambda chunk: done.extend(chunk.paths),
    )

    assert looked == done == read_manifest(tmp_path, DIGESTS)["path"].to_pylist()


def test_digests_are_those_of_a_full_run_where_there_are_any(tree: Path, tmp_path: Path) -> None:
    hash_tree(tree, tmp_path / "quick", mode="quick")
    hash_tree(tree, tmp_path / "full")

    quick, full = (
        {row["path"]: row["digest"] for row in read_manifest(tmp_path / name, DIGESTS).to_pylist()}
        for name in ("quick", "full")
    )
    assert all(digest in (None, full[path]) for path, digest in quick.items())


@pytest.mark.parametrize("num_workers", [1, 8])
def test_the_bytes_depend_on_the_tree_alone(tree: Path, tmp_path: Path, num_workers: int) -> None:
    hash_tree(tree, tmp_path / "fresh", mode="quick")  # all files have changed just now
    time.sleep(0.06)
    hash_tree(tree, tmp_path / "m", mode="quick", num_workers=num_workers)
    first = (tmp_path / "m" / "digests.parquet").read_bytes()
    again = hash_tree(tree, tmp_path / "m", mode="quick", num_workers=num_workers)

    assert (again.num_known, again.num_bytes_read) == (44, 0)
    assert first == (tmp_path / "m" / "digests.parquet").read_bytes()
    assert first == (tmp_path / "fresh" / "digests.parquet").read_bytes()


def test_a_new_copy_of_what_was_unique_is_found(tree: Path, tmp_path: Path) -> None:
    hash_tree(tree, tmp_path / "m", mode="quick")
    (tree / "n0" / "new.JPEG").write_bytes((tree / "n2" / "5.JPEG").read_bytes())

    hash_tree(tree, tmp_path / "m", mode="quick")
    hash_tree(tree, tmp_path / "fresh", mode="quick")

    assert [row["path"] for row in _groups(tmp_path / "m")[1]][-1:] == ["n2/5.JPEG"]
    assert (tmp_path / "m" / "digests.parquet").read_bytes() == (
        tmp_path / "fresh" / "digests.parquet"
    ).read_bytes()


def test_images_without_a_digest_cannot_be_merged_by_content(tree: Path, tmp_path: Path) -> None:
    hash_tree(tree, tmp_path / "m", mode="quick")

    with pytest.raises(UsageError, match="quick run"):
        relabel(tmp_path / "m", by="content")


def test_images_without_a_digest_cannot_be_drawn(tree: Path, tmp_path: Path) -> None:
    hash_tree(tree, tmp_path / "m", mode="quick")
    relabel(tmp_path / "m")

    with pytest.raises(UsageError, match="a quick run hashed only some images"):
        make_val(tmp_path / "m", seed=1)

    assert make_val(tmp_path / "m", per_class=1).num_val == 3


def test_members_of_archives_and_files_are_one_set(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "n8").mkdir(parents=True)
    (root / "n8" / "same.JPEG").write_bytes((tree / "n2" / "5.JPEG").read_bytes())
    with tarfile.open(root / "n2.tar", "w") as archive:
        archive.add(tree / "n2", arcname=".")

    hash_tree(root, tmp_path / "m", mode="quick")

    paths = [row["path"] for row in _groups(tmp_path / "m")[1]]
    assert "n8/same.JPEG" in paths


def test_counts_of_both_walks_add_up(tree: Path, tmp_path: Path) -> None:
    (tree / "n0" / "empty.JPEG").write_bytes(b"")
    (tree / "n0" / "page.JPEG").write_bytes(b"<html>" + bytes(20_000))

    summary: HashSummary = hash_tree(tree, tmp_path / "m", mode="quick")

    by_kind: dict[str, int] = defaultdict(int, {str(k): n for k, n in summary.problems.items()})
    assert (by_kind["empty"], by_kind["not_an_image"], summary.num_entries) == (1, 1, 46)


def _in_shards(tree: Path, manifests: Path) -> list[Path]:
    shards = [Shard(number, 5) for number in range(1, 6)]
    for shard in shards:
        hash_tree(tree, manifests, mode="quick", shard=shard)
    return [shard.folder(manifests) for shard in shards]


def test_copies_in_different_shards_are_found(tree: Path, tmp_path: Path) -> None:
    hash_tree(tree, tmp_path / "full")
    folders = _in_shards(tree, tmp_path / "m")

    merge_shards(folders, tmp_path / "m")

    apart = sum(read_manifest(folder, DIGESTS)["digest"].null_count for folder in folders)
    assert apart > 38  # some copies were unique in their shards
    one_run = tmp_path / "quick"
    hash_tree(tree, one_run, mode="quick")
    for name in ("digests.parquet", "problems.parquet"):
        assert (tmp_path / "m" / name).read_bytes() == (one_run / name).read_bytes()
    assert _groups(tmp_path / "m") == _groups(tmp_path / "full")


def test_quick_shards_that_were_merged_without_reading_candidates_are_refused(
    tree: Path, tmp_path: Path
) -> None:
    rows = pa.concat_tables(read_manifest(f, DIGESTS) for f in _in_shards(tree, tmp_path))
    header = open_manifest(tmp_path / "shards" / "0001-of-0005", DIGESTS).header
    write_manifest(rows, DIGESTS, tmp_path / "m", header)

    with pytest.raises(DataError, match=r"files may be duplicates.* have no digest"):
        relabel(tmp_path / "m")
    assert not (tmp_path / "m" / "images.parquet").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [(Path.touch, "has changed since"), (Path.unlink, "cannot be read any more")],
)
def test_what_has_changed_since_its_shard_was_hashed_is_refused(
    tree: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folders = _in_shards(tree, tmp_path / "m")
    for path in tree.glob("*/*"):
        change(path)

    with pytest.raises(DataError, match=words):
        merge_shards(folders, tmp_path / "m")
