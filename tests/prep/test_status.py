"""`prep.status`: what is fresh, stale, missing or damaged, and what to type next."""

from pathlib import Path

from conftest import MakeTree

from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.prep.status import AFTER_ALL, status_of


def _states(manifests: Path) -> dict[str, str]:
    return {each.kind: each.state for each in status_of(manifests).manifests}


def test_an_empty_folder_misses_everything_and_hash_comes_first(tmp_path: Path) -> None:
    status = status_of(tmp_path / "m")

    assert set(_states(tmp_path / "m").values()) == {"missing"}
    assert status.next == "vit21k hash <image root>"
    assert not (tmp_path / "m").exists()


def test_each_stage_is_followed_by_the_next(tiny_tree: Path, tmp_path: Path) -> None:
    manifests = tmp_path / "m"
    hash_tree(tiny_tree, manifests)
    after_hash = status_of(manifests).next
    relabel(manifests)
    after_relabel = status_of(manifests).next
    make_val(manifests)

    assert (after_hash, after_relabel) == ("vit21k relabel", "vit21k make-val")
    assert status_of(manifests).next == AFTER_ALL
    assert set(_states(manifests).values()) == {"fresh"}
    assert status_of(manifests).has_root


def test_a_stage_whose_input_has_changed_is_stale(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/a.jpg": b"a", "n1/b.jpg": b"b"})
    manifests = tmp_path / "m"
    hash_tree(root, manifests)
    relabel(manifests)
    make_val(manifests)
    make_tree({"n1/c.jpg": b"c"})
    hash_tree(root, manifests)

    states = _states(manifests)

    assert states["digests"] == "fresh"
    assert {states[name] for name in ("images", "copies", "train", "val")} == {"stale"}
    assert status_of(manifests).next == "vit21k relabel"


def test_a_damaged_manifest_is_to_be_made_again(tiny_tree: Path, tmp_path: Path) -> None:
    manifests = tmp_path / "m"
    hash_tree(tiny_tree, manifests)
    path = manifests / "digests.parquet"
    path.write_bytes(path.read_bytes()[:-20])

    assert _states(manifests)["digests"] == "damaged"
    assert status_of(manifests).next.startswith("vit21k hash")
