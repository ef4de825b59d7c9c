"""`prep.byte_compare`: files with equal digests, read again side by side."""

from pathlib import Path

import pytest
from conftest import MakeTree
from tar_files import tar_of

from vit21k.errors import DataError, ImageError
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.verify import compare_copies


def test_every_copy_is_compared_with_the_first(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")

    assert compare_copies(tmp_path / "m") == 2


def test_copies_in_archives_are_compared_too(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1.tar": tar_of({"a.jpg": b"same", "b.jpg": b"same"}), "n2/c.jpg": b"same"})
    hash_tree(root, tmp_path / "m")

    assert compare_copies(tmp_path / "m") == 2


def test_equal_digests_of_other_bytes_are_refused_with_both_names(
    tiny_tree: Path, tmp_path: Path
) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    (tiny_tree / "n02512053" / "n02512053_9.JPEG").write_bytes(b"fake")  # as if it collided

    with pytest.raises(DataError, match="not the same bytes") as raised:
        compare_copies(tmp_path / "m")

    assert "n01443537_2.JPEG" in raised.value.message
    assert "n02512053_9.JPEG" in raised.value.message
    assert "blake2b" in (raised.value.hint or "")


def test_a_copy_that_has_gone_is_named(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    (tiny_tree / "n02512053" / "n02512053_9.JPEG").unlink()

    with pytest.raises(ImageError, match=r"n02512053_9\.JPEG"):
        compare_copies(tmp_path / "m")
