"""`vit21k.hash`, `relabel`, `make_val`, `leaks`: the commands as functions of plain values."""

from pathlib import Path

import pytest
from conftest import MakeTree
from malformed_images import encoded

import vit21k


def test_the_commands_are_functions_with_paths_as_text(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = encoded()
    make_tree({"other/1.JPEG": image + bytes([0])}).rename(tmp_path / "val")
    files = {f"n0144376{number}/1.JPEG": image + bytes([number]) for number in range(3)}
    make_tree(files).rename(tmp_path / "root")
    monkeypatch.chdir(tmp_path)

    hashed = vit21k.hash("root", "manifests")
    relabelled = vit21k.relabel("manifests")
    split = vit21k.make_val("manifests", per_class=1)
    found = vit21k.leaks("manifests", "val")

    assert (hashed.num_files, relabelled.num_classes, split.num_val) == (3, 3, 3)
    assert found.num_found["exact"] == 1
    assert vit21k.read_manifest("leaks", "manifests").num_rows == 3


def test_every_public_name_is_there() -> None:
    assert all(callable(getattr(vit21k, name)) for name in ("hash", "leaks", "make_val"))
