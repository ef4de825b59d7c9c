"""`manifest.classes`: an ordered list of class folders, known by its fingerprint."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList


@given(st.lists(st.text(min_size=1), min_size=1))
def test_folders_are_sorted_and_occur_once(folders: list[str]) -> None:
    classes = ClassList.from_folders(folders)

    assert list(classes.wnids) == sorted(set(folders))
    assert classes.names == (None,) * len(classes)


def test_the_fingerprint_is_of_the_ordered_folders_alone() -> None:
    assert (
        ClassList(("n1", "n2")).fingerprint
        == ClassList(("n1", "n2"), ("one", "two")).fingerprint
        == hashlib.sha256(b"n1\nn2").hexdigest()
    )
    assert ClassList(("n1", "n2")).fingerprint != ClassList(("n2", "n1")).fingerprint


def test_a_folder_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match="`n1` occurs twice"):
        ClassList(("n1", "n2", "n1"))


def test_names_and_folders_are_equally_many() -> None:
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        ClassList(("n1", "n2"), ("one",))


def test_a_text_file_has_a_class_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(
        "n00000002\n\nn00000001 tench, Tinca tinca\r\nairplane\tan aeroplane\nred fox\n"
    )

    classes = ClassList.read_text(path)

    assert classes.wnids == ("n00000002", "n00000001", "airplane", "red fox")
    assert classes.names == (None, "tench, Tinca tinca", "an aeroplane", None)


FOUR = ("n01440764", "n01443537", "n01484850", "n01491361")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark")
PAIRS = [list(pair) for pair in zip(FOUR, NAMES, strict=True)]
OTHERS_FORMS = {
    "a byte order mark": "\ufeff" + "\n".join(FOUR),
    "line ends of DOS": "\r\n".join(FOUR) + "\r\n",
    "both": "\ufeff" + "".join(f"{wnid}\t{name}\r\n" for wnid, name in PAIRS),
    "imagenet_class_index.json": json.dumps({str(k): pair for k, pair in enumerate(PAIRS)}),
    "the same in another order": json.dumps({str(k): PAIRS[k] for k in (2, 0, 3, 1)}),
    "class_to_idx": json.dumps({FOUR[k]: k for k in (3, 1, 2, 0)}),
    "id2label": json.dumps({str(k): wnid for k, wnid in enumerate(FOUR)}),
    "an array": "\ufeff" + json.dumps(FOUR, indent=1),
    "an array of pairs": json.dumps(PAIRS),
}


@pytest.mark.parametrize("form", OTHERS_FORMS)
def test_lists_as_others_write_them_are_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_bytes(OTHERS_FORMS[form].encode())

    classes = ClassList.read_text(path)

    assert classes.wnids == FOUR
    assert classes.names in (NAMES, (None,) * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"n1\nn2\nn1\n", "`n1` occurs twice"),
        (b"\xff\xfe", "is not a text file"),
        (b"n1\nn2/x.jpg 0\n", "'n2/x.jpg 0' is not the name of a folder"),
        (b"n01440764/n01440764_0.JPEG\t0\n", "is not a class list"),
        (b"n1\n\x00\n", "is not a class list"),
        (b"{}", "is empty"),
        (b'{"0": ["n1", "x"], "2": ["n2", "y"]}', "JSON of another form"),
        (b'{"n1": 0, "n2": 0}', "JSON of another form"),
        (b'{"n1": 1, "n2": 2}', "JSON of another form"),
        (b'{"architectures": ["ViT"], "id2label": {"0": "n1"}}', "JSON of another form"),
        (b"[1, 2]", "JSON of another form"),
        (b'["n1", ["n2"]]', "JSON of another form"),
        (b"[" * 100_000, "JSON of another form"),
        (b'["n1", "n1"]', "`n1` occurs twice"),
    ],
)
def test_a_file_that_is_no_class_list_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)

    with pytest.raises(ManifestError, match=message):
        ClassList.read_text(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no class list at"):
        ClassList.read_text(tmp_path / "nowhere.txt")
    with pytest.raises(ManifestError, match="is not a text file"):
        ClassList.read_text(tmp_path)
