"""Unusual inputs of real copies, from the tree to the images; and the page that lists them."""

import ast
import os
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
import xxhash
from conftest import MakeTree

from vit21k.data.dataset import ImageDataset
from vit21k.errors import DataError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import COPIES, DIGESTS, IMAGES, PROBLEMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.plsc import export_lists
from vit21k.prep.relabel import relabel

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "internals" / "tricky-inputs.md"

ODD_NAMES = [
    "a b.jpg",
    "a\tb.jpg",
    "a\nb.jpg",
    "a\\b.jpg",
    "a\\nb.jpg",
    "-rf.jpg",
    "%s$HOME`x`.jpg",
    "\N{GRINNING FACE}.jpg",
    "A.JPG",
    "a.JPG",
    unicodedata.normalize("NFC", "\u00e9.jpg"),
    unicodedata.normalize("NFD", "\u00e9.jpg"),
    "\\xe9.jpg",
    "x" * 251 + ".jpg",
]


def _hash_and_relabel(root: Path, manifests: Path, **options: bool) -> Path:
    hash_tree(root, manifests, **options)
    relabel(manifests)
    return manifests


def test_a_file_with_an_unusual_name_is_hashed_relabelled_and_read(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {f"n1/{name}": os.fsencode(name) for name in ODD_NAMES}
    manifests = _hash_and_relabel(make_tree(files), tmp_path / "m")

    images = ImageDataset.from_manifest(open_manifest(manifests, IMAGES))

    assert len(images) == len(ODD_NAMES)
    assert {images.path(row): images.read_bytes(row) for row in range(len(images))} == files


def test_lists_refuse_a_name_that_they_cannot_hold(make_tree: MakeTree, tmp_path: Path) -> None:
    manifests = _hash_and_relabel(make_tree({"n1/a b.jpg": b"1"}), tmp_path / "m")

    with pytest.raises(DataError, match="a blank"):
        export_lists(manifests, tmp_path / "lists")

    assert not list((tmp_path / "lists").glob("*"))


def test_what_is_one_name_on_other_systems_is_two_files_with_their_own_labels(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    composed, decomposed = "n1/\u00e9.jpg", "n2/e\u0301.jpg"
    files = {composed: b"1", decomposed: b"1", "n1/a.jpg": b"2", "N1/A.jpg": b"2"}
    manifests = _hash_and_relabel(make_tree(files), tmp_path / "m")

    images = read_manifest(manifests, IMAGES).to_pylist()
    wnids = open_manifest(manifests, IMAGES).classes().wnids

    assert wnids == ("N1", "n1", "n2")
    assert {image["path"]: image["label_ids"] for image in images} == {
        "N1/A.jpg": [0, 1],
        composed: [1, 2],
    }
    assert read_manifest(manifests, COPIES)["path"].to_pylist() == ["n1/a.jpg", decomposed]


def test_hard_links_in_two_classes_are_one_image_with_both_labels(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1/x.jpg": b"x", "n2/y.jpg": b"y"})
    (root / "n2" / "link.jpg").hardlink_to(root / "n1" / "x.jpg")
    manifests = _hash_and_relabel(root, tmp_path / "m")

    [kept, other] = read_manifest(manifests, IMAGES).to_pylist()

    assert (kept["path"], kept["label_ids"], kept["num_files"]) == ("n1/x.jpg", [0, 1], 2)
    assert (other["path"], other["label_ids"]) == ("n2/y.jpg", [1])


def test_empty_files_are_never_one_image(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/empty.jpg": b"", "n2/empty.jpg": b"", "n2/x.jpg": b"x"})
    manifests = _hash_and_relabel(root, tmp_path / "m")

    assert read_manifest(manifests, IMAGES)["path"].to_pylist() == ["n2/x.jpg"]
    assert read_manifest(manifests, PROBLEMS)["kind"].to_pylist() == ["empty", "empty"]


def test_a_tree_within_the_tree_is_not_read_twice(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"images/n1/x.jpg": b"x"})
    (root / "again").symlink_to(root / "images")
    (root / "images" / "n1" / "root").symlink_to(root)
    manifests = _hash_and_relabel(root, tmp_path / "m", follow_symlinks=True)

    assert read_manifest(manifests, DIGESTS)["path"].to_pylist() == ["again/n1/x.jpg"]
    assert [
        (row["path"], row["kind"]) for row in read_manifest(manifests, PROBLEMS).to_pylist()
    ] == [("again/n1/root/", "symlink_loop"), ("images/", "folder_seen_before")]


def test_a_folder_that_is_mounted_twice_is_read_once(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"images/n1/x.jpg": b"x", "mounted/n0/y.jpg": b"y"})
    command = ["mount", "--bind", root / "images", root / "mounted"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("may not mount")
    try:
        hash_tree(root, tmp_path / "m")
    finally:
        subprocess.run(["umount", root / "mounted"], check=True)

    assert read_manifest(tmp_path / "m", DIGESTS)["path"].to_pylist() == ["images/n1/x.jpg"]
    [problem] = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert (problem["path"], problem["kind"]) == ("mounted/", "folder_seen_before")
    assert problem["detail"] == "is `images/`"


def test_devices_are_never_opened(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/x.jpg": b"x"})
    try:
        os.mknod(root / "n1" / "zero.jpg", 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("may not make a device")

    hash_tree(root, tmp_path / "m")

    [problem] = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert (problem["path"], problem["kind"]) == ("n1/zero.jpg", "not_a_regular_file")


@pytest.mark.slow
def test_a_file_of_more_than_four_gigabytes_is_read_to_its_end(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1/x.jpg": b"z"})
    os.truncate(root / "n1" / "x.jpg", 2**32 + 1)
    with (root / "n1" / "x.jpg").open("ab") as file:
        file.write(b"last")
    wanted = xxhash.xxh3_128(b"z")
    for _ in range(2**12):
        wanted.update(bytes(2**20))
    wanted.update(b"last")

    hash_tree(root, tmp_path / "m")

    [row] = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    assert row["num_bytes"] == 2**32 + 5
    assert row["digest"] == wanted.digest()


def test_the_page_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    functions: dict[str, set[str]] = {}
    for name in {name for name, _ in named}:
        tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
        functions[name] = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}

    assert len(named) > 40
    assert [(name, test) for name, test in named if test not in functions[name]] == []


def test_every_row_of_the_page_names_a_test() -> None:
    rows = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| input |")
    ]

    assert len(rows) > 20
    assert [row for row in rows if "tests/" not in row] == []
