import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vit21k.data.rows import PictureRows
from vit21k.errors import ImageError
from vit21k.inference.files import Files, RowRange, find_pictures, printable


def test_folders_are_searched_in_depth_and_in_order(tmp_path):
    for name in ("b/2.JPEG", "b/1.png", "a/x/3.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()

    found = find_pictures([tmp_path / "notes.txt", tmp_path, Path("gone")])

    assert [str(path.relative_to(tmp_path)) for path in found[1:-1]] == [
        "a/x/3.jpg",
        "b/1.png",
        "b/2.JPEG",
        "c.webp",
    ]
    assert (found[0], found[-1]) == (tmp_path / "notes.txt", Path("gone"))


@pytest.fixture
def archive(tmp_path):
    """A tar of two pictures and a text, their contents by name."""
    contents = {"b/2.JPG": b"two" * 99, "a/1.png": b"one", "a/notes.txt": b"no picture"}
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path, contents


def test_the_pictures_of_an_archive_are_found_as_they_lie(archive):
    path, _ = archive

    assert find_pictures([path]) == [path / "b/2.JPG", path / "a/1.png"]


def test_members_are_read_by_many_threads_at_once(archive):
    path, contents = archive
    files = Files([path / name for name in contents] * 50)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(files.read_bytes, range(len(files))))

    assert found == [*contents.values()] * 50


@pytest.mark.usefixtures("archive")
def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "text.tar").write_text("no archive")
    (tmp_path / "file").touch()
    wanted = {
        "gone.jpg": "No such file or directory",
        ".": "Is a directory",
        "photos.tar/gone.jpg": "has no such member",
        "text.tar/a.jpg": "is not a tar archive",
        "file/a.jpg": "Not a directory",
    }
    files = Files([tmp_path / name for name in wanted])

    for row, reason in enumerate(wanted.values()):
        with pytest.raises(ImageError, match=reason):
            files.read_bytes(row)
    with pytest.raises(ImageError, match="is not a tar archive"):
        find_pictures([tmp_path / "text.tar"])


@pytest.mark.parametrize("is_known", [True, False])
def test_a_member_that_is_cut_off_is_not_read(archive, is_known):
    path, contents = archive
    whole = path.read_bytes()
    files = Files([path / name for name in contents])
    if is_known:  # and cut off afterwards
        files.read_bytes(0)
    path.write_bytes(whole[: whole.index(b"twotwo") + 9])

    with pytest.raises(ImageError, match="ends before" if is_known else "is not a tar archive"):
        files.read_bytes(0)


def test_given_bytes_are_not_looked_for_on_disk():
    files = Files(["-", "gone.jpg"], {0: b"bytes"})

    assert files.read_bytes(0) == b"bytes"
    assert (len(files), files.path(1)) == (2, "gone.jpg")


def test_a_range_of_rows_counts_from_0():
    files = Files(["a", "b", "c", "d"], {2: b"see"})
    part = RowRange(files, range(1, 3))

    assert isinstance(part, PictureRows)
    assert [part.path(row) for row in range(len(part))] == ["b", "c"]
    assert part.read_bytes(1) == b"see"
    assert [len(labels) for labels in part.labels_of(np.array([0, 1]))] == [0, 0]


def test_names_that_are_not_utf_8_can_be_printed():
    assert printable(Path("caf\udce9")) == "caf\\xe9"
