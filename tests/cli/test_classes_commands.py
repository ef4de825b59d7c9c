"""`vit21k classes ...` and what `relabel` says about class lists."""

import json
from pathlib import Path

import pytest
from conftest import MakeTree
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import UsageError
from vit21k.manifest.api import read_manifest
from vit21k.manifest.class_lists import KNOWN_LISTS, known_list
from vit21k.manifest.classes import ClassList

TEDDY, DOG = "n04399382", "n02084071"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})


def _vit21k(*arguments: object) -> Result:
    result = _run(*arguments)
    if result.exception:
        raise result.exception
    return result


def test_lists_prints_every_known_list_with_its_length() -> None:
    result = json.loads(_vit21k("classes", "lists", "--json").stdout)
    shown = _vit21k("classes", "lists").stdout

    assert {row["name"]: row["num_classes"] for row in result} == {
        "fall11": 21_841,
        "winter21": 19_167,
        "in21k-p": 11_221,
        "in21k-p-winter21": 10_450,
        "in12k": 11_821,
        "google": 21_843,
        "microsoft": 21_842,
        "in1k": 1_000,
        "in1k-devkit": 1_000,
        "persons-unsafe": 1_593,
    }
    assert all(row["source"] for row in result)
    assert all(name in shown for name in KNOWN_LISTS)


def test_a_tree_is_identified_as_the_list_it_is(tmp_path: Path) -> None:
    for wnid in known_list("in1k").wnids:
        (tmp_path / "train" / wnid).mkdir(parents=True)

    result = _vit21k("classes", "identify", tmp_path)
    found = json.loads(_vit21k("classes", "identify", tmp_path, "--json").stdout)

    assert "identify: 1,000 classes: this is `in1k`" in result.stderr
    assert (found["is"], found["part_of"]) == ("in1k", ["microsoft"])
    assert found["lists"][1]["list"] == "in21k-p-winter21"
    assert "in1k-devkit" not in {row["list"] for row in found["lists"]}


def test_a_part_is_identified_as_a_part(tmp_path: Path) -> None:
    (tmp_path / "part.txt").write_text("n01440764\nn01443537\n")

    result = _vit21k("classes", "identify", tmp_path / "part.txt")

    assert "2 classes: a part of `in1k` (2 of 1,000), `in21k-p-winter21` (2 of" in result.stderr


def test_other_classes_are_named(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("\n".join([*known_list("in1k").wnids, "crane"]))
    (tmp_path / "tree" / "crane").mkdir(parents=True)
    (tmp_path / "tree" / "crane" / "1.jpg").touch()
    (tmp_path / "tree" / "derrick").mkdir()
    (tmp_path / "tree" / "derrick" / "1.jpg").touch()

    odd = _vit21k("classes", "identify", tmp_path / "odd.txt").stderr
    none = _vit21k("classes", "identify", tmp_path / "tree").stderr

    assert "not a known list; the nearest is `in1k`: 0 of its classes are missing, 1 " in odd
    assert "are not in it: `crane`" in odd
    assert "2 classes: none of them in any list of ImageNet" in none


@pytest.mark.parametrize(
    "content",
    [b"crane\n", b"# A page\n\nof text\n", b'{"a": {}}', b"\xff\xd8", b"n1/a.jpg 0\n"],
)
def test_what_is_no_list_is_not_identified(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(UsageError) as raised:
        _vit21k("classes", "identify", tmp_path / "file")

    assert raised.value.exit_code == 2
    assert raised.value.hint


def test_the_same_classes_in_another_order_are_not_the_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(reversed(known_list("in1k").wnids)))

    result = _vit21k("classes", "identify", tmp_path / "list.txt")

    assert "those of `in1k`, but in another order" in result.stderr


def test_winter21_is_identified(tmp_path: Path) -> None:
    (tmp_path / "w21.txt").write_text("\n".join(known_list("winter21").wnids))

    result = _vit21k("classes", "identify", tmp_path / "w21.txt")

    assert "19,167 classes: this is `winter21`" in result.stderr


def test_identify_writes_a_list_that_relabel_takes(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("classes", "identify", tiny_tree, "--write", tmp_path / "mine.txt")

    assert ClassList.read_text(tmp_path / "mine.txt").wnids == (
        *("n01440764", "n01443537", "n02512053"),
    )
    assert (tmp_path / "mine.txt").read_text().startswith("n01440764\ttench, Tinca tinca\n")


def test_relabel_warns_when_the_folders_are_a_part_of_a_list(
    tiny_tree: Path, tmp_path: Path
) -> None:
    _vit21k("hash", tiny_tree, "--manifests", tmp_path / "m")

    from_folders = _vit21k("relabel", "--manifests", tmp_path / "m")
    fixed = _vit21k("relabel", "--manifests", tmp_path / "m", "--classes", "fall11")
    classes = read_manifest("classes", tmp_path / "m")

    assert "only a part of" in from_folders.stderr
    assert "fall11 (21,841)" in from_folders.stderr
    assert "only a part of" not in fixed.stderr
    assert classes["wnid"].to_pylist() == list(known_list("fall11").wnids)
    assert "this is `fall11`" in _vit21k("classes", "identify", tmp_path / "m").stderr


def test_folders_called_by_numbers_are_warned_about(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({f"{number}/x.jpg": b"%d" % number for number in range(11)})
    _vit21k("hash", root, "--manifests", tmp_path / "m")

    result = _vit21k("relabel", "--manifests", tmp_path / "m")
    (tmp_path / "order.txt").write_text("".join(f"{number}\n" for number in range(11)))
    ordered = _vit21k("relabel", "--manifests", tmp_path / "m", "--classes", tmp_path / "order.txt")

    assert "class 2 is `10`" in result.stderr
    assert "by numbers" not in ordered.stderr


def test_relabel_is_silent_about_folders_of_another_data_set(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    _vit21k("hash", make_tree({"cat/1.jpg": b"a", "dog/1.jpg": b"b"}), "--manifests", tmp_path)

    assert "part of" not in _vit21k("relabel", "--manifests", tmp_path).stderr


def test_a_folder_that_is_not_in_the_list_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("hash", tiny_tree, "--manifests", tmp_path)

    result = _run("relabel", "--manifests", tmp_path, "--classes", "in1k")

    assert "`n02512053` is not in the class list" in str(result.exception)


def test_show_says_what_a_dog_is_and_where() -> None:
    shown = _vit21k("classes", "show", DOG).stdout
    found = json.loads(_vit21k("classes", "show", DOG, "--json").stdout)

    assert "name                  dog, domestic dog, Canis familiaris" in shown
    assert "in in1k               not in it (-1); its subtree has 118 classes" in shown
    assert found["class_index"]["fall11"] == 2_167
    assert list(found["parents"]) == ["n02083346", "n01317541"]


def test_show_takes_a_class_index_with_a_list() -> None:
    assert TEDDY in _vit21k("classes", "show", "850", "--list", "in1k").stdout
    for arguments in (("850",), ("1000", "--list", "in1k"), ("n99999999",)):
        assert isinstance(_run("classes", "show", *arguments).exception, UsageError)


def test_search_finds_both_cranes_of_imagenet_1k() -> None:
    found = json.loads(_vit21k("classes", "search", "Crane", "--list", "in1k", "--json").stdout)
    result = _vit21k("classes", "search", "crane", "--limit", 2)

    assert [row["wnid"] for row in found][:2] == ["n02012849", "n03126707"]
    assert [row["class_index"] for row in found][:2] == [134, 517]
    assert "search: 13 in `fall11`, 2 shown" in result.stderr
    assert "all nouns" in _vit21k("classes", "search", "physicist", "--list", "all").stderr


def test_map_says_aloud_that_the_teddy_is_not_in_fall11() -> None:
    result = _vit21k("classes", "map", 207, 850)
    everything = _vit21k("classes", "map", "--json")

    assert result.stdout.splitlines()[1].split()[:3] == ["207", "2264", "n02099601"]
    assert f"{TEDDY} (teddy, teddy bear), 850 in in1k: -1, not in fall11" in result.stderr
    assert "map: 2 classes of `in1k`: 1 in `fall11`, 1 not (-1)" in result.stderr
    assert json.loads(everything.stdout)["850"] == -1
    assert "1,000 classes of `in1k`: 999 in `fall11`, 1 not (-1)" in everything.stderr


def test_map_refuses_an_index_that_the_list_does_not_have() -> None:
    with pytest.raises(UsageError, match="0 to 999"):
        _vit21k("classes", "map", 1000)
