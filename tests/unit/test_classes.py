"""`manifest.classes`: an ordered list of class folders, known by its fingerprint."""

import hashlib
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"n1\nn2\nn1\n", "`n1` occurs twice"),
        (b"\xff\xfe", "is not a text file"),
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
