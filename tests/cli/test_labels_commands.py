"""`vit21k labels ...`, on a tree with planted copies."""

import json
from pathlib import Path

import pytest
from conftest import MakeTree
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import UsageError
from vit21k.manifest.api import read_manifest
from vit21k.manifest.class_lists import known_list

FILES = {
    "n02088364/1.JPEG": b"beagle",
    "n02084071/2.JPEG": b"beagle",  # a beagle is a dog
    "n02084071/3.JPEG": b"dog",
    "n07639069/4.JPEG": b"doughnut",
    "n04394261/5.JPEG": b"doughnut",  # a doughnut is no target
    "n04394261/6.JPEG": b"target",
}


def _vit21k(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    if result.exception:
        raise result.exception
    return result


@pytest.fixture
def manifests(make_tree: MakeTree, tmp_path: Path) -> Path:
    _vit21k("hash", make_tree(FILES), "--manifests", tmp_path / "m")
    _vit21k("relabel", "--manifests", tmp_path / "m")
    return tmp_path / "m"


def test_stats_prints_counts_of_labels_and_of_the_list(manifests: Path) -> None:
    result = _vit21k("labels", "stats", "--manifests", manifests)
    stats = json.loads(_vit21k("labels", "stats", "--manifests", manifests, "--json").stdout)

    assert "stats: 4 images have 6 labels of 4 classes" in result.stderr
    assert "mean labels with hypernyms                  1.5" in result.stdout
    assert (stats["num_labels_above_another"], stats["classes"]["num_leaves"]) == (1, 3)


def test_conflicts_prints_the_most_doubtful_first(manifests: Path) -> None:
    result = _vit21k("labels", "conflicts", "--manifests", manifests)
    found = json.loads(_vit21k("labels", "conflicts", "--manifests", manifests, "--json").stdout)

    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        *("relation", "far", "ancestor")
    ]
    assert "4 images, 2 with several labels: 1 far, 0 unknown, 0 near, 0 siblings, 1 anc" in (
        result.stderr
    )
    assert found["conflicts"][0]["common"] == "n00001930 physical entity"
    assert read_manifest("conflicts", manifests / "labels" / "conflicts").num_rows == 2


def test_reduce_expand_and_select_write_folders_of_their_own(manifests: Path) -> None:
    reduced = _vit21k("labels", "reduce", "--manifests", manifests)
    expanded = _vit21k("labels", "expand", "--manifests", manifests)
    both = _vit21k(
        *("labels", "expand", "--into-labels", "--manifests", manifests),
        *("--out", manifests / "both"),
    )
    selected = _vit21k("labels", "select", "--drop", "n02084071", "--manifests", manifests)

    assert "4 images: 1 with other labels, 3 unchanged, 0 skipped; 6 labels are now 5" in (
        reduced.stderr
    )
    assert "4 images: 6 labels and 0 hypernyms, 4 images without" in expanded.stderr
    assert "0 with other labels, 4 unchanged" in both.stderr
    assert "4 images: 0 with other labels, 2 unchanged, 2 skipped" in selected.stderr
    assert "4 classes before, 2 now, 0 of them without images" in selected.stderr
    assert read_manifest("images", manifests / "labels" / "select").num_rows == 2


def test_select_names_the_classes_of_the_list_that_were_not_there(manifests: Path) -> None:
    (manifests / "list.txt").write_text("n04399382\nn02088364\n")

    result = _vit21k(
        *("labels", "select", "--keep", manifests / "list.txt", "--manifests", manifests, "--json")
    )

    assert "1 classes of the list are not in the old one and have no images: n04399382 (teddy" in (
        result.stderr
    )
    assert "3 classes are dropped (-1): n02084071 (dog, " in result.stderr
    assert json.loads(result.stdout)["lost"] == ["n04399382"]


def test_the_teddy_goes_with_minus_one_when_indices_become_those_of_fall11(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    tree = make_tree({"n04399382/1.JPEG": b"teddy", "n01440764/2.JPEG": b"tench"})
    _vit21k("hash", tree, "--manifests", tmp_path / "m")
    _vit21k("relabel", "--classes", "in1k", "--manifests", tmp_path / "m")

    result = _vit21k("labels", "select", "--keep", "fall11", "--manifests", tmp_path / "m")

    assert "1 classes are dropped (-1): n04399382 (teddy, teddy bear)" in result.stderr
    assert "1 skipped" in result.stderr
    images = read_manifest("images", tmp_path / "m" / "labels" / "select")
    assert images["label_ids"].to_pylist() == [[known_list("fall11").wnids.index("n01440764")]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing is selected"),
        (("--preset", "21k-p", "--drop", "n02084071"), "cannot be combined"),
        (("--preset", "21k-p"), "no class is left"),
    ],
)
def test_a_selection_of_nothing_is_refused(
    manifests: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _vit21k("labels", "select", *arguments, "--manifests", manifests)


def test_tree_writes_that_of_the_manifests_or_of_a_list(manifests: Path) -> None:
    result = _vit21k("labels", "tree", "--manifests", manifests)
    _vit21k("labels", "tree", "--classes", "in1k", "--out", manifests / "in1k.json")

    assert "tree: 4 classes: 3 roots, 1 below them, at most 1 levels deep" in result.stderr
    assert json.loads((manifests / "labels" / "tree.json").read_text())["num_classes"] == 4
    assert json.loads((manifests / "in1k.json").read_text())["num_classes"] == 1000


def test_the_facts_of_a_list_come_out_of_a_command() -> None:
    result = _vit21k("classes", "stats")
    facts = json.loads(_vit21k("classes", "stats", "in21k-p", "--json").stdout)

    assert "stats: 21,841 classes: 17,253 leaves, 4,588 with descendants" in result.stderr
    assert "mean ancestors in list                      4.66" in result.stdout
    assert (facts["is"], facts["num_people"]) == ("in21k-p", 876)
