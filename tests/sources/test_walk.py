"""`prep.walk`: every entry once, in path order, whatever its name and kind."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources import folders as walk_module
from vit21k.sources.folders import CHUNK_FILES, walk


def _entries(root: Path, **options: bool) -> Iterator[tuple[bytes, Problem | None]]:
    for chunk in walk(os.fsencode(root), **options):
        for name, problem in chunk.entries:
            yield chunk.folder + name, problem


def _problems(root: Path, **options: bool) -> dict[str, tuple[str, str]]:
    return {
        problem.path: (str(problem.kind), problem.detail)
        for _, problem in _entries(root, **options)
        if problem
    }


NAMES = st.text(alphabet="aA-.0_/ ~é", min_size=1, max_size=6).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@settings(max_examples=60)
@given(st.sets(NAMES, max_size=12))
def test_paths_come_in_byte_order_and_each_once(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    made = set()
    for name in names:
        path = root / f"{name}x.jpg"
        if not path.parent.is_dir() and not _is_free(path.parent, root):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.touch()
            made.add(os.fsencode(path.relative_to(root)))

    paths = [path for path, _ in _entries(root)]

    seen_below_hidden = {path for path in made if b"/." in b"/" + path.rpartition(b"/")[0]}
    assert paths == sorted(paths)
    assert {path for path in paths if not path.endswith(b"/")} == made - seen_below_hidden


def _is_free(folder: Path, root: Path) -> bool:
    return not any(part.is_file() for part in (folder, *folder.parents) if part != root)


def test_a_folder_is_compared_with_a_slash_at_its_end(tmp_path: Path) -> None:
    for name in ("a/b/1.jpg", "a/b-c.jpg", "a/b.jpg", "a/b0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    paths = [path for path, _ in _entries(tmp_path)]

    assert paths == [b"a/b-c.jpg", b"a/b.jpg", b"a/b/1.jpg", b"a/b0.jpg"]


def test_a_chunk_is_part_of_one_folder_and_not_too_large(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(CHUNK_FILES + 3):
            (tmp_path / folder / f"{number}.png").touch()

    chunks = list(walk(os.fsencode(tmp_path)))

    assert [(chunk.folder, len(chunk.entries)) for chunk in chunks] == [
        (b"a/", CHUNK_FILES),
        (b"a/", 3),
        (b"b/", CHUNK_FILES),
        (b"b/", 3),
    ]


def test_the_fraction_grows_to_one(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / "images" / f"n{number}").mkdir(parents=True)
        (tmp_path / "images" / f"n{number}" / "x.jpg").touch()

    fractions = [chunk.fraction for chunk in walk(os.fsencode(tmp_path))]

    assert fractions == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1])


@pytest.mark.parametrize(
    "name", ["x.JPEG", "x.jpeg", "x.JPG", "x.Png", "x.webp", "x.bmp", "x.GIF", "x.tif", "x.TIFF"]
)
def test_suffixes_are_compared_without_case(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()

    assert _problems(tmp_path) == {}


@pytest.mark.parametrize("name", ["README", "x.txt", "x.jpg.part", "jpg", "x.", "x.jpeg~"])
def test_other_suffixes_are_skipped(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()

    assert _problems(tmp_path) == {f"a/{name}": ("other_suffix", "")}
    assert ProblemKind.OTHER_SUFFIX.is_skipped


@pytest.mark.parametrize(
    "name",
    [
        "a b.jpg",
        "a\tb.jpg",
        "a\nb.jpg",
        "a\\b.jpg",
        "-rf.jpg",
        "\N{GRINNING FACE}.jpg",
        "x" * 251 + ".jpg",
        "e\u0301.jpg",
        "\u00e9.jpg",
        "..jpg.jpg",
    ],
)
def test_unusual_names_are_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()

    [(path, problem)] = _entries(tmp_path)

    assert path == os.fsencode(f"a/{name}")
    assert problem is None or name.startswith(".")


def test_composed_and_decomposed_accents_and_cases_are_different_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("e\u0301.jpg", "\u00e9.jpg", "A.jpg", "a.jpg"):
        (tmp_path / "a" / name).touch()

    assert len(list(_entries(tmp_path))) == 4
    assert _problems(tmp_path) == {}


def test_names_that_are_not_utf8_are_problems(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for name in (b"x.jpg", b"\xff.jpg"):
        (folder / os.fsdecode(name)).touch()

    assert _problems(tmp_path) == {
        "caf\\xe9/x.jpg": ("name_not_utf8", ""),
        "caf\\xe9/\\xff.jpg": ("name_not_utf8", ""),
    }


def test_files_in_the_root_have_no_class(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    (tmp_path / "README.md").touch()

    assert _problems(tmp_path) == {
        "README.md": ("other_suffix", ""),
        "x.jpg": ("not_in_class_folder", ""),
    }


def test_hidden_entries_are_skipped_and_not_entered(tmp_path: Path) -> None:
    for name in (".git/x.jpg", "a/.x.jpg", "a/._y.jpg", "a/.cache/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert _problems(tmp_path) == {
        ".git/": ("hidden", ""),
        "a/._y.jpg": ("hidden", ""),
        "a/.cache/": ("hidden", ""),
        "a/.x.jpg": ("hidden", ""),
    }


def _with_links(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "x.jpg").touch()
    (root / "a" / "to_file.jpg").symlink_to("x.jpg")
    (root / "a" / "to_nothing.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "to_itself.jpg").symlink_to("to_itself.jpg")
    (root / "a" / "up").symlink_to("..")
    (root / "b").symlink_to("a")


def test_links_are_skipped(tmp_path: Path) -> None:
    _with_links(tmp_path)

    assert _problems(tmp_path) == {
        "a/to_file.jpg": ("symlink", "-> x.jpg"),
        "a/to_itself.jpg": ("symlink", "-> to_itself.jpg"),
        "a/to_nothing.jpg": ("symlink", "-> nowhere.jpg"),
        "a/up": ("symlink", "-> .."),
        "b": ("symlink", "-> a"),
    }


def test_links_are_followed_on_request_without_going_round(tmp_path: Path) -> None:
    _with_links(tmp_path)

    usable = [path for path, problem in _entries(tmp_path, follow_symlinks=True) if not problem]

    assert usable == [b"a/to_file.jpg", b"a/x.jpg"]
    assert _problems(tmp_path, follow_symlinks=True) == {
        "a/to_itself.jpg": ("symlink_loop", "-> to_itself.jpg"),
        "a/to_nothing.jpg": ("broken_symlink", "-> nowhere.jpg"),
        "a/up/": ("symlink_loop", "is `/`"),
        "b/": ("folder_seen_before", "is `a/`"),
    }


def test_pipes_and_sockets_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a/socket.jpg")

    assert _problems(tmp_path) == {
        "a/pipe.jpg": ("not_a_regular_file", ""),
        "a/socket.jpg": ("not_a_regular_file", ""),
    }


def test_an_unreadable_folder_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
    scandir = os.scandir

    def refuse(path: bytes) -> Iterator[os.DirEntry[bytes]]:
        if path.endswith(b"a/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk_module.os, "scandir", refuse)

    assert _problems(tmp_path) == {"a/": ("unreadable", "Permission denied")}
    assert [path for path, problem in _entries(tmp_path) if not problem] == [b"b/x.jpg"]


def test_running_out_of_descriptors_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def refuse(path: bytes) -> Iterator[os.DirEntry[bytes]]:
        if path.endswith(b"a/"):
            raise OSError(24, "Too many open files")
        return scandir(path)

    monkeypatch.setattr(walk_module.os, "scandir", refuse)

    with pytest.raises(OSError, match="Too many open files"):
        list(_entries(tmp_path))


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder deeper than Python may recurse; made and removed without recursion."""
    folders = [tmp_path]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)  # some libraries raise it; a path may be no longer than 4,096
    for _ in range(1_200):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    yield folders[-1]
    sys.setrecursionlimit(limit)
    for folder in reversed(folders[1:]):
        folder.rmdir()


def test_a_very_deep_tree_is_walked(tmp_path: Path, deep_folder: Path) -> None:
    (deep_folder / "x.jpg").touch()

    paths = [path for path, _ in _entries(tmp_path)]
    (deep_folder / "x.jpg").unlink()

    assert paths == [os.fsencode(deep_folder.relative_to(tmp_path) / "x.jpg")]
