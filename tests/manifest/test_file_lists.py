"""`vit21k.manifest.file_lists`: lists of files in the forms that others write them in."""

import json
from pathlib import Path

import pytest

from vit21k.errors import ManifestError
from vit21k.manifest.file_lists import FileNames, read_names, read_text_table

PAIRS = [("a/1.jpg", "cat"), ("b 2.png", "dog, small")]


def _written(folder: Path, content: str | bytes, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'file,label\na/1.jpg,cat\nb 2.png,"dog, small"\n'),
        ("a.csv", 'any,thing\r\na/1.jpg,cat\r\n"b 2.png","dog, small"\r\n\r\n'),
        ("a.csv", b"\xef\xbb\xbf" + b'a/1.jpg,cat\nb 2.png,"dog, small"'),
        ("a.csv", 'a/1.jpg;cat\nb 2.png;"dog, small"\n'),
        ("a.tsv", "a/1.jpg\tcat\nb 2.png\tdog, small\n"),
        ("a.txt", 'a/1.jpg\tcat\nb 2.png\t"dog, small"\n'.encode("utf-16")),
        ("a.txt", "a/1.jpg cat\nb 2.png dog, small\n"),
        ("a.json", json.dumps(dict(PAIRS))),
        ("a.json", json.dumps(PAIRS)),
        ("a.json", json.dumps({"labels": PAIRS})),
        ("a.json", json.dumps({"cat": ["a/1.jpg"], "dog, small": ["b 2.png"]})),
        ("a.json", json.dumps([{"image": k, "y": v} for k, v in PAIRS], indent=1)),
        ("a.jsonl", "\n".join(json.dumps({"file_name": k, "label": v}) for k, v in PAIRS)),
    ],
)
def test_every_form_gives_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    table = read_text_table(_written(tmp_path, content, name))

    index = table.file_column()
    assert [(row[index], row[1 - index]) for row in table.rows] == PAIRS
    assert read_names(_written(tmp_path, content, name)) == [name for name, _ in PAIRS]


def test_one_json_line_is_a_row(tmp_path: Path) -> None:
    table = read_text_table(_written(tmp_path, '{"file_name": "1.jpg", "label": 3}\n', "a.jsonl"))

    assert (table.columns, table.rows) == (("file_name", "label"), [("1.jpg", "3")])


def test_nulls_are_empty_cells(tmp_path: Path) -> None:
    rows = read_text_table(_written(tmp_path, '[["a.jpg", null], ["b.jpg", NaN]]')).rows

    assert rows == [("a.jpg", ""), ("b.jpg", "")]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        b"\xff\xd8\xff",
        '{"a": ',
        '[["a", 1], ["b"]]',
        "file,label\n",
        "a,b\nc,d,e\n",
        'x,"a\nb,c',
    ],
)
def test_what_is_no_list_is_refused(content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        read_text_table(_written(tmp_path, content))
    with pytest.raises(ManifestError, match="no list at"):
        read_text_table(tmp_path / "none")


def test_which_column_has_the_files_is_not_guessed(tmp_path: Path) -> None:
    two = read_text_table(_written(tmp_path, "left,right\na.jpg,b.jpg\nc.jpg,d.jpg\n"))
    none = read_text_table(_written(tmp_path, "x,y,label\n1,2,3\n4,5,6\n"))

    for table in (two, none):
        with pytest.raises(ManifestError, match="is not clear"):
            table.file_column()


def test_names_are_read_from_lines_with_and_without_labels(tmp_path: Path) -> None:
    lines = ["n1/n1_1.JPEG 65", "n1/n1_2.JPEG", "", "with, comma.jpg", "n1_3 7", "00ff" * 8, "n1_3"]
    expected = ["n1/n1_1.JPEG", "n1/n1_2.JPEG", "with, comma.jpg", "n1_3", "00ff" * 8]

    assert read_names(_written(tmp_path, "\n".join(lines))) == expected
    assert read_names(_written(tmp_path, json.dumps(expected))) == expected


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a/1.jpg", "a/1.jpg"),
        ("/data/tree/a/1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        ("1.jpg", "deep/a/1.jpg"),
        ("1", "a/1.jpg"),
        ("1.JPEG", "a/1.webp"),
        ("x/a/1", "a/1.png"),
    ],
)
def test_a_name_is_found_with_other_folders_and_suffixes(name: str, path: str) -> None:
    assert FileNames(["other.jpg", name]).find(path) == [1]


@pytest.mark.parametrize(("name", "path"), [("b/1.jpg", "a/1.jpg"), ("11.jpg", "1.jpg")])
def test_another_name_is_not_found(name: str, path: str) -> None:
    assert FileNames([name]).find(path) == []


def test_the_exact_name_counts_before_others() -> None:
    names = FileNames(["1.jpg", "a/1.jpg", "a/1.png"])

    assert names.find("a/1.png") == [2]
    assert names.find("a/1.jpg") == [1]
    assert names.find("b/1.jpg") == [0]


def test_several_names_that_may_be_meant_are_all_returned() -> None:
    assert FileNames(["a/1.jpg", "b/1.jpg"]).find("1.jpg") == [0, 1]
