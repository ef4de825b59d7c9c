"""`prep.verify`: each way in which a tree can differ from its manifest, and no other."""

import hashlib
import os
from pathlib import Path

import pytest
from conftest import TINY_FILES, MakeTree
from tar_files import tar_of, tar_of_tars

from vit21k.errors import ImageTreeError
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.plsc import import_md5sum
from vit21k.prep.verify import VerifySummary, verify


def _lines(manifests: Path, **options: object) -> tuple[list[str], VerifySummary]:
    lines: list[str] = []
    summary = verify(
        manifests,
        on_file=lambda sign, path: lines.append(f"{sign} {path}"),
        **options,  # type: ignore[arg-type]
    )
    return lines, summary


def test_a_tree_that_has_not_changed_is_the_same(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")

    lines, summary = _lines(tmp_path / "m")

    assert lines == [f"= {path}" for path in sorted(TINY_FILES)]
    assert summary == VerifySummary(num_files=6, num_same=6)
    assert summary.is_same


def test_every_difference_has_its_sign(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    changed, gone, unreadable, *same = sorted(TINY_FILES)
    (tiny_tree / changed).write_bytes(b"other")
    (tiny_tree / gone).unlink()
    (tiny_tree / unreadable).unlink()
    (tiny_tree / unreadable).mkdir()
    (tiny_tree / unreadable).rmdir()
    os.mkfifo(tiny_tree / unreadable)
    (tiny_tree / "n01443537" / "new.jpg").write_bytes(b"new")

    lines, summary = _lines(tmp_path / "m")

    expected = [f"* {changed}", f"! {unreadable}", *(f"= {path}" for path in same)]
    assert sorted(lines) == sorted([*expected, "+ n01443537/new.jpg", f"- {gone}"])
    assert lines[-1] == f"- {gone}"
    assert not summary.is_same
    assert summary.num_files == (
        summary.num_same + summary.num_different + summary.num_missing + summary.num_unreadable
    )


def test_the_same_size_and_time_do_not_hide_other_bytes(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    path = tiny_tree / "n01440764" / "n01440764_1.JPEG"
    status = path.stat()
    path.write_bytes(b"hcnet")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    lines, _ = _lines(tmp_path / "m")

    assert "* n01440764/n01440764_1.JPEG" in lines


def test_a_problem_that_was_known_is_no_difference(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/a.jpg": b"a", "n1/empty.jpg": b""})
    hash_tree(root, tmp_path / "m")
    known = _lines(tmp_path / "m")
    (root / "n1" / "empty2.jpg").touch()

    assert known == (["= n1/a.jpg"], VerifySummary(num_files=1, num_same=1))
    assert _lines(tmp_path / "m")[0] == ["= n1/a.jpg", "! n1/empty2.jpg"]


@pytest.mark.parametrize("kind", ["class tars", "a tar of tars", "a gzip'd tar of tars"])
def test_members_of_archives_are_verified_too(
    kind: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    def lay_out(last: bytes) -> Path:
        folders = {"n1": {"a.jpg": b"a", "b.jpg": b"b"}, "n2": {"c.jpg": last}}
        if kind == "class tars":
            return make_tree({f"{wnid}.tar": tar_of(files) for wnid, files in folders.items()})
        name = "whole.tar" if kind == "a tar of tars" else "whole.tgz"
        return make_tree({name: tar_of_tars(folders, compressed="gzip" in kind)}) / name

    hash_tree(lay_out(b"c"), tmp_path / "m")
    before = _lines(tmp_path / "m")[0]
    lay_out(b"d")

    assert [line[:2] for line in before] == ["= "] * 3
    assert _lines(tmp_path / "m")[0] == ["= n1/a.jpg", "= n1/b.jpg", "* n2/c.jpg"]


def test_an_archive_that_was_cut_off_says_which_members_are_missing(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1.tar": tar_of({"a.jpg": b"a", "b.jpg": b"b"})})
    hash_tree(root, tmp_path / "m")
    os.truncate(root / "n1.tar", 1024)

    assert _lines(tmp_path / "m")[0] == ["= n1/a.jpg", "! n1.tar", "- n1/b.jpg"]


def test_a_tree_that_has_moved_is_found_with_root(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    moved = tiny_tree.rename(tmp_path / "moved")

    with pytest.raises(ImageTreeError, match="not a folder") as raised:
        _lines(tmp_path / "m")

    assert "--root" in (raised.value.hint or "")
    assert _lines(tmp_path / "m", root=moved)[1].is_same


def test_what_md5sum_printed_can_be_verified(tiny_tree: Path, tmp_path: Path) -> None:
    lines = [f"{hashlib.md5(content).hexdigest()}  {path}" for path, content in TINY_FILES.items()]
    (tmp_path / "md5sum.txt").write_text("\n".join(reversed(lines)) + "\n")
    import_md5sum(tmp_path / "md5sum.txt", tmp_path / "m", root=tiny_tree)

    assert _lines(tmp_path / "m")[1].is_same


def test_the_number_of_workers_changes_no_line(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    (tiny_tree / "n01440764" / "n01440764_1.JPEG").unlink()

    assert _lines(tmp_path / "m", num_workers=1) == _lines(tmp_path / "m", num_workers=8)


def test_a_manifest_without_files_has_new_ones(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/a.jpg": b""})
    hash_tree(root, tmp_path / "m")
    (root / "n1" / "a.jpg").write_bytes(b"a")

    assert _lines(tmp_path / "m")[0] == ["+ n1/a.jpg"]
