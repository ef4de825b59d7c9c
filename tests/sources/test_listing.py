"""`sources.listing`: images of archives by name, and what is wrong with them."""

import gzip
import zipfile
from pathlib import Path

import pytest
from tar_files import tar_of

from vit21k.errors import ImageError
from vit21k.sources.listing import list_images, read_path
from vit21k.sources.read import ImageReader

CONTENTS = {"b/2.JPG": b"two" * 400, "a/1.png": b"one", "a/notes.txt": b"no image"}


@pytest.fixture
def reader(tmp_path: Path) -> ImageReader:
    """Reads below a folder with the same members in archives of several formats."""
    tar = tar_of(CONTENTS)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plain.tar").write_bytes(tar)
    (tmp_path / "packed.tgz").write_bytes(gzip.compress(tar))
    methods = {"stored.zip": zipfile.ZIP_STORED, "deflated.ZIP": zipfile.ZIP_DEFLATED}
    for name, method in methods.items():
        with zipfile.ZipFile(tmp_path / name, "w", method) as file:
            for member, content in CONTENTS.items():
                file.writestr(member, content)
    (tmp_path / "outer.tar").write_bytes(tar_of({"n1.tar": tar, "n2.tar": tar_of({"c.jpg": b"3"})}))
    return ImageReader(tmp_path, unpacks=True)


@pytest.mark.parametrize("name", ["in/plain.tar", "packed.tgz", "stored.zip", "deflated.ZIP"])
def test_images_are_listed_in_their_order_and_read(reader: ImageReader, name: str) -> None:
    found, skipped = list_images(reader, name)

    assert found == ["b/2.JPG", "a/1.png"]
    assert [(one.why, one.may_hold_images) for one in skipped] == [
        ("1 members with other suffixes", False)
    ]
    assert [read_path(reader, f"{name}/{one}") for one in found] == [b"two" * 400, b"one"]


def test_members_of_class_tars_are_read_in_the_outer_tar(reader: ImageReader) -> None:
    found, _ = list_images(reader, "outer.tar")

    assert found == ["n1.tar/b/2.JPG", "n1.tar/a/1.png", "n2.tar/c.jpg"]
    assert read_path(reader, "outer.tar/n2.tar/c.jpg") == b"3"


def test_paths_may_be_absolute_or_of_the_current_folder(
    reader: ImageReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del reader
    monkeypatch.chdir(tmp_path)
    anywhere = ImageReader("", unpacks=True)

    assert read_path(anywhere, "in/plain.tar/a/1.png") == b"one"
    assert read_path(anywhere, str(tmp_path / "stored.zip" / "a" / "1.png")) == b"one"


@pytest.mark.parametrize("path", ["stored.zip/gone.jpg", "gone.zip/a.jpg", "../in/plain.tar/x"])
def test_what_is_not_there_is_an_error(reader: ImageReader, path: str) -> None:
    with pytest.raises(ImageError, match=r"not there|has no such member"):
        read_path(reader, path)


def test_a_damaged_member_of_a_zip_is_listed_and_not_read(
    reader: ImageReader, tmp_path: Path
) -> None:
    content = (tmp_path / "stored.zip").read_bytes()
    (tmp_path / "damaged.zip").write_bytes(content.replace(b"one", b"eno", 1))

    assert list_images(reader, "damaged.zip")[0] == ["b/2.JPG", "a/1.png"]
    with pytest.raises(ImageError, match="CRC-32"):
        read_path(reader, "damaged.zip/a/1.png")


@pytest.mark.parametrize("name", ["text.tar", "text.zip", "text.tar.gz"])
def test_what_is_no_archive_is_refused_by_name(
    reader: ImageReader, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"no archive")

    with pytest.raises(ImageError, match=f"`{name}` cannot be read as an archive"):
        list_images(reader, name)
