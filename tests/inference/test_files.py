import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 (see conftest.py)

from vit21k.cli.options import ImageOptions
from vit21k.data.dataset import ImageRows
from vit21k.errors import ImageError, printable
from vit21k.inference.files import Files, RowRange, find_images


def test_folders_are_searched_in_depth_and_in_order(tmp_path):
    for name in ("b/2.JPEG", "b/1.png", "a/x/3.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()

    found = find_images([tmp_path / "notes.txt", tmp_path, Path("gone")])

    assert [str(path.relative_to(tmp_path)) for path in found[1:-1]] == [
        "a/x/3.jpg",
        "b/1.png",
        "b/2.JPEG",
        "c.webp",
    ]
    assert (found[0], found[-1]) == (tmp_path / "notes.txt", Path("gone"))


def test_what_of_a_folder_or_an_archive_is_not_looked_at_is_listed(tmp_path, archive):
    path, _ = archive
    for name in ("a.jpg", "b.AVIF", "notes.txt", ".hidden.jpg", "deep/c.tgz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "broken.jpg").symlink_to("gone")
    skipped = []

    found = find_images([tmp_path / "in", path], skipped)

    assert found[0] == tmp_path / "in" / "a.jpg"
    assert len(found) == 3
    whys = {one.path.removeprefix(f"{tmp_path}/"): one[1:] for one in skipped}
    assert whys == {
        "in/.hidden.jpg": ("hidden", False),
        "in/b.AVIF": ("another suffix", True),
        "in/broken.jpg": ("broken symlink: -> gone", True),
        "in/deep/c.tgz": ("an archive", True),
        "in/notes.txt": ("another suffix", False),
        "photos.tar": ("1 members with other suffixes", False),
    }


@pytest.fixture
def archive(tmp_path):
    """A tar of two images and a text, their contents by name."""
    contents = {"b/2.JPG": b"two" * 99, "a/1.png": b"one", "a/notes.txt": b"no image"}
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path, contents


def test_the_images_of_an_archive_are_found_in_place(archive):
    path, _ = archive

    assert find_images([path]) == [path / "b/2.JPG", path / "a/1.png"]


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
        "gone.jpg": "the file is not there",
        ".": "the file is not there",
        "photos.tar/gone.jpg": "has no such member",
        "text.tar/a.jpg": "cannot be read as an archive",
        "file/a.jpg": "the file is not there",
    }
    files = Files([tmp_path / name for name in wanted])

    for row, reason in enumerate(wanted.values()):
        with pytest.raises(ImageError, match=reason):
            files.read_bytes(row)
    with pytest.raises(ImageError, match="cannot be read as an archive"):
        find_images([tmp_path / "text.tar"])


@pytest.mark.parametrize("is_known", [True, False])
def test_a_member_that_is_cut_off_is_not_read(archive, is_known):
    path, contents = archive
    whole = path.read_bytes()
    files = Files([path / name for name in contents])
    if is_known:  # and cut off afterwards
        files.read_bytes(0)
    path.write_bytes(whole[: whole.index(b"twotwo") + 9])

    with pytest.raises(ImageError, match="ends before" if is_known else "has 9 of 297 bytes"):
        files.read_bytes(0)


def tar_of(path, members, mode="w", **options):
    """Write a tar of (name, content, kind)."""
    with tarfile.open(path, mode, **options) as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            member.linkname = "elsewhere"
            tar.addfile(member, io.BytesIO(content))
    return path


def read(path):
    """Return what the images of an archive hold, or why they are not read, by name."""
    found = find_images([path])
    files = Files(found)
    outcomes = {}
    for row, name in enumerate(found):
        try:
            outcomes[name.relative_to(path).as_posix()] = files.read_bytes(row)
        except ImageError as error:
            outcomes[name.relative_to(path).as_posix()] = error.message
    return outcomes


@pytest.mark.parametrize(
    "names", [("./a/1.jpg", "./2.jpg"), ("a//1.jpg", "2.jpg"), ("./a/./1.jpg", "./2.jpg")]
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_spelling_of_a_relative_name_is_read(tmp_path, names, mode, layout):
    members = [(name, name.encode(), tarfile.REGTYPE) for name in names]
    path = tar_of(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), members, mode, format=layout)

    assert read(path) == {"a/1.jpg": names[0].encode(), "2.jpg": names[1].encode()}


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path, layout):
    name = "é" * 60 + "/" + "b" * 150 + ".jpg"

    path = tar_of(tmp_path / "a.tar", [(name, b"one", tarfile.REGTYPE)], format=layout)

    assert read(path) == {name: b"one"}


def test_a_member_is_never_a_path_of_this_machine(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    names = (str(secret), "../secret.jpg", "a/../../secret.jpg")
    members = [(name, b"member", tarfile.REGTYPE) for name in names]
    path = tar_of(tmp_path / "folder" / "a.tar", members)

    found = read(path)

    assert set(found) == {str(secret)[1:], "../secret.jpg", "a/../../secret.jpg"}
    assert all("whose name is absolute" in outcome for outcome in found.values())


def test_links_and_sparse_members_are_named_with_the_reason(tmp_path):
    members = [
        ("soft.jpg", b"", tarfile.SYMTYPE),
        ("hard.jpg", b"", tarfile.LNKTYPE),
        ("good.jpg", b"good", tarfile.REGTYPE),
        ("notes.txt", b"", tarfile.SYMTYPE),
    ]
    path = tar_of(tmp_path / "a.tar", members)
    pax = tar_of(tmp_path / "b.tar", [], format=tarfile.PAX_FORMAT)
    member = tarfile.TarInfo("sparse.jpg")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "999"}
    with tarfile.open(pax, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO())

    assert read(path) == {
        "soft.jpg": "a symbolic link",
        "hard.jpg": "a hard link",
        "good.jpg": b"good",
    }
    assert read(pax) == {"sparse.jpg": "a sparse file"}


def test_the_last_member_of_a_name_counts(tmp_path):
    members = [
        ("a.jpg", b"old", tarfile.REGTYPE),
        ("b.jpg", b"b", tarfile.REGTYPE),
        ("./a.jpg", b"new", tarfile.REGTYPE),
    ]

    assert read(tar_of(tmp_path / "a.tar", members)) == {"b.jpg": b"b", "a.jpg": b"new"}


def test_class_tars_within_an_archive_are_read(tmp_path):
    inner = tar_of(tmp_path / "inner", [("1.jpg", b"one", tarfile.REGTYPE)]).read_bytes()
    outer = tar_of(tmp_path / "a.tar", [("n01440764.tar", inner, tarfile.REGTYPE)])

    assert read(outer) == {"n01440764.tar/1.jpg": b"one"}


def test_damage_within_an_archive_is_named(tmp_path):
    members = [(f"{n}.jpg", b"x" * 512, tarfile.REGTYPE) for n in range(3)]
    path = tar_of(tmp_path / "a.tar", members)
    content = bytearray(path.read_bytes())
    content[1024:1536] = b"?" * 512  # the second header
    path.write_bytes(content)

    found = read(path)

    assert found.pop("0.jpg") == found.pop("2.jpg") == b"x" * 512
    ((name, reason),) = found.items()
    assert name == "at offset 1,024"
    assert "no header where one is expected" in reason


def test_given_bytes_are_not_looked_for_on_disk():
    files = Files(["-", "gone.jpg"], {0: b"bytes"})

    assert files.read_bytes(0) == b"bytes"
    assert (len(files), files.path(1)) == (2, "gone.jpg")


def test_a_range_of_rows_counts_from_0():
    files = Files(["a", "b", "c", "d"], {2: b"see"})
    part = RowRange(files, range(1, 3))

    assert isinstance(part, ImageRows)
    assert [part.path(row) for row in range(len(part))] == ["b", "c"]
    assert part.read_bytes(1) == b"see"
    assert [len(labels) for labels in part.labels_of(np.array([0, 1]))] == [0, 0]


def test_names_that_are_not_utf_8_can_be_printed():
    assert printable(Path("caf\udce9")) == "caf\\xe9"


def test_a_list_of_paths_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n")

    rows = ImageOptions(from_file=tmp_path / "list.txt").open([])

    assert [rows.path(row) for row in range(len(rows))] == ["a.jpg", "b.jpg"]
